//! Single flight, and tiers behind one another.

use std::{
    collections::HashMap,
    future::ready,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tokio::sync::Notify;

use super::*;
use crate::{
    config::{Config, DEFAULT_TOML},
    domain::{Embedding, Fingerprint},
};

/// The defaults, with this much memory.
pub(super) fn config(max_bytes: u64) -> CacheConfig {
    let config: Config = toml::from_str(DEFAULT_TOML).unwrap();
    CacheConfig { max_bytes, ..config.cache }
}

fn cache(max_bytes: u64) -> VectorCache {
    VectorCache::new(&config(max_bytes), Metrics::new()).unwrap()
}

pub(super) fn key(name: &str) -> CacheKey {
    CacheKey::text(Fingerprint::of(&[b"model"]), name)
}

fn value() -> CachedVector {
    let embedding = Embedding::normalized(vec![3.0, 4.0]).unwrap();
    CachedVector { created_ms: 0, ..CachedVector::of_text(embedding, 3, false) }
}

async fn computed(count: &AtomicUsize) -> Result<CachedVector, String> {
    count.fetch_add(1, Ordering::SeqCst);
    tokio::task::yield_now().await;
    Ok(value())
}

#[tokio::test]
async fn equal_inputs_in_flight_are_computed_once() {
    for (max_bytes, later) in [(1 << 20, 1), (0, 2)] {
        let (cache, count) = (cache(max_bytes), AtomicUsize::new(0));
        let lookups = (0..40).map(|_| cache.get_or_compute(key("a"), computed(&count)));
        assert!(join_all(lookups).await.into_iter().all(|found| found.unwrap() == value()));
        assert_eq!(count.load(Ordering::SeqCst), 1, "in flight, max_bytes {max_bytes}");
        cache.get_or_compute(key("a"), computed(&count)).await.unwrap();
        assert_eq!(count.load(Ordering::SeqCst), later, "afterwards, max_bytes {max_bytes}");
        assert_eq!(cache.metrics.cache_misses.get(), later as u64);
        assert_eq!(cache.memory_hits.get(), 41 - later as u64);
    }
}

#[tokio::test]
async fn errors_are_shared_in_flight_but_not_stored() {
    let cache = cache(1 << 20);
    let fail = || async {
        tokio::task::yield_now().await;
        Err("broken")
    };
    let lookups = (0..3).map(|_| cache.get_or_compute(key("a"), fail()));
    let joined: Vec<bool> =
        join_all(lookups).await.into_iter().map(|found| found.unwrap_err().was_joined).collect();
    assert_eq!(joined, [false, true, true]);
    let count = AtomicUsize::new(0);
    cache.get_or_compute(key("a"), computed(&count)).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_caller_takes_over_when_the_first_leaves() {
    let (cache, count) = (cache(1 << 20), Arc::new(AtomicUsize::new(0)));
    let begun = Arc::new(Notify::new());
    let first = tokio::spawn({
        let (cache, begun) = (cache.clone(), begun.clone());
        async move {
            let never = async {
                begun.notify_one();
                std::future::pending::<Result<CachedVector, String>>().await
            };
            cache.get_or_compute(key("a"), never).await
        }
    });
    begun.notified().await;
    let second = tokio::spawn({
        let (cache, count) = (cache.clone(), count.clone());
        async move { cache.get_or_compute(key("a"), computed(&count)).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(count.load(Ordering::SeqCst), 0, "the second waits for the first");
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), value());
}

/// A tier that keeps everything and counts.
#[derive(Default)]
struct Shelf {
    values: Mutex<HashMap<CacheKey, CachedVector>>,
    puts: AtomicUsize,
}

impl Tier for Arc<Shelf> {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn get(&self, key: CacheKey) -> BoxFuture<'_, Option<CachedVector>> {
        ready(self.values.lock().unwrap().get(&key).cloned()).boxed()
    }

    fn put(&self, key: CacheKey, value: CachedVector) -> BoxFuture<'_, ()> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.values.lock().unwrap().insert(key, value);
        ready(()).boxed()
    }
}

#[tokio::test]
async fn what_is_computed_fills_all_tiers_and_what_is_found_the_nearer_ones() {
    let (near, far) = (Arc::new(Shelf::default()), Arc::new(Shelf::default()));
    let replica = || VectorCache {
        further: Arc::new([Box::new(near.clone()) as Box<dyn Tier>, Box::new(far.clone())]),
        ..cache(1 << 20)
    };
    let puts = || [&near, &far].map(|shelf| shelf.puts.load(Ordering::SeqCst));
    let (first, count) = (replica(), AtomicUsize::new(0));
    first.get_or_compute(key("a"), computed(&count)).await.unwrap();
    assert_eq!(puts(), [1, 1]);

    near.values.lock().unwrap().clear();
    let second = replica();
    let lookups = (0..40).map(|_| second.get_or_compute(key("a"), computed(&count)));
    assert!(join_all(lookups).await.into_iter().all(|found| found.unwrap() == value()));
    assert_eq!(puts(), [2, 1], "only the tier before the one that had it");
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let hits = |tier| second.metrics.cache_hits.with_label_values(&[tier]).get();
    assert_eq!((hits("redis"), hits("memory"), second.metrics.cache_misses.get()), (1, 39, 0));
    assert_eq!(second.peek(&key("a")).await, Some(value()));
}
