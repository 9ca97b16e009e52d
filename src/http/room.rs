//! Room that many share and take in steps, each up to a claim made beforehand.
//!
//! Those who hold some and wait for more could wait for each other for ever. So a step is granted only where an order
//! is left in which everybody can still have all of their claim, one after another: the banker's algorithm.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// So many units, for so many guests. Clones share them.
#[derive(Clone)]
pub(super) struct Room {
    units: u32,
    ledger: Arc<Mutex<Ledger>>,
}

struct Ledger {
    units: u32,
    free: u32,
    seats: usize,
    next_id: u64,
    /// In the order of their coming.
    guests: BTreeMap<u64, Guest>,
}

struct Guest {
    held: u32,
    /// What is left of the claim.
    rest: u32,
    /// What is kept from others who come for more than their first units: else the room would be full of halves, which is
    /// safe, but lets few end at a time.
    promised: u32,
    /// Whether it counts among those who may be here at once.
    has_seat: bool,
    asks: Option<Ask>,
}

struct Ask {
    units: u32,
    granted: oneshot::Sender<()>,
}

/// What a guest may ask for.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    /// In all.
    pub(super) units: u32,
    /// At once.
    pub(super) first: u32,
    /// Whether all of it will be asked for.
    pub(super) is_exact: bool,
}

/// What one guest holds, until this is dropped.
pub(super) struct Place {
    room: Room,
    id: u64,
}

impl Room {
    pub(super) fn new(units: u32, seats: usize) -> Self {
        let ledger = Ledger { units, free: units, seats, next_id: 0, guests: BTreeMap::new() };
        Self { units, ledger: Arc::new(Mutex::new(ledger)) }
    }

    pub(super) fn units(&self) -> u32 {
        self.units
    }

    /// Takes the first units of a claim, if nobody has to be waited for.
    pub(super) fn try_enter(&self, claim: Claim) -> Option<Place> {
        let place = self.register(claim);
        place.ask(claim.first).is_none().then_some(place)
    }

    /// Takes the first units of a claim, after those who came before.
    ///
    /// # Cancel safety
    /// Dropping the future gives back what it was granted.
    pub(super) async fn enter(&self, claim: Claim) -> Place {
        let place = self.register(claim);
        place.grow(claim.first).await;
        place
    }

    fn register(&self, claim: Claim) -> Place {
        // A claim above all there is could never be met.
        let rest = claim.units.min(self.units);
        let promised = if claim.is_exact && claim.first < rest { rest } else { 0 };
        let mut ledger = self.lock();
        let id = ledger.next_id;
        ledger.next_id += 1;
        ledger.guests.insert(id, Guest { held: 0, rest, promised, has_seat: true, asks: None });
        Place { room: self.clone(), id }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Takes `units` more, or what is left of the claim, ahead of those who hold nothing yet.
    ///
    /// # Cancel safety
    /// What was asked for may still be granted while the place is there.
    pub(super) async fn grow(&self, units: u32) {
        if let Some(granted) = self.ask(units) {
            granted.await.expect("the guest is there as long as the place");
        }
    }

    /// Gives up the seat, and lets others have what is claimed and not yet held before: for one that takes its time.
    pub(super) fn step_aside(&self) {
        let mut ledger = self.room.lock();
        let guest = ledger.guests.get_mut(&self.id).expect("it is there as long as the place");
        (guest.promised, guest.has_seat) = (0, false);
        ledger.serve();
    }

    /// Gives back all but `units`, and claims no more; whoever stepped aside has a seat again, if need be one too many.
    pub(super) fn settle(&self, units: u32) {
        let mut ledger = self.room.lock();
        let guest = ledger.guests.get_mut(&self.id).expect("it is there as long as the place");
        let spare = guest.held.saturating_sub(units);
        guest.held -= spare;
        (guest.rest, guest.asks, guest.has_seat) = (0, None, true);
        guest.promised = guest.promised.min(units);
        ledger.free += spare;
        ledger.serve();
    }

    /// None where it is granted already.
    fn ask(&self, units: u32) -> Option<oneshot::Receiver<()>> {
        let (granted, when) = oneshot::channel();
        let mut ledger = self.room.lock();
        let guest = ledger.guests.get_mut(&self.id).expect("it is there as long as the place");
        guest.asks = Some(Ask { units: units.min(guest.rest), granted });
        ledger.serve();
        ledger.guests[&self.id].asks.is_some().then_some(when)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut ledger = self.room.lock();
        let guest = ledger.guests.remove(&self.id).expect("it is removed once");
        ledger.free += guest.held;
        ledger.serve();
    }
}

impl Ledger {
    /// Grants what can be granted: first to those who hold some, as the others wait for them.
    fn serve(&mut self) {
        let asking = |is_growing: bool| {
            let asks = move |(id, guest): (&u64, &Guest)| {
                let ask = guest.asks.as_ref().filter(|_| (guest.held > 0) == is_growing)?;
                Some((*id, ask.units))
            };
            self.guests.iter().filter_map(asks).collect::<Vec<_>>()
        };
        let (growing, entering) = (asking(true), asking(false));
        let mut is_short = false;
        for (id, units) in growing {
            is_short |= units > self.free;
            self.grant_if_safe(id, units);
        }
        let inside = || self.guests.values().filter(|guest| guest.held > 0);
        let mut all_promised: u64 = inside().map(|guest| u64::from(guest.promised)).sum();
        let mut n_seated = inside().filter(|guest| guest.has_seat).count();
        let mut is_full = false;
        for (id, units) in entering {
            // What is free is saved up for whoever comes first. Those who wait for others' claims are passed over, or a
            // few who claim much would keep everybody out.
            is_short |= units > self.free || n_seated >= self.seats;
            if is_short {
                break;
            }
            let more = u64::from(self.guests[&id].promised);
            // So is what can be promised, or smaller ones behind it would keep a large one out for ever.
            is_full |= all_promised + more > u64::from(self.units);
            if more > 0 && is_full {
                continue;
            }
            if self.grant_if_safe(id, units) {
                all_promised += more;
                n_seated += 1;
            }
        }
    }

