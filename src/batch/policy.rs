//! How large a batch grows, and how long its first job waits for others.

use std::time::Duration;

use crate::config::BatchConfig;

/// The rules of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most inputs of one forward pass, at least 1.
    pub max_batch_size: usize,
    /// How long a bulk input may wait for others. Searches never wait.
    pub max_queue_delay: Duration,
}

impl From<&BatchConfig> for BatchPolicy {
    fn from(config: &BatchConfig) -> Self {
        Self {
            max_batch_size: config.max_batch_size.max(1),
            max_queue_delay: Duration::from_millis(config.max_queue_delay_ms),
        }
    }
}
