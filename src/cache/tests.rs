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

fn lookup(name: &str, lane: Lane) -> Lookup {
    Lookup { key: key(name), dimensions: value().embedding.dimensions(), lane }
}

fn value() -> CachedVector {
    let embedding = Embedding::normalized(vec![3.0, 4.0]).unwrap();
    CachedVector { created_ms: 0, ..CachedVector::of_text(embedding, 3, false) }
}

/// Long enough for equal lookups to come. They look after the one that is under way, which a yield would end.
async fn in_flight() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn computed(count: Arc<AtomicUsize>) -> Result<CachedVector, String> {
    count.fetch_add(1, Ordering::SeqCst);
    in_flight().await;
    Ok(value())
}

#[tokio::test]
async fn equal_inputs_in_flight_are_computed_once() {
    for (max_bytes, later) in [(1 << 20, 1), (0, 2)] {
        let (cache, count) = (cache(max_bytes), Arc::new(AtomicUsize::new(0)));
        let lookups =
            (0..40).map(|_| cache.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())));
        assert!(join_all(lookups).await.into_iter().all(|found| found.unwrap() == value()));
        assert_eq!(count.load(Ordering::SeqCst), 1, "in flight, max_bytes {max_bytes}");
        cache.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())).await.unwrap();
        assert_eq!(count.load(Ordering::SeqCst), later, "afterwards, max_bytes {max_bytes}");
        assert_eq!(cache.metrics.cache_misses.get(), later as u64);
        assert_eq!(cache.memory_hits.get(), 41 - later as u64);
    }
}

#[tokio::test]
async fn errors_are_shared_in_flight_but_not_stored() {
    let cache = cache(1 << 20);
    let fail = || async {
        in_flight().await;
        Err("broken")
    };
    let lookups = (0..3).map(|_| cache.get_or_compute(lookup("a", Lane::Bulk), |_| fail()));
    let joined: Vec<bool> =
        join_all(lookups).await.into_iter().map(|found| found.unwrap_err().was_joined).collect();
    assert_eq!(joined, [false, true, true]);
    let count = Arc::new(AtomicUsize::new(0));
    cache.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_computation_goes_on_for_those_who_joined_and_ends_with_the_last() {
    let (cache, count) = (cache(1 << 20), Arc::new(AtomicUsize::new(0)));
    let (release, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let held = {
        let (count, release, released) = (count.clone(), release.clone(), OnDrop(released.clone()));
        async move {
            let _released = released;
            release.notified().await;
            computed(count).await
        }
    };
    let mut first = Box::pin(cache.get_or_compute(lookup("a", Lane::Bulk), |_| held));
    assert!((&mut first).now_or_never().is_none());
    let mut second = Box::pin(cache.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())));
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    release.notify_one();
    assert_eq!(second.await.unwrap(), value());
    assert_eq!(count.load(Ordering::SeqCst), 1);

    released.notified().await;
    let held = {
        let released = OnDrop(released.clone());
        async move {
            let _released = released;
            std::future::pending::<Result<CachedVector, String>>().await
        }
    };
    let mut last = Box::pin(cache.get_or_compute(lookup("b", Lane::Bulk), |_| held));
    assert!((&mut last).now_or_never().is_none());
    drop(last);
    assert!(released.notified().now_or_never().is_some(), "dropped at once");
    cache.get_or_compute(lookup("b", Lane::Bulk), |_| computed(count.clone())).await.unwrap();
}

#[tokio::test]
async fn a_computation_that_goes_on_alone_is_kept_and_joined() {
    let (cache, count) = (cache(1 << 20), Arc::new(AtomicUsize::new(0)));
    let mut first = Box::pin(cache.get_or_compute(lookup("a", Lane::Bulk), |go_on| {
        let computed = computed(count.clone());
        async move {
            go_on.alone();
            computed.await
        }
    }));
    assert!((&mut first).now_or_never().is_none());
    drop(first);
    cache.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1, "joined");
    assert_eq!(cache.peek(&key("a")).await, Some(value()));
}

