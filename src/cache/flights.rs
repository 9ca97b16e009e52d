//! Single flight: equal lookups that are under way at once are one.
//!
//! A flight belongs to all who wait for it. It goes on when the one who began it leaves, and ends with the last; unless
//! it has been told to go on alone.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

use super::{CacheKey, CachedVector};
use crate::domain::Lane;

/// What a flight comes to. Its error has lost its type, as each caller has one of its own.
type Outcome = Result<CachedVector, Arc<dyn Any + Send + Sync>>;

/// The flights under way. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<UnderWay>>);

#[derive(Default)]
struct UnderWay {
    flights: HashMap<Name, Entry>,
    n_begun: u64,
}

/// What equal lookups have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    key: CacheKey,
    lane: Lane,
    error: TypeId,
}

struct Entry {
    /// Tells it from a later one of the same name.
    number: u64,
    flight: WeakShared<BoxFuture<'static, Outcome>>,
}

/// A lookup's place in a flight.
pub(super) struct Seat<E> {
    flight: Shared<BoxFuture<'static, Outcome>>,
    /// Whether the flight was under way before.
    pub was_joined: bool,
    error: std::marker::PhantomData<E>,
}

impl Flights {
    /// A place in a flight to `key` that is under way, or else in the one that `begin` makes. `begin` is called within
    /// a lock: it should only make the future.
    ///
    /// A search joins searches alone: what bulk waits for may come long after the person has left. Bulk joins both.
    pub fn join_or_begin<E, F>(&self, key: CacheKey, lane: Lane, begin: impl FnOnce(GoOn) -> F) -> Seat<E>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<CachedVector, E>> + Send + 'static,
    {
        let name = |lane| Name { key, lane, error: TypeId::of::<E>() };
        let lanes = match lane {
            Lane::Search => &[Lane::Search][..],
            Lane::Bulk => &Lane::ALL,
        };
        let mut under_way = self.lock();
        let joined = lanes.iter().find_map(|lane| under_way.flights.get(&name(*lane))?.flight.upgrade());
        if let Some(flight) = joined {
            return Seat::new(flight, true);
        }
        let (name, number) = (name(lane), under_way.n_begun);
        under_way.n_begun += 1;
        let finding = begin(GoOn { flights: self.clone(), name, number });
        let landing = Landing { flights: self.clone(), name, number };
        let flight = async move {
            let _landing = landing;
            finding.await.map_err(|error| Arc::new(error) as Arc<dyn Any + Send + Sync>)
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            under_way.flights.insert(name, Entry { number, flight: weak });
        }
        Seat::new(flight, false)
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Send + Sync + 'static> Seat<E> {
    fn new(flight: Shared<BoxFuture<'static, Outcome>>, was_joined: bool) -> Self {
        Self { flight, was_joined, error: std::marker::PhantomData }
    }

    /// What the flight comes to.
    pub async fn outcome(self) -> Result<CachedVector, Arc<E>> {
        self.flight.await.map_err(|error| error.downcast().expect("the error's type is part of the name"))
    }
}

/// A flight's means to go on without those who wait for it.
pub struct GoOn {
    flights: Flights,
    name: Name,
    number: u64,
}

impl GoOn {
    /// From now on the flight goes on to its end, whoever leaves. Needs a tokio runtime around it.
    pub fn alone(self) {
        let flight = {
            let under_way = self.flights.lock();
            let entry = under_way.flights.get(&self.name).filter(|entry| entry.number == self.number);
            entry.and_then(|entry| entry.flight.upgrade())
        };
        // Else the last has just left.
        if let Some(flight) = flight {
            tokio::spawn(flight);
        }
    }
}

/// Takes a flight's name out of the list once it has come to something, or nobody waits for it any more.
struct Landing {
    flights: Flights,
    name: Name,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        if under_way.flights.get(&self.name).is_some_and(|entry| entry.number == self.number) {
            under_way.flights.remove(&self.name);
        }
    }
}
