//! `sidelens --version`: what it is built from, and what this machine computes with.

/// Sidelens, then libtorch and the devices, one a line.
pub(super) fn describe() -> String {
    format!("sidelens {}\n{}", env!("CARGO_PKG_VERSION"), facts())
}

#[cfg(feature = "torch")]
fn facts() -> String {
    crate::runtime::facts().to_string()
}

#[cfg(not(feature = "torch"))]
fn facts() -> String {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!("libtorch: none (built without the feature `torch`)\ncores: {cores}")
}