/// Tells that it is dropped.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_search_does_not_wait_for_bulk_but_bulk_may_for_a_search() {
    let (cache, count) = (cache(1 << 20), Arc::new(AtomicUsize::new(0)));
    let never = std::future::pending::<Result<CachedVector, String>>;
    let mut bulk = Box::pin(cache.get_or_compute(lookup("a", Lane::Bulk), |_| never()));
    assert!((&mut bulk).now_or_never().is_none());
    let searches =
        (0..3).map(|_| cache.get_or_compute(lookup("a", Lane::Search), |_| computed(count.clone())));
    assert!(join_all(searches).await.into_iter().all(|found| found.unwrap() == value()));
    assert_eq!(count.load(Ordering::SeqCst), 1, "searches are joined");
    assert_eq!((cache.metrics.cache_misses.get(), cache.memory_hits.get()), (2, 2));

    let both = [Lane::Search, Lane::Bulk]
        .map(|lane| cache.get_or_compute(lookup("b", lane), |_| computed(count.clone())));
    assert!(join_all(both).await.into_iter().all(|found| found.unwrap() == value()));
    assert_eq!(count.load(Ordering::SeqCst), 2, "bulk joins a search");
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
    let (first, count) = (replica(), Arc::new(AtomicUsize::new(0)));
    first.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())).await.unwrap();
    assert_eq!(puts(), [1, 1]);

    near.values.lock().unwrap().clear();
    let second = replica();
    let lookups =
        (0..40).map(|_| second.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())));
    assert!(join_all(lookups).await.into_iter().all(|found| found.unwrap() == value()));
    assert_eq!(puts(), [2, 1], "only the tier before the one that had it");
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let hits = |tier| second.metrics.cache_hits.with_label_values(&[tier]).get();
    assert_eq!((hits("redis"), hits("memory"), second.metrics.cache_misses.get()), (1, 39, 0));
    assert_eq!(second.peek(&key("a")).await, Some(value()));
}

/// A tier that takes its time, and then keeps nothing.
#[derive(Default)]
struct Slow(Mutex<Vec<Dropped>>);

impl Tier for Slow {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn get(&self, _key: CacheKey) -> BoxFuture<'_, Option<CachedVector>> {
        ready(None).boxed()
    }

    fn put(&self, _key: CacheKey, _value: CachedVector) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn put_patiently(&self, _key: CacheKey, _value: CachedVector, dropped: Dropped) -> BoxFuture<'_, ()> {
        self.0.lock().unwrap().push(dropped);
        ready(()).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        async {
            tokio::time::sleep(3 * FLUSH_TIMEOUT).await;
            self.0.lock().unwrap().drain(..).for_each(|dropped| dropped.count());
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_ends_when_all_that_is_dropped_is_known() {
    let (from, mut table) = (cache(1 << 20), Vec::new());
    from.put(key("a"), value(), &Dropped::default()).await;
    from.export(&mut table).unwrap();
    let to = VectorCache { further: Arc::new([Box::<Slow>::default() as Box<dyn Tier>]), ..cache(1 << 20) };
    let served = [Served { fingerprint: key("a").fingerprint(), dimensions: 2 }];
    let importing = tokio::task::spawn_blocking(move || to.import(&table[..], &served));
    while !importing.is_finished() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let taken = importing.await.unwrap().unwrap();
    assert_eq!(taken, Taken { rows: 1, of_others: 0, dropped: 1 });
}

#[tokio::test]
async fn a_vector_of_the_wrong_length_is_computed_again() {
    let (far, count) = (Arc::new(Shelf::default()), Arc::new(AtomicUsize::new(0)));
    let cache = VectorCache { further: Arc::new([Box::new(far.clone()) as Box<dyn Tier>]), ..cache(1 << 20) };
    let short = CachedVector { embedding: Embedding::normalized(vec![1.0]).unwrap(), ..value() };
    far.put(key("a"), short).await;
    let found = cache.get_or_compute(lookup("a", Lane::Bulk), |_| computed(count.clone())).await;
    assert_eq!((found.unwrap(), count.load(Ordering::SeqCst)), (value(), 1));
    assert_eq!(far.get(key("a")).await, Some(value()), "and replaced");
    assert_eq!((cache.metrics.cache_misses.get(), cache.memory_hits.get()), (1, 0));
}
