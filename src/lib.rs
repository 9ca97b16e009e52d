//! Sidelens gives Meilisearch its own image and text vectors.
pub mod app;
pub mod batch;
pub mod cache;
pub mod cli;
pub mod config;
pub mod dialect;
pub mod domain;
pub mod embedder;
pub mod fetch;
pub mod http;
pub mod hub;
pub mod imaging;
pub mod model;
pub mod runtime;
pub mod shutdown;
pub mod telemetry;
pub mod text;
