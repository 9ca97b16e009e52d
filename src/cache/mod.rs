//! Vectors by content: a map weighed in bytes whose entries expire, and single flight: inputs that are equal
//! and in flight at once are computed once.

mod key;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

pub use key::CacheKey;

use crate::config::CacheConfig;
use crate::domain::Embedding;
use crate::telemetry::Metrics;

/// What an entry costs beside its vector and its key: moka's nodes and counters, roughly.
const OVERHEAD_BYTES: usize = 200;

/// A vector, and what its input counts for in [`crate::domain::Usage`].
#[derive(Debug, Clone, PartialEq)]
pub struct CachedVector {
    /// The vector.
    pub embedding: Embedding,
    /// Tokens of a text, after truncation; 0 for a picture.
    pub text_tokens: u32,
    /// Whether a text lost its end.
    pub truncated: bool,
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct VectorCache {
    map: Cache<CacheKey, CachedVector>,
    is_storing: bool,
    metrics: Arc<Metrics>,
}

/// Why a lookup has no vector.
#[derive(Debug)]
pub struct LookupError<E> {
    /// What the computation failed with.
    pub error: Arc<E>,
    /// Whether another caller's computation failed, to which this one had been joined.
    pub was_joined: bool,
}

impl VectorCache {
    /// An empty cache. With `max_bytes` 0 nothing is stored, but equal inputs in flight are still joined.
    pub fn new(config: &CacheConfig, metrics: Arc<Metrics>) -> Self {
        let gauge = metrics.cache_bytes.clone();
        let map = Cache::builder()
            .max_capacity(config.max_bytes)
            .weigher(|_, value| weight(value))
            .time_to_live(Duration::from_secs(config.ttl_s))
            // Counted here rather than asked of moka, whose own sum lags behind its maintenance.
            .eviction_listener(move |_, value, _| gauge.sub(i64::from(weight(&value))))
            .build();
        Self { map, is_storing: config.max_bytes > 0, metrics }
    }

    /// The vector of `key`, if it is stored. Neither waits nor counts.
    pub async fn peek(&self, key: &CacheKey) -> Option<CachedVector> {
        self.map.get(key).await
    }

    /// The vector of `key`: stored, or from an equal computation in flight, or from `compute`.
    ///
    /// # Errors
    /// What `compute` failed with, here or in the caller that this one was joined to. Errors are not stored.
    ///
    /// # Cancel safety
    /// When the caller that computes is dropped, one of those joined to it computes in its place.
    pub async fn get_or_compute<E: Send + Sync + 'static>(
        &self,
        key: CacheKey,
        compute: impl Future<Output = Result<CachedVector, E>>,
    ) -> Result<CachedVector, LookupError<E>> {
        let mut was_computed = false;
        let result = self
            .map
            .try_get_with(key, async {
                was_computed = true;
                self.metrics.cache_misses.inc();
                let value = compute.await?;
                if self.is_storing {
                    self.metrics.cache_bytes.add(i64::from(weight(&value)));
                }
                Ok(value)
            })
            .await;
        if !was_computed {
            self.metrics.cache_hits.inc();
        }
        result.map_err(|error| LookupError { error, was_joined: !was_computed })
    }
}

fn weight(value: &CachedVector) -> u32 {
    let bytes = size_of_val(value.embedding.as_slice()) + CacheKey::BYTES + OVERHEAD_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    fn cache(max_bytes: u64) -> VectorCache {
        VectorCache::new(&CacheConfig { max_bytes, ttl_s: 60 }, Metrics::new())
    }

    fn key(name: &str) -> CacheKey {
        CacheKey::text("model", name)
    }

    fn value() -> CachedVector {
        let embedding = Embedding::normalized(vec![3.0, 4.0]).unwrap();
        CachedVector { embedding, text_tokens: 3, truncated: false }
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
            assert_eq!(cache.metrics.cache_hits.get(), 41 - later as u64);
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

    #[tokio::test]
    async fn the_gauge_follows_what_is_held() {
        let room_for_ten = u64::from(weight(&value())) * 10;
        let cache = cache(room_for_ten);
        let count = AtomicUsize::new(0);
        for i in 0..100 {
            cache.get_or_compute(key(&i.to_string()), computed(&count)).await.unwrap();
        }
        cache.map.run_pending_tasks().await;
        let held = cache.metrics.cache_bytes.get();
        assert_eq!(held, cache.map.weighted_size() as i64);
        assert!(held > 0 && held <= room_for_ten as i64, "{held}");
    }
}
