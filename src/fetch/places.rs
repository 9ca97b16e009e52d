//! How many pictures are fetched at once: of all sources, and from one host.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) const NEVER_CLOSED: &str = "the semaphore is never closed";

/// The bounds. Clones share them.
#[derive(Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    per_host: usize,
    /// Hosts with a download under way or waiting.
    hosts: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

/// The right to one download from a host, given back on drop.
pub(super) struct Place {
    host: String,
    hosts: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
    // Dropped before the host's entry is looked at, see `Drop`.
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Places {
    pub(super) fn new(all: usize, per_host: usize) -> Self {
        let clamp = |n: usize| n.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(clamp(all))), per_host: clamp(per_host), hosts: Arc::default() }
    }

    /// Waits for a place at what is the operator's own, which needs no protection of its own.
    pub(super) async fn take(&self) -> OwnedSemaphorePermit {
        self.all.clone().acquire_owned().await.expect(NEVER_CLOSED)
    }

    /// Waits for a place at a host. The host's own comes first, so that the queue of a slow host takes none of the
    /// places that others could use.
    pub(super) async fn take_at(&self, host: &str) -> Place {
        let of_host = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            hosts.entry(host.into()).or_insert_with(|| Arc::new(Semaphore::new(self.per_host))).clone()
        };
        let mut place = Place { host: host.into(), hosts: self.hosts.clone(), permits: None };
        let of_host = of_host.acquire_owned().await.expect(NEVER_CLOSED);
        place.permits = Some((of_host, self.take().await));
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.permits = None;
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // A semaphore that only the map still holds has neither downloads nor waiters.
        if hosts.get(&self.host).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            hosts.remove(&self.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_busy_host_holds_up_only_itself() {
        let places = Places::new(3, 2);
        let a = [places.take_at("a").await, places.take_at("a").await];
        assert!(places.take_at("a").now_or_never().is_none(), "the host has two places");
        let b = places.take_at("b").now_or_never().expect("another host has its own");
        assert!(places.take_at("c").now_or_never().is_none(), "three are all there are");
        assert!(places.take().now_or_never().is_none(), "for files and buckets, too");
        drop((a, b));
        assert!(places.take_at("a").now_or_never().is_some());
        assert!(places.hosts.lock().unwrap().is_empty(), "idle hosts are forgotten");
    }
}
