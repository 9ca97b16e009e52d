//! Logs and metrics. A leaf: any room may read it, it reads none but `domain` and `config`.

pub mod logging;
pub mod metrics;

pub use metrics::Metrics;
