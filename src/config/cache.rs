//! Vectors kept.

use serde::{Deserialize, Serialize};

/// How many vectors are kept, and for how long.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Memory for cached vectors in bytes; 0 turns the cache off.
    pub max_bytes: u64,
    /// Seconds that a cached vector lives.
    pub ttl_s: u64,
}
