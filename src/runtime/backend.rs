//! What the batch room asks of an engine.

use std::time::Duration;

use crate::domain::{Embedding, Prepared};

/// A loaded model as one engine computes it, beside others on the same device. Lives on an OS thread of its own.
pub trait Backend: Send {
    /// Called once, on the thread that will make every call of [`Self::embed`].
    fn enter_thread(&mut self) {}

    /// Sizes of batches, each 1 to `most`, that are worth a pass before the first request: those that are the first of
    /// their kind, as kernels are loaded and memory is laid out for them.
    fn warm_sizes(&self, most: usize) -> Vec<usize> {
        vec![1.min(most)]
    }

    /// One forward pass: one vector per input, in order.
    ///
    /// `batch` has at least one input, and no more than the settings allow, all of one modality that the model has.
    ///
    /// # Errors
    /// [`BackendError`]; no input of the batch has a vector then.
    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError>;

    /// How long the last pass waited for those of other models, where it shares a thread with them.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}

/// Why a batch has no vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// This batch failed; the next may not.
    #[error("inference failed: {0}")]
    Failed(String),
    /// The model gives no vector for an input of this batch: what it gives is not finite, or zero.
    #[error("the model gave no usable vector: {0}")]
    Unusable(String),
    /// The batch needs more memory than the device has left, with all that was only kept for speed given back; a
    /// smaller one may not.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device is gone (a sticky CUDA error): nothing will succeed on it again.
    #[error("device lost: {0}")]
    DeviceLost(String),
}
