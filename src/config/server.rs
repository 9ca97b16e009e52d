//! The listeners, and what one connection may take.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::empty_is_none;

/// Most of [`ServerConfig::workers`]: actix takes no more.
pub const MAX_WORKERS: usize = 512;

/// Where and how requests come in.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port; port 0 picks a free one.
    pub listen: SocketAddr,
    /// A second address, for `/metrics` and `/admin`, which the first one no longer answers then.
    #[serde(with = "empty_is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// Certificate chain in PEM; read again whenever it changes.
    #[serde(with = "empty_is_none")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of `tls_cert` in PEM.
    #[serde(with = "empty_is_none")]
    pub tls_key: Option<PathBuf>,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Bodies held in memory at once, in bytes, over all connections.
    pub max_inflight_body_bytes: usize,
    /// The same in bodies.
    pub max_inflight_bodies: usize,
    /// Threads of the HTTP edge; 0 means one per core.
    pub workers: usize,
    /// Open connections, over all workers.
    pub max_connections: usize,
    /// Milliseconds that a connection may wait for its caller.
    pub client_timeout_ms: u64,
    /// Bytes per second that a body must come with; 0 for any.
    pub min_body_bytes_per_s: usize,
    /// Seconds that a connection stays open for another request; 0 closes it after the first.
    pub keep_alive_s: u64,
    /// Connections waiting to be accepted.
    pub backlog: u32,
    /// Seconds that a stop may take.
    pub shutdown_timeout_s: u64,
}
