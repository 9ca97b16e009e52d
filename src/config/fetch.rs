//! Pictures that are elsewhere.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::BucketConfig;

/// How pictures are fetched, and from where.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FetchConfig {
    /// Milliseconds for one picture, from connecting to its last byte.
    pub timeout_ms: u64,
    /// Milliseconds to connect.
    pub connect_timeout_ms: u64,
    /// Largest picture in bytes, counted on the stream.
    pub max_bytes: usize,
    /// Redirects followed.
    pub max_redirects: usize,
    /// Private networks that pictures may come from.
    pub allow_networks: Vec<IpNet>,
    /// Downloads at once, over all requests.
    pub max_concurrent: usize,
    /// Downloads at once from one host.
    pub max_concurrent_per_host: usize,
    /// The directory that files are read below; empty for none.
    pub files_root: String,
    /// Buckets of object stores that pictures may come from.
    pub buckets: Vec<BucketConfig>,
}
