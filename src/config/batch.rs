//! Queue and batches.

use serde::{Deserialize, Serialize};

/// How inputs are merged, and how long they may wait.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Most inputs of one forward pass; 0 means what fits the device.
    pub max_batch_size: usize,
    /// Most tokens of one forward pass of texts, padding included; 0 means what fits the device.
    pub max_batch_tokens: usize,
    /// Milliseconds that a batch of bulk may take where a search waits for its end; 0 for no limit.
    pub max_bulk_batch_ms: u64,
    /// Milliseconds that a bulk input may wait for others.
    pub max_queue_delay_ms: u64,
    /// Most inputs in the house.
    pub max_queue_items: usize,
    /// Milliseconds after which a request is answered 503.
    pub deadline_ms: u64,
}
