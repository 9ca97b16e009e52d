//! Structured logs by `tracing`.
