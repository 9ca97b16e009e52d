//! How many pictures are fetched at once: of all sources, and from one host. Searches have places of their own.

use std::{
    collections::{HashMap, hash_map::Entry},
    mem::take,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::Lane;

pub(super) const NEVER_CLOSED: &str = "the semaphore is never closed";
/// Places of all, beyond those that anybody may take, for searches: hundreds of pictures may wait before one, of which
/// somebody waits for the result.
pub(super) const SEARCHES: usize = 16;
/// The same at one host.
const SEARCHES_PER_HOST: usize = 2;

/// So much at once, and some more for searches. Clones share it.
#[derive(Clone)]
pub(super) struct Bound {
    any: Arc<Semaphore>,
    searches: Arc<Semaphore>,
}

impl Bound {
    pub(super) fn new(any: usize, searches: usize) -> Self {
        let any = any.clamp(1, Semaphore::MAX_PERMITS);
        Self { any: Arc::new(Semaphore::new(any)), searches: Arc::new(Semaphore::new(searches)) }
    }

    /// Waits for its turn; a search for whichever comes first.
    pub(super) async fn take(&self, lane: Lane) -> OwnedSemaphorePermit {
        let any = self.any.clone().acquire_owned();
        let permit = match lane {
            Lane::Bulk => any.await,
            Lane::Search => tokio::select! {
                biased;
                permit = any => permit,
                permit = self.searches.clone().acquire_owned() => permit,
            },
        };
        permit.expect(NEVER_CLOSED)
    }
}

/// The bounds. Clones share them.
#[derive(Clone)]
pub(super) struct Places {
    all: Bound,
    per_host: usize,
    /// Hosts with a download under way or waiting.
    hosts: Arc<Mutex<HashMap<String, Host>>>,
}

struct Host {
    bound: Bound,
    /// Who has a place here or waits for one.
    n_guests: usize,
}

/// The right to one download from a host, given back on drop.
pub(super) struct Place {
    host: String,
    hosts: Arc<Mutex<HashMap<String, Host>>>,
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Places {
    pub(super) fn new(all: usize, per_host: usize) -> Self {
        Self { all: Bound::new(all, SEARCHES), per_host, hosts: Arc::default() }
    }

    /// Waits for a place at what is the operator's own, which needs no protection of its own.
    pub(super) async fn take(&self, lane: Lane) -> OwnedSemaphorePermit {
        self.all.take(lane).await
    }

    /// Waits for a place at a host. The host's own comes first, so that the queue of a slow host takes none of the
    /// places that others could use.
    pub(super) async fn take_at(&self, host: &str, lane: Lane) -> Place {
        let bound = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Host { bound: Bound::new(self.per_host, SEARCHES_PER_HOST), n_guests: 0 };
            let host = hosts.entry(host.into()).or_insert_with(new);
            host.n_guests += 1;
            host.bound.clone()
        };
        let mut place = Place { host: host.into(), hosts: self.hosts.clone(), permits: None };
        let of_host = bound.take(lane).await;
        place.permits = Some((of_host, self.take(lane).await));
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the host is forgotten, or the next one there would find more places than there are.
        self.permits = None;
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut host) = hosts.entry(take(&mut self.host)) {
            host.get_mut().n_guests -= 1;
            if host.get().n_guests == 0 {
                host.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_busy_host_holds_up_only_itself() {
        let places = Places::new(3, 2);
        let a = [places.take_at("a", Lane::Bulk).await, places.take_at("a", Lane::Bulk).await];
        assert!(places.take_at("a", Lane::Bulk).now_or_never().is_none(), "the host has two places");
        let b = places.take_at("b", Lane::Bulk).now_or_never().expect("another host has its own");
        assert!(places.take_at("c", Lane::Bulk).now_or_never().is_none(), "three are all there are");
        assert!(places.take(Lane::Bulk).now_or_never().is_none(), "for files and buckets, too");
        drop((a, b));
        assert!(places.take_at("a", Lane::Bulk).now_or_never().is_some());
        assert!(places.hosts.lock().unwrap().is_empty(), "idle hosts are forgotten");
    }

    #[tokio::test]
    async fn searches_have_places_of_their_own() {
        fn search(places: &Places, host: &str) -> Option<Place> {
            places.take_at(host, Lane::Search).now_or_never()
        }

        let places = Places::new(3, 1);
        // What is free for anybody comes first.
        let first = search(&places, "a").unwrap();
        assert!(places.take_at("a", Lane::Bulk).now_or_never().is_none());
        let more = [search(&places, "a").unwrap(), search(&places, "a").unwrap()];
        assert!(search(&places, "a").is_none(), "two more than bulk has");
        let others: Vec<_> = (0..SEARCHES).map(|i| search(&places, &format!("b{i}")).unwrap()).collect();
        assert!(search(&places, "c").is_none() && places.take(Lane::Search).now_or_never().is_none());
        drop((first, more, others));
        assert!(places.hosts.lock().unwrap().is_empty(), "those who gave up waiting are forgotten, too");
    }

    #[tokio::test]
    async fn a_search_takes_whichever_is_free_first() {
        let bound = Bound::new(1, 1);
        for first in [0, 1] {
            let mut taken = vec![bound.take(Lane::Bulk).await, bound.take(Lane::Search).await];
            let mut waiting = pin!(bound.take(Lane::Search));
            assert!((&mut waiting).now_or_never().is_none());
            drop(taken.remove(first));
            assert!(waiting.now_or_never().is_some(), "{first}");
        }
    }
}
