//! The nearest tier: a map in memory, weighed in bytes, whose entries expire.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};
use moka::{future::Cache, policy::EvictionPolicy};
use prometheus::IntGauge;

use super::{CacheKey, CachedVector, Tier};
use crate::{config::CacheConfig, telemetry::Metrics};

/// What an entry costs beside its vector and its key: moka's nodes and counters, roughly.
const OVERHEAD_BYTES: usize = 200;

/// The map. Cheap to clone.
#[derive(Clone)]
pub(super) struct Memory {
    map: Cache<CacheKey, CachedVector>,
    max_bytes: u64,
    bytes: IntGauge,
}

impl Memory {
    /// An empty one. With `max_bytes` 0 nothing is stored.
    pub fn new(config: &CacheConfig, metrics: &Metrics) -> Self {
        let (bytes, gauge) = (metrics.cache_bytes.clone(), metrics.cache_bytes.clone());
        let mut map = Cache::builder()
            .max_capacity(config.max_bytes)
            // The newest are what a retry of a failed task asks for. moka's default refuses them where they have been
            // asked for no more often than the oldest, and all of an indexing run are asked for once.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, value| weight(value))
            .time_to_live(Duration::from_secs(config.ttl_s))
            // Counted here rather than asked of moka, whose own sum lags behind its maintenance.
            .eviction_listener(move |_, value, _| gauge.sub(i64::from(weight(&value))));
        if config.idle_s > 0 {
            map = map.time_to_idle(Duration::from_secs(config.idle_s));
        }
        Self { map: map.build(), max_bytes: config.max_bytes, bytes }
    }

    /// Everything that is stored, in no order. What comes or goes meanwhile may be missing.
    pub fn rows(&self) -> impl Iterator<Item = (CacheKey, CachedVector)> {
        self.map.iter().map(|(key, value)| (*key, value))
    }

    /// Bytes that it may hold.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Lets go of what is too much, which happens on the way else.
    #[cfg(test)]
    pub async fn settle(&self) {
        self.map.run_pending_tasks().await;
    }

    fn is_storing(&self) -> bool {
        self.max_bytes > 0
    }
}

impl Tier for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn get(&self, key: CacheKey) -> BoxFuture<'_, Option<CachedVector>> {
        async move { self.map.get(&key).await }.boxed()
    }

    fn put(&self, key: CacheKey, value: CachedVector) -> BoxFuture<'_, ()> {
        async move {
            if self.is_storing() {
                self.bytes.add(i64::from(weight(&value)));
                self.map.insert(key, value).await;
            }
        }
        .boxed()
    }
}

/// Bytes of an entry.
pub(super) fn weight(value: &CachedVector) -> u32 {
    let content = size_of_val(value.embedding.as_slice()) + value.source.bytes();
    let bytes = content + size_of::<(CacheKey, CachedVector)>() + OVERHEAD_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{
        tests::{config, key},
        tier::contract,
    };

    fn memory(max_bytes: u64) -> Memory {
        Memory::new(&config(max_bytes), &Metrics::new())
    }

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::check(&memory(1 << 20)).await;
    }

    #[tokio::test]
    async fn the_gauge_follows_what_is_held() {
        let value = contract::value(1);
        let room_for_ten = u64::from(weight(&value)) * 10;
        let memory = memory(room_for_ten);
        for i in 0..100 {
            memory.put(key(&i.to_string()), value.clone()).await;
            memory.put(key(&(i / 2).to_string()), value.clone()).await;
        }
        memory.settle().await;
        let held = memory.bytes.get();
        assert_eq!(held, memory.map.weighted_size() as i64);
        assert!(held > 0 && held <= room_for_ten as i64, "{held}");
    }

    #[tokio::test]
    async fn the_latest_are_kept_though_they_were_seen_once() {
        let value = contract::value(1);
        let memory = memory(u64::from(weight(&value)) * 100);
        for i in 0..1000 {
            // What nobody has, and asks for twice.
            for _ in 0..2 {
                assert_eq!(memory.get(key(&i.to_string())).await, None);
            }
            memory.put(key(&i.to_string()), value.clone()).await;
        }
        memory.settle().await;
        let mut n_found = 0;
        for i in 900..1000 {
            n_found += usize::from(memory.get(key(&i.to_string())).await.is_some());
        }
        assert_eq!(n_found, 100);
    }

    #[tokio::test]
    async fn without_room_nothing_is_held_or_counted() {
        let memory = memory(0);
        memory.put(key("a"), contract::value(1)).await;
        assert_eq!((memory.get(key("a")).await, memory.bytes.get()), (None, 0));
    }

    #[tokio::test]
    async fn what_nobody_asks_for_leaves_early() {
        let config = CacheConfig { idle_s: 1, ..config(1 << 20) };
        let memory = Memory::new(&config, &Metrics::new());
        memory.put(key("a"), contract::value(1)).await;
        memory.put(key("b"), contract::value(1)).await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(memory.get(key("a")).await.is_some(), "asked for again and again");
        }
        assert_eq!(memory.get(key("b")).await, None);
    }
}
