//! One file an operation.

mod cache;
mod decode;
mod dialect;
mod end_to_end;
#[cfg(feature = "torch")]
mod forward;
mod queue;

use criterion::Criterion;

/// All of them, in the order in which they run.
pub const ALL: &[fn(&mut Criterion)] = &[
    decode::bench,
    dialect::bench,
    cache::bench,
    queue::bench,
    end_to_end::bench,
    #[cfg(feature = "torch")]
    forward::bench,
];
