//! Layers shared by the families. Every forward pass returns libtorch's errors instead of panicking.

mod linear;
mod pixels;
mod transformer;

pub use linear::{LayerNorm, Linear};
pub use pixels::{Normalize, PatchEmbedding};
pub use transformer::{Activation, Block, BlockNames, BlockShape};
