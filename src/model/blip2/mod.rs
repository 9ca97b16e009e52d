//! BLIP-2: a vision transformer, and a Q-Former that asks it a fixed number of learned queries.
//!
//! There are two kinds of checkpoint. Those for retrieval have a head that puts pictures and texts into one
//! space. Those for generation hand the answers to a language model, which nothing here reads: their vector
//! is the mean answer, and there are no texts.
//!
//! Source: transformers 5.23.0, `models/blip_2/modeling_blip_2.py` and `configuration_blip_2.py`, whose
//! defaults stand for the keys that a checkpoint leaves out.

#[cfg(feature = "torch")]
mod qformer;
#[cfg(feature = "torch")]
mod towers;

use serde::Deserialize;
use serde_json::json;

use super::{
    Family, ModelError, ModelFiles,
    config::{ConfigJson, TransformerConfig, VisionConfig, unsupported},
    preprocessor,
    sentence::{self, Takes},
};
use crate::domain::{ModelSpec, Pooling, Poolings};

/// The family.
pub struct Blip2;

impl Family for Blip2 {
    fn name(&self) -> &'static str {
        "blip-2"
    }

    fn matches(&self, _: &ModelFiles, config: &ConfigJson) -> bool {
        config.model_type() == "blip-2"
    }

    fn poolings(&self) -> &'static [Pooling] {
        &[Pooling::ItcMean, Pooling::QformerMean]
    }

    fn spec(&self, files: &ModelFiles, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let config = Config::read(files)?;
        let pooling = config.pooling(pooling)?;
        // Only the head's space is shared with texts.
        let around = sentence::around_vectors(files, Takes::Answers)?;
        let text = (pooling == Pooling::ItcMean)
            .then(|| around.texts_of(files, config.qformer.max_position_embeddings))
            .transpose()?;
        Ok(ModelSpec {
            name: files.name(),
            family: self.name().into(),
            dimensions: match pooling {
                Pooling::ItcMean => config.image_text_hidden_size as usize,
                _ => config.qformer.blocks.hidden_size as usize,
            },
            image: Some(preprocessor::image_spec(
                files,
                Some(config.vision.base.image_size),
                &preprocessor::BLIP,
            )?),
            pooling: Poolings { image: Some(pooling), text: text.as_ref().map(|_| Pooling::Projection) },
            text,
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: super::Placement,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        let weights = super::Weights::open(files, on)?.rooted_at("query_tokens");
        let has_head = weights.has("vision_projection.weight") && weights.has("text_projection.weight");
        let needs_head = spec.text.is_some() || spec.pooling.image == Some(Pooling::ItcMean);
        if needs_head && !has_head {
            return Err(ModelError::NearMiss {
                model: files.name(),
                reason: "its config.json describes a BLIP-2 for retrieval, but its weights have no \
                         `vision_projection` and `text_projection`; set `pooling = \"qformer_mean\"` to serve \
                         its pictures alone",
            });
        }
        Ok(Box::new(towers::Blip2::load(&Config::read(files)?, spec, &weights)?))
    }
}

/// `config.json`.
#[derive(Debug, Clone, PartialEq)]
struct Config {
    /// Whether the checkpoint has the head that texts need.
    is_retrieval: bool,
    num_query_tokens: i64,
    /// Components in the space that pictures and texts share.
    image_text_hidden_size: i64,
    vision: Vision,
    qformer: QFormer,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Vision {
    #[serde(flatten)]
    base: VisionConfig,
    qkv_bias: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct QFormer {
    #[serde(flatten)]
    blocks: TransformerConfig,
    max_position_embeddings: usize,
    vocab_size: i64,
    /// Queries look at the picture in every layer whose number is a multiple of this.
    cross_attention_frequency: usize,
    /// Whether layers have a feed-forward for texts.
    #[serde(default, alias = "qformer_text_input")]
    use_qformer_text_input: bool,
}

impl Config {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Top {
            num_query_tokens: i64,
            image_text_hidden_size: i64,
        }
        let json = ConfigJson::read(files)?;
        let Top { num_query_tokens, image_text_hidden_size } =
            json.top(json!({"num_query_tokens": 32, "image_text_hidden_size": 256}))?;
        let vision = json!({
            "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": true,
        });
        let qformer = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "max_position_embeddings": 512, "vocab_size": 30522, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "cross_attention_frequency": 2,
        });
        let vision = json.part("vision_config", vision)?;
        let qformer: QFormer = json.part("qformer_config", qformer)?;
        // Files of either kind may hold `image_text_hidden_size`: it says nothing.
        let is_retrieval = json.is_architecture("Blip2ForImageTextRetrieval")
            || (json.get("architectures").is_null() && qformer.use_qformer_text_input);
        let config = Self { is_retrieval, num_query_tokens, image_text_hidden_size, vision, qformer };
        config.check()?;
        Ok(config)
    }

    /// Refuses what would fail, or divide by zero, only later.
    fn check(&self) -> Result<(), ModelError> {
        self.vision.base.check()?;
        self.qformer.blocks.check()?;
        let at_least = |key, found: i64, least: i64, expected| match found < least {
            true => Err(unsupported(key, found.to_string(), expected)),
            false => Ok(()),
        };
        let QFormer { cross_attention_frequency, max_position_embeddings, .. } = self.qformer;
        at_least("num_query_tokens", self.num_query_tokens, 1, "a picture is asked at least one query")?;
        let key = "image_text_hidden_size";
        at_least(key, self.image_text_hidden_size, 1, "vectors have at least one component")?;
        let key = "cross_attention_frequency";
        at_least(key, cross_attention_frequency as i64, 1, "it counts layers from one on")?;
        let key = "max_position_embeddings";
        at_least(key, max_position_embeddings as i64, 2, "a text has at least its two special tokens")
    }

    /// How the queries' states become one vector, for the setting `wanted`.
    fn pooling(&self, wanted: Option<Pooling>) -> Result<Pooling, ModelError> {
        match (wanted, self.is_retrieval) {
            (None | Some(Pooling::ItcMean), true) => Ok(Pooling::ItcMean),
            (Some(found @ Pooling::ItcMean), false) => Err(ModelError::Pooling {
                family: "blip-2 generation",
                found,
                known: &[Pooling::QformerMean],
            }),
            _ => Ok(Pooling::QformerMean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelSource, domain::TextSpec, model::config::Activation};

    const PREPROCESSOR: &str = r#"{"size": {"height": 224, "width": 224}, "resample": 3}"#;

    fn directory(config: &str) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        std::fs::write(dir.path().join("preprocessor_config.json"), PREPROCESSOR).unwrap();
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    fn read(config: &str) -> Result<Config, ModelError> {
        Config::read(&directory(config).1)
    }

    fn spec(config: &str, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        Blip2.spec(&directory(config).1, pooling)
    }

    #[test]
    fn sparse_files_mean_the_defaults_of_transformers() {
        let config = read(
            r#"{"model_type": "blip-2", "qformer_config": {"vocab_size": 30523}, "vision_config": null}"#,
        );
        let Config { num_query_tokens, image_text_hidden_size, vision, qformer, .. } = config.unwrap();
        assert_eq!((num_query_tokens, image_text_hidden_size), (32, 256));
        assert_eq!((vision.base.blocks.hidden_size, vision.base.n_patches()), (1408, 256));
        assert_eq!((vision.base.blocks.num_hidden_layers, vision.qkv_bias), (39, true));
        assert_eq!((vision.base.blocks.layer_norm_eps, qformer.blocks.layer_norm_eps), (1e-6, 1e-12));
        assert_eq!((qformer.vocab_size, qformer.cross_attention_frequency), (30523, 2));
        assert_eq!(qformer.blocks.hidden_act, Activation::Gelu);
    }

    #[test]
    fn retrieval_checkpoints_have_texts_and_the_head_s_space() {
        for config in [
            r#"{"architectures": ["Blip2ForImageTextRetrieval"]}"#,
            r#"{"qformer_config": {"use_qformer_text_input": true}}"#,
            r#"{"qformer_config": {"qformer_text_input": true}}"#,
        ] {
            let spec = spec(config, None).unwrap();
            assert_eq!((spec.dimensions, spec.text), (256, Some(TextSpec::new(512))), "{config}");
            let pooling = Poolings { image: Some(Pooling::ItcMean), text: Some(Pooling::Projection) };
            assert_eq!(spec.pooling, pooling, "{config}");
        }
    }

    #[test]
    fn generation_checkpoints_have_pictures_alone() {
        for config in [
            r#"{"architectures": ["Blip2ForConditionalGeneration"], "image_text_hidden_size": 256}"#,
            r#"{"architectures": ["Blip2Model"]}"#,
            r#"{"image_text_hidden_size": 256}"#,
        ] {
            let spec = spec(config, None).unwrap();
            assert_eq!((spec.dimensions, spec.text), (768, None), "{config}");
            assert_eq!(spec.pooling, Poolings { image: Some(Pooling::QformerMean), text: None }, "{config}");
        }
    }

    #[test]
    fn the_setting_may_leave_out_the_head_but_not_ask_for_one() {
        let retrieval = r#"{"architectures": ["Blip2ForImageTextRetrieval"]}"#;
        let generation = r#"{"architectures": ["Blip2ForConditionalGeneration"]}"#;
        let plain = spec(retrieval, Some(Pooling::QformerMean)).unwrap();
        assert_eq!((plain.dimensions, plain.text), (768, None));
        let message = spec(generation, Some(Pooling::ItcMean)).unwrap_err().to_string();
        assert!(message.contains("`itc_mean`") && message.contains("`qformer_mean`"), "{message}");
    }

    #[test]
    fn impossible_values_are_named() {
        for (json, word) in [
            (r#"{"vision_config": {"num_attention_heads": 7}}"#, "num_attention_heads"),
            (r#"{"qformer_config": {"num_attention_heads": 0}}"#, "num_attention_heads"),
            (r#"{"qformer_config": {"cross_attention_frequency": 0}}"#, "cross_attention_frequency"),
            (r#"{"qformer_config": {"max_position_embeddings": 1}}"#, "max_position_embeddings"),
            (r#"{"num_query_tokens": 0}"#, "num_query_tokens"),
            (r#"{"image_text_hidden_size": 0}"#, "image_text_hidden_size"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }
}