    /// Whether it was granted.
    fn grant_if_safe(&mut self, id: u64, units: u32) -> bool {
        if units > self.free || !self.is_safe_with(id, units) {
            return false;
        }
        self.free -= units;
        let guest = self.guests.get_mut(&id).expect("it asks");
        guest.held += units;
        guest.rest -= units;
        let ask = guest.asks.take().expect("it asks");
        // Whoever no longer waits gives the place back.
        let _gone = ask.granted.send(());
        true
    }

    /// Whether all can still have their claims, one after another, once `id` has `units` more.
    fn is_safe_with(&self, id: u64, units: u32) -> bool {
        if self.guests[&id].rest == units {
            // It needs nobody, and then gives all of it back.
            return true;
        }
        let after = |(other, guest): (&u64, &Guest)| {
            let more = if *other == id { units } else { 0 };
            (guest.rest - more, guest.held + more)
        };
        let mut guests: Vec<_> = self.guests.iter().map(after).filter(|(_, held)| *held > 0).collect();
        guests.sort_unstable();
        let mut free = self.free - units;
        guests.into_iter().all(|(rest, held)| {
            let can_end = rest <= free;
            free = free.saturating_add(held);
            can_end
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, time::Duration};

    use futures_util::{FutureExt, future::join_all};
    use tokio::time::{sleep, timeout};

    use super::*;

    /// A claim that is a bound.
    fn upto(units: u32, first: u32) -> Claim {
        Claim { units, first, is_exact: false }
    }

    fn exact(units: u32, first: u32) -> Claim {
        Claim { units, first, is_exact: true }
    }

    fn free(room: &Room) -> u32 {
        room.lock().free
    }

    #[test]
    fn what_is_dropped_or_settled_is_free_again() {
        let room = Room::new(10, usize::MAX);
        let place = room.try_enter(upto(8, 3)).unwrap();
        assert_eq!(free(&room), 7);
        place.grow(2).now_or_never().unwrap();
        assert_eq!(free(&room), 5);
        place.settle(4);
        assert_eq!(free(&room), 6);
        // The claim is gone.
        place.grow(2).now_or_never().unwrap();
        assert_eq!(free(&room), 6);
        assert!(room.try_enter(upto(7, 7)).is_none());
        drop(place);
        assert_eq!(free(&room), 10);
    }

    #[test]
    fn a_claim_above_all_there_is_takes_all() {
        let room = Room::new(10, usize::MAX);
        let place = room.try_enter(upto(1000, 1)).unwrap();
        place.grow(1000).now_or_never().unwrap();
        assert_eq!(free(&room), 0);
    }

    #[test]
    fn nobody_enters_who_could_block_another() {
        let room = Room::new(10, usize::MAX);
        let first = room.try_enter(upto(8, 6)).unwrap();
        // Then 2 and 4 would be missing, and none free.
        assert!(room.try_enter(upto(8, 4)).is_none());
        // One who needs no more is welcome.
        let small = room.try_enter(upto(4, 4)).unwrap();
        let mut grows = Box::pin(first.grow(2));
        assert!(grows.as_mut().now_or_never().is_none());
        drop(small);
        grows.now_or_never().unwrap();
    }

    #[test]
    fn who_claims_much_and_stalls_keeps_nobody_out() {
        let room = Room::new(128, usize::MAX);
        let stalled: Vec<_> = (0..100).map_while(|_| room.try_enter(upto(100, 1))).collect();
        assert_eq!(stalled.len(), 29);
        let mut waits = Box::pin(room.enter(upto(100, 1)));
        assert!(waits.as_mut().now_or_never().is_none());
        let normal: Vec<_> = (0..99).map(|_| room.try_enter(upto(1, 1)).unwrap()).collect();
        assert_eq!((normal.len(), free(&room)), (99, 0));
    }

    #[test]
    fn large_ones_come_one_after_another_and_small_ones_between() {
        let room = Room::new(128, usize::MAX);
        let one = room.try_enter(exact(60, 1)).unwrap();
        let _two = room.try_enter(exact(60, 1)).unwrap();
        assert!(room.try_enter(exact(60, 1)).is_none());
        let small: Vec<_> = (0..120).map(|_| room.try_enter(exact(1, 1)).unwrap()).collect();
        // The large one is before any other small one.
        let mut grows = Box::pin(one.grow(59));
        assert!(grows.as_mut().now_or_never().is_none());
        drop(small);
        grows.now_or_never().unwrap();
        one.settle(30);
        assert!(room.try_enter(exact(60, 1)).is_none());
        drop(one);
        assert!(room.try_enter(exact(60, 1)).is_some());
    }

    #[test]
    fn a_large_one_is_not_passed_over_for_ever() {
        let room = Room::new(128, usize::MAX);
        let mut inside: VecDeque<_> = (0..42).map(|_| room.try_enter(exact(3, 1)).unwrap()).collect();
        let mut large = Box::pin(room.enter(exact(16, 1)));
        assert!(large.as_mut().now_or_never().is_none());
        let mut waiting = VecDeque::new();
        for n_after in 0..100 {
            waiting.push_back(Box::pin(room.enter(exact(3, 1))));
            drop(inside.pop_front());
            if large.as_mut().now_or_never().is_some() {
                assert!(n_after < 10, "{n_after} were before it");
                return;
            }
            while let Some(place) = waiting.front_mut().and_then(|next| next.as_mut().now_or_never()) {
                waiting.pop_front();
                inside.push_back(place);
            }
        }
        panic!("a hundred were before it");
    }

    #[test]
    fn who_claims_all_and_takes_its_time_lets_others_pass() {
        let room = Room::new(128, usize::MAX);
        let slow = [100, 28].map(|units| room.try_enter(exact(units, 1)).unwrap());
        assert!(room.try_enter(exact(3, 1)).is_none());
        slow.iter().for_each(Place::step_aside);
        let normal: Vec<_> = (0..9).map(|_| room.try_enter(exact(3, 1)).unwrap()).collect();
        normal.iter().for_each(|place| place.grow(2).now_or_never().unwrap());
        // They have all of their claims nevertheless.
        let mut grows = Box::pin(slow[0].grow(99).then(|()| slow[0].grow(0)));
        drop(normal);
        grows.as_mut().now_or_never().unwrap();
    }

    #[test]
    fn room_is_saved_up_for_whoever_came_first() {
        let room = Room::new(10, usize::MAX);
        let [one, two] = [5, 5].map(|n| room.try_enter(upto(n, n)).unwrap());
        let mut large = Box::pin(room.enter(upto(8, 8)));
        assert!(large.as_mut().now_or_never().is_none());
        drop(one);
        assert!(room.try_enter(upto(1, 1)).is_none());
        drop(two);
        let _large = large.now_or_never().unwrap();
        assert!(room.try_enter(upto(1, 1)).is_some());
    }

    #[test]
    fn there_are_no_more_than_seats_but_for_those_who_take_their_time() {
        let room = Room::new(100, 2);
        let [slow, steady] = [10, 10].map(|units| room.try_enter(exact(units, 1)).unwrap());
        let mut waits = Box::pin(room.enter(exact(10, 1)));
        assert!(waits.as_mut().now_or_never().is_none());
        // Those inside have their claims all the same.
        steady.grow(9).now_or_never().unwrap();
        slow.step_aside();
        let third = waits.now_or_never().unwrap();
        assert!(room.try_enter(exact(10, 1)).is_none());
        // Once they have it, they count again.
        slow.grow(9).now_or_never().unwrap();
        slow.settle(10);
        drop(third);
        assert!(room.try_enter(exact(10, 1)).is_none());
        drop(slow);
        assert!(room.try_enter(exact(10, 1)).is_some());
    }

    #[test]
    fn who_stops_waiting_leaves_nothing() {
        let room = Room::new(10, usize::MAX);
        let all = room.try_enter(upto(10, 10)).unwrap();
        let mut waits = Box::pin(room.enter(upto(5, 5)));
        assert!(waits.as_mut().now_or_never().is_none());
        let mut granted = Box::pin(room.enter(upto(5, 5)));
        assert!(granted.as_mut().now_or_never().is_none());
        drop(waits);
        drop(all);
        assert_eq!(free(&room), 5);
        drop(granted);
        assert_eq!(free(&room), 10);
        assert!(room.lock().guests.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn all_have_their_claims_in_the_end() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20 {
            let room = Room::new(20, 5);
            let guests = (0..200).map(|_| {
                let (room, mut random) = (room.clone(), random.fork());
                async move {
                    let claim = random.u32(1..=25);
                    sleep(Duration::from_millis(random.u64(0..50))).await;
                    let mut held = random.u32(1..=claim);
                    let place =
                        room.enter(Claim { units: claim, first: held, is_exact: random.bool() }).await;
                    while held < claim {
                        sleep(Duration::from_millis(random.u64(0..5))).await;
                        let more = random.u32(1..=claim - held);
                        place.grow(more).await;
                        held += more;
                    }
                    sleep(Duration::from_millis(random.u64(0..5))).await;
                }
            });
            timeout(Duration::from_secs(60), join_all(guests)).await.expect("nobody waits for ever");
            assert_eq!(free(&room), 20);
        }
    }
}
