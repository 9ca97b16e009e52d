//! Where a model runs: the trait that hides the engine, the OS thread that owns one, and the engines.

mod backend;

pub use backend::{Backend, BackendError};
