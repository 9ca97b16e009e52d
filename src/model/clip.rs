//! CLIP: an image and a text tower that share one space.
//!
//! Source: transformers 5.23.0, `models/clip/modeling_clip.py` and `configuration_clip.py`, whose defaults
//! stand for the keys that a checkpoint leaves out.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, ModelError, ModelFiles, preprocessor};
use crate::domain::{ModelSpec, TextSpec};

/// The family.
pub struct Clip;

impl Family for Clip {
    fn name(&self) -> &'static str {
        "clip"
    }

    fn matches(&self, config: &Value) -> bool {
        config["model_type"] == "clip"
    }

    fn spec(&self, files: &ModelFiles) -> Result<ModelSpec, ModelError> {
        let config = Config::read(files)?;
        let defaults = preprocessor::Defaults {
            shortest_edge: true,
            center_crop: true,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.261_302_6, 0.275_777_1],
        };
        Ok(ModelSpec {
            name: files.name(),
            family: self.name(),
            dimensions: config.projection_dim,
            image: Some(preprocessor::image_spec(files, config.vision.image_size, &defaults)?),
            text: Some(TextSpec { max_length: config.text.max_position_embeddings }),
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        weights: &super::Weights,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        Ok(Box::new(towers::Clip::load(&Config::read(files)?, weights)?))
    }
}

/// `config.json`. The `projection_dim` that counts is the one at the top level.
#[derive(Debug, Clone, PartialEq)]
struct Config {
    projection_dim: usize,
    text: TextConfig,
    vision: VisionConfig,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
struct TextConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    max_position_embeddings: usize,
    vocab_size: i64,
    hidden_act: String,
    layer_norm_eps: f64,
    eos_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            vocab_size: 49408,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    image_size: u32,
    patch_size: u32,
    num_channels: i64,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl Config {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let file = "config.json";
        let json: Value = files.json(file)?;
        let not_as_expected = |source| ModelError::Json { dir: files.place(), file: file.into(), source };
        let part = |key: &str, legacy: &str| {
            let mut part = json
                .get(key)
                .filter(|part| part.is_object())
                .cloned()
                .unwrap_or(Value::Object(Default::default()));
            // Old files repeat the sub-configuration under a second name, which wins in transformers.
            if let (Value::Object(part), Some(Value::Object(over))) = (&mut part, json.get(legacy)) {
                part.extend(over.clone());
            }
            part
        };
        let text =
            serde_json::from_value(part("text_config", "text_config_dict")).map_err(not_as_expected)?;
        let vision =
            serde_json::from_value(part("vision_config", "vision_config_dict")).map_err(not_as_expected)?;
        let projection_dim = match json.get("projection_dim") {
            Some(n) => serde_json::from_value(n.clone()).map_err(not_as_expected)?,
            None => 512,
        };
        let config = Self { projection_dim, text, vision };
        config.check()?;
        Ok(config)
    }

    /// Refuses what would fail, or divide by zero, only later.
    fn check(&self) -> Result<(), ModelError> {
        let refuse = |key, found: String, expected| {
            Err(ModelError::Unsupported { file: "config.json", key, found, expected })
        };
        let Self { projection_dim, text, vision } = self;
        if vision.num_channels != 3 {
            return refuse("num_channels", vision.num_channels.to_string(), "pictures have 3 channels");
        }
        if vision.patch_size == 0 || vision.image_size < vision.patch_size {
            return refuse(
                "patch_size",
                vision.patch_size.to_string(),
                "it must lie between 1 and image_size",
            );
        }
        if *projection_dim == 0 {
            return refuse("projection_dim", "0".into(), "vectors have at least one component");
        }
        if text.max_position_embeddings < 2 {
            let found = text.max_position_embeddings.to_string();
            return refuse("max_position_embeddings", found, "a text has at least its two special tokens");
        }
        for (hidden, heads) in
            [(text.hidden_size, text.num_attention_heads), (vision.hidden_size, vision.num_attention_heads)]
        {
            if heads <= 0 || hidden <= 0 || hidden % heads != 0 {
                let found = format!("{heads} (hidden_size {hidden})");
                return refuse("num_attention_heads", found, "it must divide hidden_size");
            }
        }
        for act in [&text.hidden_act, &vision.hidden_act] {
            if !["quick_gelu", "gelu"].contains(&act.as_str()) {
                return refuse("hidden_act", format!("`{act}`"), "CLIP has `quick_gelu` or `gelu`");
            }
        }
        Ok(())
    }
}

