//! Layers shared by the families. Every forward pass returns libtorch's errors instead of panicking.

mod activation;
mod attention;
mod block;
mod linear;
mod mlp;
mod packed;
mod pixels;
mod pooling;
mod tokens;

pub use attention::{Attention, Mask, Queries};
pub use block::{At, AttentionNames, BlockForm, Encoder, Norms};
pub use linear::{LayerNorm, Linear};
pub use mlp::Mlp;
pub use pixels::{Normalize, NormalizeTable, PatchEmbedding, with_first_token};
pub use pooling::mean;
pub use tokens::{TokenBatch, TokenEmbedding};
