//! Vectors by content: memory in front, then single flight (inputs of a lane that are equal and in flight at once are
//! looked for once), then whatever tiers are further away, then the computation. What is found or computed fills every tier that is
//! nearer.
//!
//! [`CacheKey`] holds the model's fingerprint, so no tier can give a vector of another model. A vector leaves the house
//! and comes back as a table (`table/`), by hand or through [`VectorCache::save`] and [`VectorCache::warm`].

mod file;
mod flights;
mod key;
mod memory;
mod redis;
mod table;
mod tier;
mod value;

use std::{future::Future, sync::Arc, time::Duration};

use prometheus::IntCounter;
use tokio::time::timeout;
use tracing::{Instrument, Span};

pub use file::{CacheFileError, Served, Taken, check_file, check_table, remove_parts, replace_file};
pub use flights::GoOn;
pub use key::CacheKey;
pub use table::{FailedItem, TableError, TableItem, write_items};
pub use value::{CachedVector, Source};

use self::{
    flights::Flights,
    memory::Memory,
    tier::{Dropped, Tier},
};
use crate::{
    config::CacheConfig,
    domain::Lane,
    telemetry::{Metrics, traces::trace_span},
};

/// For what is still to be written at the end: Redis takes thousands of vectors in a second.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The tiers behind memory, nearest first.
fn further_tiers(
    config: &CacheConfig,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Box<dyn Tier>>, CacheSetupError> {
    let tiers = [
        redis::tier(&config.redis, metrics)?, //
    ];
    Ok(tiers.into_iter().flatten().collect())
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct VectorCache {
    memory: Memory,
    memory_hits: IntCounter,
    flights: Flights,
    further: Arc<[Box<dyn Tier>]>,
    metrics: Arc<Metrics>,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheSetupError {
    /// The address of the Redis server is none. It is not shown, as it may hold a password.
    #[error(
        "`cache.redis.url` cannot be used ({0}); write it as redis://:password@host:port/db, or rediss:// for TLS"
    )]
    RedisUrl(String),
    /// The file with the address cannot be used. What is in it is not shown.
    #[error(
        "`cache.redis.url_file` {file} cannot be used: {cause}; it holds one address, \
         redis://:password@host:port/db, or rediss:// for TLS"
    )]
    UrlFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The certificates cannot be used.
    #[error(
        "`cache.redis.ca_file` {file} cannot be used: {cause}; it needs certificates in PEM, and a rediss:// address"
    )]
    CaFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    /// Its name.
    pub key: CacheKey,
    /// The length of the model's vectors. One of another length in a tier behind memory is as good as none.
    pub dimensions: usize,
    /// Who waits for it.
    pub lane: Lane,
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
    /// An empty cache. With `max_bytes` 0 nothing is stored in memory, but equal inputs in flight are still joined.
    /// Needs a tokio runtime around it if there are further tiers.
    ///
    /// # Errors
    /// [`CacheSetupError`] when a setting cannot be used. A tier that is not there is none.
    pub fn new(config: &CacheConfig, metrics: Arc<Metrics>) -> Result<Self, CacheSetupError> {
        let memory = Memory::new(config, &metrics);
        let memory_hits = metrics.cache_hits.with_label_values(&[memory.name()]);
        let further = further_tiers(config, &metrics)?.into();
        Ok(Self { memory_hits, memory, flights: Flights::default(), further, metrics })
    }

    /// The vector of `key`, if memory has it. Neither waits nor counts.
    pub async fn peek(&self, key: &CacheKey) -> Option<CachedVector> {
        self.memory.get(*key).await
    }

    /// The vector of the key: stored, or from an equal computation in flight, or from `compute`. A search joins searches
    /// alone, as a computation of bulk waits behind the rest of bulk.
    ///
    /// # Errors
    /// What `compute` failed with, here or in the caller that this one was joined to. Errors are not stored.
    ///
    /// # Cancel safety
    /// A computation goes on for those who joined it, and is dropped with the last of them; one that was told to go on
    /// alone ends, and its vector is kept.
    pub async fn get_or_compute<E, F>(
        &self,
        lookup: Lookup,
        compute: impl FnOnce(GoOn) -> F,
    ) -> Result<CachedVector, LookupError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<CachedVector, E>> + Send + 'static,
    {
        if let Some(value) = self.memory.get(lookup.key).await {
            self.count_hit(&self.memory_hits, self.memory.name());
            return Ok(value);
        }
        let begin = |go_on| self.clone().find(lookup, compute(go_on)).in_current_span();
        let seat = self.flights.join_or_begin(lookup.key, lookup.lane, begin);
        let was_joined = seat.was_joined;
        let outcome = seat.outcome().await;
        if was_joined {
            self.count_hit(&self.memory_hits, self.memory.name());
        }
        outcome.map_err(|error| LookupError { error, was_joined })
    }

    /// The vector from any tier, or from `compute`. Every nearer tier keeps it then.
    async fn find<E>(
        self,
        lookup: Lookup,
        compute: impl Future<Output = Result<CachedVector, E>>,
    ) -> Result<CachedVector, E> {
        let Lookup { key, dimensions, .. } = lookup;
        // What landed between the look before and now.
        if let Some(value) = self.memory.get(key).await {
            self.count_hit(&self.memory_hits, self.memory.name());
            return Ok(value);
        }
        let value = match self.find_further(key, dimensions).await {
            Some(found) => found,
            None => {
                self.metrics.cache_misses.inc();
                Span::current().record("sidelens.cache", "miss");
                let computed = compute.await?;
                for tier in self.further.iter() {
                    tier.put(key, computed.clone()).await;
                }
                computed
            }
        };
        self.memory.put(key, value.clone()).await;
        Ok(value)
    }

    fn count_hit(&self, hits: &IntCounter, tier: &str) {
        hits.inc();
        Span::current().record("sidelens.cache", tier);
    }

    /// The vector of `key` from a tier behind memory. The tiers before that one keep it then.
    async fn find_further(&self, key: CacheKey, dimensions: usize) -> Option<CachedVector> {
        for (i, tier) in self.further.iter().enumerate() {
            let lookup = trace_span!("lookup", sidelens.tier = tier.name());
            if let Some(value) = tier.get(key).instrument(lookup).await {
                if value.embedding.dimensions() != dimensions {
                    let found = value.embedding.dimensions();
                    tracing::warn!(
                        tier = tier.name(),
                        found,
                        dimensions,
                        "a vector of the wrong length is passed over"
                    );
                    continue;
                }
                self.count_hit(&self.metrics.cache_hits.with_label_values(&[tier.name()]), tier.name());
                for nearer in &self.further[..i] {
                    nearer.put(key, value.clone()).await;
                }
                return Some(value);
            }
        }
        None
    }

    /// Keeps a vector in every tier, with patience: as long as it takes until there is room for it.
    async fn put(&self, key: CacheKey, value: CachedVector, dropped: &Dropped) {
        for tier in self.further.iter() {
            tier.put_patiently(key, value.clone(), dropped.clone()).await;
        }
        self.memory.put(key, value).await;
    }

    /// Waits until every tier has written what it was given, or given it up, as long as that takes.
    async fn settled(&self) {
        for tier in self.further.iter() {
            tier.flush().await;
        }
    }

    /// The same at the end of the process: for a few seconds at most.
    pub async fn flush(&self) {
        for tier in self.further.iter() {
            if timeout(FLUSH_TIMEOUT, tier.flush()).await.is_err() {
                tracing::warn!(tier = tier.name(), "some of the last vectors are not written");
            }
        }
    }
}

#[cfg(test)]
mod tests;