#[cfg(feature = "torch")]
mod towers {
    use tch::{TchError, Tensor};

    use super::{Config, ModelError, TextConfig};
    use crate::model::{
        Towers, Weights,
        layers::{Activation, Block, BlockNames, BlockShape, LayerNorm, Linear, PatchEmbedding},
    };

    const NAMES: BlockNames = BlockNames {
        norm1: "layer_norm1",
        norm2: "layer_norm2",
        attention: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
        mlp: ["mlp.fc1", "mlp.fc2"],
    };

    /// Both towers.
    pub struct Clip {
        vision: Vision,
        text: Text,
    }

    struct Vision {
        patches: PatchEmbedding,
        class_embedding: Tensor,
        positions: Tensor,
        pre_norm: LayerNorm,
        blocks: Vec<Block>,
        post_norm: LayerNorm,
        projection: Linear,
    }

    struct Text {
        tokens: Tensor,
        positions: Tensor,
        blocks: Vec<Block>,
        final_norm: LayerNorm,
        projection: Linear,
        eos_token_id: u32,
    }

    impl Clip {
        pub fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
            Ok(Self { vision: Vision::load(config, weights)?, text: Text::load(config, weights)? })
        }
    }

    impl Towers for Clip {
        fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            self.vision.forward(pixel_values)
        }

        fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
            self.text.forward(texts)
        }
    }

    fn blocks(
        weights: &Weights,
        tower: &str,
        n_layers: usize,
        shape: BlockShape,
    ) -> Result<Vec<Block>, ModelError> {
        let load = |n| Block::load(weights, &format!("{tower}.encoder.layers.{n}"), &NAMES, shape);
        (0..n_layers).map(load).collect()
    }

    fn activation(name: &str) -> Activation {
        match name {
            "gelu" => Activation::Gelu,
            // The configuration was checked: it is one of the two.
            _ => Activation::QuickGelu,
        }
    }

    impl Vision {
        fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
            let c = &config.vision;
            let (hidden, eps) = (c.hidden_size, c.layer_norm_eps);
            let shape = BlockShape {
                hidden,
                intermediate: c.intermediate_size,
                heads: c.num_attention_heads,
                eps,
                activation: activation(&c.hidden_act),
                causal: false,
            };
            let side = i64::from(c.image_size / c.patch_size);
            let embeddings = |part: &str| format!("vision_model.embeddings.{part}");
            Ok(Self {
                patches: PatchEmbedding::load(
                    weights,
                    &embeddings("patch_embedding"),
                    hidden,
                    i64::from(c.patch_size),
                )?,
                class_embedding: weights.tensor(&embeddings("class_embedding"), &[hidden])?,
                positions: weights
                    .tensor(&embeddings("position_embedding.weight"), &[side * side + 1, hidden])?,
                // Spelled so in every checkpoint.
                pre_norm: LayerNorm::load(weights, "vision_model.pre_layrnorm", hidden, eps)?,
                blocks: blocks(weights, "vision_model", c.num_hidden_layers, shape)?,
                post_norm: LayerNorm::load(weights, "vision_model.post_layernorm", hidden, eps)?,
                projection: Linear::load_without_bias(
                    weights,
                    "visual_projection",
                    hidden,
                    config.projection_dim as i64,
                )?,
            })
        }

        fn forward(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            let patches = self.patches.forward(pixel_values)?;
            let (batch, _, hidden) = patches.size3()?;
            let class = self.class_embedding.f_expand([batch, 1, hidden], false)?;
            let x = Tensor::f_cat(&[class, patches], 1)?.f_add(&self.positions)?;
            let mut x = self.pre_norm.forward(&x)?;
            for block in &self.blocks {
                x = block.forward(&x)?;
            }
            self.projection.forward(&self.post_norm.forward(&x.f_select(1, 0)?)?)
        }
    }

    impl Text {
        fn load(config: &Config, weights: &Weights) -> Result<Self, ModelError> {
            let c = &config.text;
            let (hidden, eps) = (c.hidden_size, c.layer_norm_eps);
            let shape = BlockShape {
                hidden,
                intermediate: c.intermediate_size,
                heads: c.num_attention_heads,
                eps,
                activation: activation(&c.hidden_act),
                causal: true,
            };
            let TextConfig { vocab_size, max_position_embeddings, eos_token_id, .. } = *c;
            let embeddings = |part: &str| format!("text_model.embeddings.{part}.weight");
            Ok(Self {
                tokens: weights.tensor(&embeddings("token_embedding"), &[vocab_size, hidden])?,
                positions: weights
                    .tensor(&embeddings("position_embedding"), &[max_position_embeddings as i64, hidden])?,
                blocks: blocks(weights, "text_model", c.num_hidden_layers, shape)?,
                final_norm: LayerNorm::load(weights, "text_model.final_layer_norm", hidden, eps)?,
                projection: Linear::load_without_bias(
                    weights,
                    "text_projection",
                    hidden,
                    config.projection_dim as i64,
                )?,
                eos_token_id,
            })
        }

        fn forward(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
            let device = self.tokens.device();
            let longest = texts.iter().map(|ids| ids.len()).max().unwrap_or(0);
            // Attention is causal, so what stands after the pooled token changes nothing: short texts need
            // neither the full context nor a padding mask, and any id serves as padding.
            let mut padded = Vec::with_capacity(texts.len() * longest);
            let mut pooled = Vec::with_capacity(texts.len());
            for (row, ids) in texts.iter().enumerate() {
                padded.extend(ids.iter().map(|&id| i64::from(id)));
                padded.resize((row + 1) * longest, 0);
                pooled.push((row * longest + pooled_position(ids, self.eos_token_id)) as i64);
            }
            let ids = Tensor::f_from_slice(&padded)?.f_to_device(device)?;
            let pooled = Tensor::f_from_slice(&pooled)?.f_to_device(device)?;

            let (batch, longest) = (texts.len() as i64, longest as i64);
            let hidden = self.tokens.size2()?.1;
            let x = self.tokens.f_index_select(0, &ids)?.f_view([batch, longest, hidden])?;
            let mut x = x.f_add(&self.positions.f_narrow(0, 0, longest)?)?;
            for block in &self.blocks {
                x = block.forward(&x)?;
            }
            // The norm works token by token, so it is enough to norm the pooled ones.
            let x = x.f_reshape([batch * longest, hidden])?.f_index_select(0, &pooled)?;
            self.projection.forward(&self.final_norm.forward(&x)?)
        }
    }

    /// The token that stands for the text: the first end-of-text, or where the configuration holds the
    /// wrong 2 of OpenAI's old files, the first of the largest ids.
    fn pooled_position(ids: &[u32], eos_token_id: u32) -> usize {
        let wanted = match eos_token_id {
            2 => ids.iter().copied().max().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|&id| id == wanted).unwrap_or(0)
    }

    #[cfg(test)]
    mod tests {
        use super::pooled_position;

        #[test]
        fn pools_at_the_end_of_text() {
            assert_eq!(pooled_position(&[8, 1, 9, 3, 9], 9), 2);
            assert_eq!(pooled_position(&[8, 1, 9, 3, 9], 2), 2, "the legacy rule takes the largest id");
            assert_eq!(pooled_position(&[8, 2, 1], 2), 0);
            assert_eq!(pooled_position(&[8, 1], 9), 0, "as argmax over nothing found does");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Config, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        Config::read(&ModelFiles::Directory(dir.path().into()))
    }

    #[test]
    fn sparse_files_mean_the_defaults_of_transformers() {
        let config = read(r#"{"model_type": "clip"}"#).unwrap();
        assert_eq!(
            config,
            Config { projection_dim: 512, text: TextConfig::default(), vision: VisionConfig::default() }
        );
    }

    #[test]
    fn the_legacy_sub_configuration_wins() {
        let config = read(
            r#"{"text_config": {"hidden_size": 64, "vocab_size": 10}, "text_config_dict": {"hidden_size": 32},
                "vision_config_dict": null, "projection_dim": 24}"#,
        );
        let config = config.unwrap();
        assert_eq!((config.text.hidden_size, config.text.vocab_size, config.projection_dim), (32, 10, 24));
    }

    #[test]
    fn impossible_values_are_named() {
        for (json, word) in [
            (r#"{"vision_config": {"num_attention_heads": 7}}"#, "num_attention_heads"),
            (r#"{"vision_config": {"num_channels": 1}}"#, "num_channels"),
            (r#"{"vision_config": {"patch_size": 0}}"#, "patch_size"),
            (r#"{"text_config": {"hidden_act": "swish"}}"#, "swish"),
            (r#"{"projection_dim": 0}"#, "projection_dim"),
            (r#"{"text_config": {"hidden_size": "wide"}}"#, "wide"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }
}
