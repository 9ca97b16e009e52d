//! The listener.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where and how requests come in.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Bodies held in memory at once, in bytes, over all connections.
    pub max_inflight_body_bytes: usize,
    /// Threads of the HTTP edge; 0 means one per core.
    pub workers: usize,
    /// Connections waiting to be accepted.
    pub backlog: u32,
    /// Seconds that a stop may take.
    pub shutdown_timeout_s: u64,
}
