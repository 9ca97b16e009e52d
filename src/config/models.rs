//! Several models in one process.

use serde::{Deserialize, Serialize};

use super::{BatchConfig, Config, CoreList, DeviceChoice, DtypeChoice, ModelConfig, ModelSource};
use crate::domain::Pooling;

/// One of several models: what it says for itself. The rest is as in `[model]` and `[batch]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelEntry {
    /// As [`ModelConfig::name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// As [`ModelConfig::source`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<ModelSource>,
    /// As [`ModelConfig::image`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ModelSource>,
    /// As [`ModelConfig::text`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<ModelSource>,
    /// As [`ModelConfig::pooling`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// As [`ModelConfig::device`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
    /// As [`ModelConfig::dtype`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DtypeChoice>,
    /// As [`ModelConfig::threads`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// As [`ModelConfig::replicas`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<usize>,
    /// As [`ModelConfig::cores`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<CoreList>,
    /// Its queue and batches.
    pub batch: BatchEntry,
}

/// What one of several models says of its batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchEntry {
    /// As [`BatchConfig::max_batch_size`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<usize>,
    /// As [`BatchConfig::max_batch_tokens`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_tokens: Option<usize>,
    /// As [`BatchConfig::max_bulk_batch_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bulk_batch_ms: Option<u64>,
    /// As [`BatchConfig::max_queue_delay_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue_delay_ms: Option<u64>,
    /// As [`BatchConfig::max_queue_items`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue_items: Option<usize>,
    /// As [`BatchConfig::deadline_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// A model to be served, every setting known.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedModel {
    /// Which model, where, how.
    pub model: ModelConfig,
    /// Its queue and batches.
    pub batch: BatchConfig,
}

impl Config {
    /// The models to be served, at least one, the default first.
    pub fn served(&self) -> Vec<ServedModel> {
        match self.models.as_slice() {
            [] => vec![ServedModel { model: self.model.clone(), batch: self.batch.clone() }],
            entries => entries.iter().map(|entry| entry.over(&self.model, &self.batch)).collect(),
        }
    }
}

impl ModelEntry {
    fn over(&self, model: &ModelConfig, batch: &BatchConfig) -> ServedModel {
        let BatchEntry { max_batch_size, max_batch_tokens, .. } = self.batch;
        let BatchEntry { max_bulk_batch_ms, max_queue_delay_ms, max_queue_items, deadline_ms, .. } =
            self.batch;
        ServedModel {
            model: ModelConfig {
                name: self.name.clone(),
                source: self.source.clone().unwrap_or_else(|| model.source.clone()),
                image: self.image.clone(),
                text: self.text.clone(),
                pooling: self.pooling.or(model.pooling),
                device: self.device.unwrap_or(model.device),
                dtype: self.dtype.unwrap_or(model.dtype),
                threads: self.threads.unwrap_or(model.threads),
                replicas: self.replicas.unwrap_or(model.replicas),
                cores: self.cores.clone().unwrap_or_else(|| model.cores.clone()),
            },
            batch: BatchConfig {
                max_batch_size: max_batch_size.unwrap_or(batch.max_batch_size),
                max_batch_tokens: max_batch_tokens.unwrap_or(batch.max_batch_tokens),
                max_bulk_batch_ms: max_bulk_batch_ms.unwrap_or(batch.max_bulk_batch_ms),
                max_queue_delay_ms: max_queue_delay_ms.unwrap_or(batch.max_queue_delay_ms),
                max_queue_items: max_queue_items.unwrap_or(batch.max_queue_items),
                deadline_ms: deadline_ms.unwrap_or(batch.deadline_ms),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_TOML;

    fn config(more: &str) -> Config {
        toml::from_str::<toml::Table>(DEFAULT_TOML)
            .map(|mut defaults| {
                defaults.extend(toml::from_str::<toml::Table>(more).unwrap());
                defaults.try_into().unwrap()
            })
            .unwrap()
    }

    #[test]
    fn without_entries_the_one_model_is_served() {
        let config = config("");
        let served = config.served();
        assert_eq!(served, [ServedModel { model: config.model, batch: config.batch }]);
    }

    #[test]
    fn an_entry_takes_from_the_sections_what_it_does_not_say() {
        let config = config(
            r#"
            [[models]]
            source = "/a"
            batch = {max_batch_size = 3}
            [[models]]
            name = "b"
            image = "/b/image"
            text = "/b/text"
            dtype = "bf16"
            device = "cuda:1"
            "#,
        );
        let served = config.served();
        assert_eq!(served.len(), 2);
        assert_eq!(served[0].model.source, ModelSource::Directory("/a".into()));
        assert_eq!(served[0].model.dtype, config.model.dtype);
        assert_eq!(served[0].batch, BatchConfig { max_batch_size: 3, ..config.batch.clone() });
        assert_eq!(served[1].model.dtype, DtypeChoice::Bf16);
        assert_eq!(served[1].model.device, DeviceChoice::Cuda(1));
        assert_eq!(served[1].batch, config.batch);
        assert!(matches!(served[1].model.parts(), crate::config::ModelParts::Pair { .. }));
    }
}
