//! The weights of a checkpoint: where every tensor lies, and the tensors themselves on a device.
//!
//! safetensors and PyTorch's own format, in one file or in shards, all become one [`Index`]: tensor name to
//! number format, shape, strides and place in a mapped file. It is built without libtorch; [`Weights`] makes
//! tensors of it. No format runs code: see [`pickle`].

mod index;
pub mod pickle;
mod safetensors;
mod shards;
#[cfg(feature = "torch")]
mod tensors;
#[cfg(test)]
mod tests;
mod torch_zip;

pub use index::{Format, Found, Index, Layout, Layouts};
#[cfg(feature = "torch")]
pub use tensors::Weights;

/// A name out of a file, for messages: at most 80 characters of it, control characters escaped.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(80).collect();
    let dots = if short.len() < name.len() { "..." } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}
