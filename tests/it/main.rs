//! One test binary: libtorch links once, and every test shares the service in `support`.

mod batching;
mod cache;
mod config;
#[cfg(feature = "torch")]
mod demo;
mod dialect;
mod hub;
mod layering;
mod limits;
mod load;
mod meilisearch_e2e;
mod memory;
mod models;
#[cfg(feature = "torch")]
mod parity;
#[cfg(feature = "torch")]
mod sentence;
mod settings;
mod shutdown;
mod support;
