//! Vectors kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ApiKey, empty_is_none};

/// How many vectors are kept, where, and for how long.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Memory for cached vectors in bytes; 0 keeps none in memory.
    pub max_bytes: u64,
    /// Seconds that a cached vector lives in memory.
    pub ttl_s: u64,
    /// Seconds after which a vector that nobody asked for leaves memory; 0 for never.
    pub idle_s: u64,
    /// A Parquet file that is read at the start and written at the stop; empty for none.
    pub file: String,
    /// Bytes of vectors that the file holds at most, the newest ones.
    pub file_max_bytes: u64,
    /// A cache that replicas share.
    pub redis: RedisConfig,
}

/// A Redis server behind the memory of every replica.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// Its address, `redis://` or, with TLS, `rediss://`; empty for none. A secret, as it may hold a password.
    pub url: ApiKey,
    /// A file with that address, read at the start, instead of `url`.
    #[serde(with = "empty_is_none")]
    pub url_file: Option<PathBuf>,
    /// A PEM file with the certificates that sign the server's; empty for Mozilla's.
    pub ca_file: String,
    /// Seconds that a vector lives there.
    pub ttl_s: u64,
    /// Milliseconds that a lookup may take.
    pub timeout_ms: u64,
}

impl RedisConfig {
    /// Whether `text` begins as the address of a server.
    pub fn is_url(text: &str) -> bool {
        ["redis://", "rediss://"].iter().any(|scheme| text.starts_with(scheme))
    }
}
