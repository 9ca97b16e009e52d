//! `sidelens --version`: what it is built from, and what this machine computes with.

use crate::runtime;

/// Sidelens, then libtorch, the processor and CUDA, one a line.
pub(super) fn describe() -> String {
    format!("sidelens {}\n{}", env!("CARGO_PKG_VERSION"), runtime::facts())
}
