//! Where a model runs: the trait that hides the engine, the OS thread that owns one, and the engines.

mod backend;
mod device;
#[cfg(any(feature = "torch", test))]
mod fingerprint;
mod kernels;
mod memory;
mod schedule;
#[cfg(feature = "torch")]
mod search;
#[cfg(feature = "torch")]
mod staging;
#[doc(hidden)]
pub mod stub;
#[cfg(all(feature = "torch", target_os = "linux"))]
mod team;
mod thread;
#[cfg(feature = "torch")]
mod torch;

pub use backend::{Backend, BackendError};
#[cfg(all(feature = "torch", test))]
pub(crate) use device::cuda_devices;
pub use device::{DeviceFacts, cores, facts, open_cuda_for};
pub use kernels::bound_kernels;
pub use memory::Caps;
#[cfg(test)]
pub(crate) use memory::run_guarded;
pub use schedule::step_back;
pub use thread::{DeviceThread, Results};
#[cfg(feature = "torch")]
pub use torch::{LoadError, load};

use crate::domain::{Fingerprint, Lanes, ModelSpec, TokenizerFile};

/// A model that is ready to be given to the batch room.
pub struct LoadedModel {
    /// Its facts.
    pub spec: ModelSpec,
    /// Over weights, configuration, tokenizer, preprocessing, pooling and dtype.
    pub fingerprint: Fingerprint,
    /// For a model with a text tower.
    pub tokenizer: Option<TokenizerFile>,
    /// Where it runs: `cpu`, `cuda:0`, ..., or several: `cuda:0,cuda:1`.
    pub device: String,
    /// What it computes in: `fp32`, `bf16`, `fp16`.
    pub dtype: String,
    /// Whether it is the demo model, which only knows its own drawn pictures.
    pub is_demo: bool,
    /// The engines, at least one for each lane.
    pub engines: Vec<Engine>,
}

/// A backend that computes one batch at a time, beside the others of its model.
pub struct Engine {
    /// What computes.
    pub backend: Box<dyn Backend>,
    /// For whom.
    pub lanes: Lanes,
    /// Where: `cpu`, `cuda:0`, ...
    pub device: String,
}
