//! One download for all who ask for the same thing at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

type Map<K, T> = Arc<Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>>;

/// What is under way, by key. Clones share it.
#[derive(Clone)]
pub(super) struct Flights<K, T>(Map<K, T>)
where
    K: Eq + Hash;

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// The outcome of what is under way for `key`, or else of `start`; and whether it was the former.
    ///
    /// # Cancel safety
    /// Whoever is left goes on with what others began; when nobody is, it is dropped.
    pub(super) async fn join(&self, key: K, start: impl Future<Output = T> + Send + 'static) -> (T, bool) {
        let (flight, was_joined) = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&key).and_then(WeakShared::upgrade) {
                Some(flight) => (flight, true),
                None => {
                    let flight = self.flight(key.clone(), start);
                    flights.insert(key, flight.downgrade().expect("it has not run yet"));
                    (flight, false)
                }
            }
        };
        (flight.await, was_joined)
    }

    fn flight(
        &self,
        key: K,
        start: impl Future<Output = T> + Send + 'static,
    ) -> Shared<BoxFuture<'static, T>> {
        let landing = Landing { flights: self.0.clone(), key };
        async move {
            let _landing = landing;
            start.await
        }
        .boxed()
        .shared()
    }
}

/// Takes an ended or abandoned flight off the map.
struct Landing<K: Eq + Hash, T> {
    flights: Map<K, T>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        // At worst a successor that began this moment loses its entry, and then one more goes alone.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn whoever_asks_at_once_shares_one_outcome() {
        let (flights, count) = (Flights::new(), Arc::new(AtomicUsize::new(0)));
        let ask = |key: u32| {
            let count = count.clone();
            flights.join(key, async move {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst)
            })
        };
        let (a, b, other) = tokio::join!(ask(1), ask(1), ask(2));
        assert_eq!((a, b, other), ((0, false), (0, true), (1, false)));
        assert_eq!(ask(1).await, (2, false), "what has ended is not shared");
        assert!(flights.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn those_who_are_left_go_on() {
        let (flights, go) = (Flights::new(), Arc::new(Notify::new()));
        let first = tokio::spawn({
            let (flights, go) = (flights.clone(), go.clone());
            async move {
                flights
                    .join(1, async move {
                        go.notified().await;
                        "landed"
                    })
                    .await
            }
        });
        tokio::task::yield_now().await;
        let second = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join(1, std::future::pending()).await }
        });
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        go.notify_one();
        assert_eq!(second.await.unwrap(), ("landed", true));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_dropped() {
        let flights = Flights::new();
        assert!(flights.join(1, std::future::pending::<()>()).now_or_never().is_none());
        assert!(flights.0.lock().unwrap().is_empty());
        assert_eq!(flights.join(1, std::future::ready(())).await, ((), false));
    }
}
