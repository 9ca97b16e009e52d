//! One test binary: libtorch links once, and every test shares the service in `support`.

mod addresses;
mod admin;
mod batching;
mod cache;
mod check;
mod config;
mod connections;
#[cfg(feature = "torch")]
mod demo;
mod dialect;
#[cfg(feature = "torch")]
mod embed;
mod healthcheck;
mod hub;
mod keys;
mod layering;
mod limits;
mod load;
mod manifest;
mod meilisearch_e2e;
mod memory;
mod models;
#[cfg(feature = "torch")]
mod parity;
mod secrets;
#[cfg(feature = "torch")]
mod sentence;
mod settings;
mod shutdown;
mod support;
#[cfg(all(feature = "torch", target_os = "linux"))]
mod threads;
mod tls;
#[cfg(feature = "torch")]
mod traces;
#[cfg(target_os = "linux")]
mod workers;
