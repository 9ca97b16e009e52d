//! Logs, metrics and traces. A leaf: any room may read it, it reads none but `domain` and `config`.

pub mod logging;
pub mod metrics;
pub mod traces;

pub use metrics::Metrics;
pub use traces::Traces;
