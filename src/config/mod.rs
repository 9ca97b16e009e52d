//! The settings: what they are, where they come from, what is refused.
//!
//! Layers, each over the one before: `config/default.toml` (compiled in), a file, `SIDELENS_*`
//! variables, flags. One file here per room; unknown keys are errors everywhere.

mod auth;
mod batch;
mod buckets;
mod cache;
mod cores;
mod credentials;
mod empty_is_none;
mod fetch;
mod host_pattern;
mod hub;
mod image;
mod keys;
mod load;
mod log;
mod model;
mod models;
mod server;
mod traces;
mod validate;

use serde::{Deserialize, Serialize};

pub use auth::{ApiKey, AuthConfig};
pub use batch::BatchConfig;
pub use buckets::{BucketConfig, ObjectService, ObjectUrl};
pub use cache::{CacheConfig, RedisConfig};
pub use cores::CoreList;
pub use credentials::holds_credentials;
pub use fetch::{FetchConfig, FetchHost};
pub use host_pattern::HostPattern;
pub use hub::{HubConfig, HubModel};
pub use image::ImageConfig;
pub use keys::{KeyFault, KeysError, NamedKey, read_keys};
pub use load::ConfigError;
pub use log::{LogConfig, LogFormat};
pub use model::{DeviceChoice, DtypeChoice, ModelConfig, ModelParts, ModelSource};
pub use models::{BatchEntry, ModelEntry, ServedModel};
pub use server::{MAX_WORKERS, ServerConfig};
pub use traces::TracesConfig;

use crate::domain::OnItemError;

/// The documented defaults, `config/default.toml`.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// Every setting.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What becomes of a request with a broken picture.
    pub on_item_error: OnItemError,
    /// Several models, instead of `model`.
    pub models: Vec<ModelEntry>,
    /// The listener.
    pub server: ServerConfig,
    /// Who may call.
    pub auth: AuthConfig,
    /// Which model, where, how.
    pub model: ModelConfig,
    /// Models by name.
    pub hub: HubConfig,
    /// Decoding.
    pub image: ImageConfig,
    /// Remote pictures.
    pub fetch: FetchConfig,
    /// Queue and batches.
    pub batch: BatchConfig,
    /// Vectors kept.
    pub cache: CacheConfig,
    /// Logs.
    pub log: LogConfig,
    /// Traces.
    pub traces: TracesConfig,
}
