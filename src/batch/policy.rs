//! How large a batch grows, and how long its first job waits for others.

use std::time::Duration;

use crate::{config::BatchConfig, domain::Modality};

/// The rules of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most pictures of one forward pass, at least 1.
    pub max_pictures: usize,
    /// Most texts of one forward pass, at least 1.
    pub max_texts: usize,
    /// Most tokens of one forward pass of texts, padding included. A longer text goes alone.
    pub max_tokens: usize,
    /// How long a bulk batch may take on an engine that serves both lanes.
    pub max_bulk_batch: Option<Duration>,
    /// How long a bulk input may wait for others. Searches never wait.
    pub max_queue_delay: Duration,
}

/// What fits a kind of device.
struct Defaults {
    pictures: usize,
    texts: usize,
    tokens: usize,
}

/// On the CPU a larger batch computes hardly faster: the products are as fast from a few hundred rows on, a picture's
/// patches and a text's tokens.
const CPU: Defaults = Defaults { pictures: 8, texts: 64, tokens: 512 };
/// A GPU is not full before, and done in milliseconds.
const CUDA: Defaults = Defaults { pictures: 64, texts: 64, tokens: 16384 };

impl BatchPolicy {
    /// The rules that `config` asks for, for a model on `device` (`cpu`, `cuda:0`, ...).
    pub fn new(config: &BatchConfig, device: &str) -> Self {
        let defaults = if device == "cpu" { CPU } else { CUDA };
        let or = |set: usize, default: usize| if set == 0 { default } else { set };
        let max_bulk_batch = Duration::from_millis(config.max_bulk_batch_ms);
        Self {
            max_pictures: or(config.max_batch_size, defaults.pictures),
            max_texts: or(config.max_batch_size, defaults.texts),
            max_tokens: or(config.max_batch_tokens, defaults.tokens),
            max_bulk_batch: Some(max_bulk_batch).filter(|budget| !budget.is_zero()),
            max_queue_delay: Duration::from_millis(config.max_queue_delay_ms),
        }
    }

    /// Most inputs of one forward pass, at least 1.
    pub fn max_inputs(&self, modality: Modality) -> usize {
        match modality {
            Modality::Text => self.max_texts,
            Modality::Image => self.max_pictures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    #[test]
    fn the_size_fits_the_device_unless_it_is_set() {
        let size = |max_batch_size, device| {
            let Config { batch, .. } = toml::from_str(DEFAULT_TOML).unwrap();
            let policy = BatchPolicy::new(&BatchConfig { max_batch_size, ..batch }, device);
            (policy.max_pictures, policy.max_texts, policy.max_tokens)
        };
        assert_eq!([size(0, "cpu"), size(5, "cpu")], [(8, 64, 512), (5, 5, 512)]);
        assert_eq!([size(0, "cuda:0"), size(5, "cuda:0")], [(64, 64, 16384), (5, 5, 16384)]);
    }
}
