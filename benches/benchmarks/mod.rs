//! One file an operation.

mod decode;

use criterion::Criterion;

/// All of them, in the order in which they run.
pub const ALL: &[fn(&mut Criterion)] = &[decode::bench];
