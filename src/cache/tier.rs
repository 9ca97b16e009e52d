//! What a place for vectors has to do, and the test that every one of them passes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{CacheKey, CachedVector};

/// Vectors that a tier was given and does not keep. Cheap to clone: all count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Dropped(Arc<AtomicU64>);

impl Dropped {
    /// One more.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A place where vectors are kept. Whatever goes wrong in it is a miss, found out in milliseconds: a cache may cost a
/// computation, never a request.
pub(super) trait Tier: Send + Sync {
    /// The value of the label `tier`, one of [`crate::telemetry::metrics::TIERS`].
    fn name(&self) -> &'static str;

    /// The vector of `key`, if it is there and whole.
    fn get(&self, key: CacheKey) -> BoxFuture<'_, Option<CachedVector>>;

    /// Keeps the vector from some later moment on, or not at all. Waits for nothing far away.
    fn put(&self, key: CacheKey, value: CachedVector) -> BoxFuture<'_, ()>;

    /// The same for who has many and can wait: as long as it takes until there is room. What is not kept in the end is
    /// counted as dropped, by the next [`Self::flush`] at the latest.
    fn put_patiently(&self, key: CacheKey, value: CachedVector, _dropped: Dropped) -> BoxFuture<'_, ()> {
        self.put(key, value)
    }

    /// Waits until what was put is kept, or given up.
    fn flush(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

#[cfg(test)]
pub(super) mod contract {
    use std::time::Duration;

    use super::*;
    use crate::{
        cache::Source,
        domain::{Embedding, Fingerprint},
    };

    pub fn value(seed: u8) -> CachedVector {
        let embedding = Embedding::normalized(vec![f32::from(seed), 1.0, -0.1]).unwrap();
        CachedVector::of_image(embedding, Source::Url("https://host/picture.jpg".into()))
    }

    /// What `key` holds once that is `expected`; whatever it holds after two seconds otherwise.
    async fn settled(tier: &dyn Tier, key: CacheKey, expected: &CachedVector) -> Option<CachedVector> {
        for _ in 0..400 {
            match tier.get(key).await {
                Some(found) if found == *expected => return Some(found),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        tier.get(key).await
    }

    /// The contract, for a tier that works.
    pub async fn check(tier: &dyn Tier) {
        let [model, other] = [&b"model"[..], b"other"].map(|name| Fingerprint::of(&[name]));
        let key = CacheKey::text(model, "a");
        assert!(crate::telemetry::metrics::TIERS.contains(&tier.name()));
        assert_eq!(tier.get(key).await, None);
        for value in [value(1), value(2)] {
            tier.put(key, value.clone()).await;
            assert_eq!(settled(tier, key, &value).await, Some(value), "kept, in place of what was there");
        }
        assert_eq!(tier.get(CacheKey::text(model, "b")).await, None);
        assert_eq!(
            tier.get(CacheKey::text(other, "a")).await,
            None,
            "a model never gets another one's vector"
        );

        let text = CachedVector::of_text(value(3).embedding, 77, true);
        let key = CacheKey::text(other, "a");
        tier.put(key, text.clone()).await;
        assert_eq!(settled(tier, key, &text).await, Some(text));
    }
}
