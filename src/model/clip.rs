//! CLIP: an image and a text tower that share one space.
//!
//! Source: transformers 5.23.0, `models/clip/modeling_clip.py` and `configuration_clip.py`, whose defaults
//! stand for the keys that a checkpoint leaves out.

use serde::Deserialize;
use serde_json::json;

use super::{
    Family, ModelError, ModelFiles,
    config::{ConfigJson, TransformerConfig, VisionConfig, unsupported},
    preprocessor,
    sentence::{self, Takes},
    weights::Index,
};
use crate::domain::{ModelSpec, Pooling, Poolings};

/// The family.
pub struct Clip;

impl Family for Clip {
    fn name(&self) -> &'static str {
        "clip"
    }

    fn matches(&self, _: &ModelFiles, config: &ConfigJson) -> bool {
        ["clip", "clip_vision_model", "clip_text_model"].contains(&config.model_type())
    }

    fn spec(&self, files: &ModelFiles, _: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let Config { projection_dim, text, vision } = Config::read(files)?;
        let around = sentence::around_vectors(files, Takes::Vectors)?;
        let anchors =
            ["text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding"];
        let [has_text, has_vision] = Index::towers(files, anchors);
        let (text, vision) = (text.filter(|_| has_text), vision.filter(|_| has_vision));
        Ok(ModelSpec {
            name: files.name(),
            family: self.name().into(),
            dimensions: projection_dim,
            pooling: Poolings {
                image: vision.as_ref().map(|_| Pooling::Projection),
                text: text.as_ref().map(|_| Pooling::Projection),
            },
            image: vision
                .map(|vision| preprocessor::image_spec(files, Some(vision.image_size), &preprocessor::CLIP))
                .transpose()?,
            text: text.map(|text| around.texts_of(files, text.max_position_embeddings)).transpose()?,
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: super::Placement,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        Ok(Box::new(towers::Clip::load(&Config::read(files)?, spec, &super::Weights::open(files, on)?)?))
    }
}

/// `config.json`. The `projection_dim` that counts is the one at the top level.
#[derive(Debug, Clone, PartialEq)]
struct Config {
    projection_dim: usize,
    text: Option<TextConfig>,
    vision: Option<VisionConfig>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct TextConfig {
    #[serde(flatten)]
    blocks: TransformerConfig,
    max_position_embeddings: usize,
    vocab_size: i64,
    eos_token_id: u32,
}

impl Config {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Top {
            projection_dim: usize,
        }
        let json = ConfigJson::read(files)?.with_old_parts();
        // EVA-CLIP has this `model_type` too, and code of its own.
        if let Some(other) = json.architectures().find(|name| !name.starts_with("CLIP")) {
            let expected = "Sidelens has CLIP's own; export others as TorchScript with a sidelens.toml";
            return Err(unsupported("architectures", format!("`{other}`"), expected));
        }
        let Top { projection_dim } = json.top(json!({"projection_dim": 512}))?;
        let text = json!({
            "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
            "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5, "eos_token_id": 49407,
        });
        let vision = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        });
        let (text, vision) = json.towers("clip", text, vision)?;
        let config = Self { projection_dim, text, vision };
        config.check()?;
        Ok(config)
    }

    /// Refuses what would fail, or divide by zero, only later.
    fn check(&self) -> Result<(), ModelError> {
        if self.projection_dim == 0 {
            return Err(unsupported("projection_dim", "0".into(), "vectors have at least one component"));
        }
        if let Some(vision) = &self.vision {
            vision.check()?;
        }
        if let Some(text) = &self.text {
            text.blocks.check()?;
            if text.max_position_embeddings < 2 {
                let found = text.max_position_embeddings.to_string();
                let expected = "a text has at least its two special tokens";
                return Err(unsupported("max_position_embeddings", found, expected));
            }
        }
        Ok(())
    }
}

#[cfg(feature = "torch")]
mod towers {
    use tch::{TchError, Tensor};

    use super::{Config, ModelError, TextConfig, VisionConfig};
    use crate::{
        domain::ModelSpec,
        model::{
            Towers, Weights,
            layers::{
                At, BlockForm, Encoder, LayerNorm, Linear, Mask, PatchEmbedding, TokenBatch, TokenEmbedding,
                with_first_token,
            },
            missing_tower,
        },
    };

    /// Both towers, or the one that is wanted.
    pub struct Clip {
        vision: Option<Vision>,
        text: Option<Text>,
    }

    struct Vision {
        patches: PatchEmbedding,
        class_embedding: Tensor,
        positions: Tensor,
        pre_norm: LayerNorm,
        encoder: Encoder,
        post_norm: LayerNorm,
        projection: Linear,
    }

    struct Text {
        embedding: TokenEmbedding,
        encoder: Encoder,
        final_norm: LayerNorm,
        projection: Linear,
        eos_token_id: u32,
    }

    impl Clip {
        pub fn load(config: &Config, spec: &ModelSpec, weights: &Weights) -> Result<Self, ModelError> {
            let dimensions = config.projection_dim as i64;
            let vision = config.vision.as_ref().filter(|_| spec.image.is_some());
            let text = config.text.as_ref().filter(|_| spec.text.is_some());
            Ok(Self {
                vision: vision.map(|config| Vision::load(config, dimensions, weights)).transpose()?,
                text: text.map(|config| Text::load(config, dimensions, weights)).transpose()?,
            })
        }
    }

    impl Towers for Clip {
        fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            self.vision.as_ref().ok_or_else(missing_tower)?.forward(pixel_values)
        }

        fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
            self.text.as_ref().ok_or_else(missing_tower)?.forward(texts)
        }
    }

    impl Vision {
        fn load(config: &VisionConfig, dimensions: i64, weights: &Weights) -> Result<Self, ModelError> {
            let weights = weights.rooted_at("vision_model.embeddings.class_embedding");
            let (hidden, eps) = (config.blocks.hidden_size, config.blocks.layer_norm_eps);
            let embeddings = |part: &str| format!("vision_model.embeddings.{part}");
            let patch = i64::from(config.patch_size);
            Ok(Self {
                patches: PatchEmbedding::load(
                    &weights,
                    &embeddings("patch_embedding"),
                    hidden,
                    patch,
                    false,
                )?,
                class_embedding: weights.tensor(&embeddings("class_embedding"), &[hidden])?,
                positions: weights
                    .tensor(&embeddings("position_embedding.weight"), &[config.n_patches() + 1, hidden])?,
                // Spelled so in every checkpoint.
                pre_norm: LayerNorm::load(&weights, "vision_model.pre_layrnorm", hidden, eps)?,
                encoder: Encoder::load(
                    &weights,
                    "vision_model.encoder.layers",
                    &BlockForm::CLIP,
                    &config.blocks,
                )?,
                post_norm: LayerNorm::load(&weights, "vision_model.post_layernorm", hidden, eps)?,
                projection: Linear::load_without_bias(&weights, "visual_projection", hidden, dimensions)?,
            })
        }

        fn forward(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            let x = with_first_token(&self.class_embedding, self.patches.forward(pixel_values)?)?;
            let x = self.pre_norm.forward(&x.f_add(&self.positions)?)?;
            let x = self.encoder.forward_at(x, Mask::None, At::First)?;
            self.projection.forward(&self.post_norm.forward(&x)?)
        }
    }

    impl Text {
        fn load(config: &TextConfig, dimensions: i64, weights: &Weights) -> Result<Self, ModelError> {
            let weights = weights.rooted_at("text_model.embeddings.token_embedding.weight");
            let (hidden, eps) = (config.blocks.hidden_size, config.blocks.layer_norm_eps);
            Ok(Self {
                embedding: TokenEmbedding::load(
                    &weights,
                    [
                        "text_model.embeddings.token_embedding.weight",
                        "text_model.embeddings.position_embedding.weight",
                    ],
                    config.vocab_size,
                    config.max_position_embeddings as i64,
                    hidden,
                )?,
                encoder: Encoder::load(
                    &weights,
                    "text_model.encoder.layers",
                    &BlockForm::CLIP,
                    &config.blocks,
                )?,
                final_norm: LayerNorm::load(&weights, "text_model.final_layer_norm", hidden, eps)?,
                projection: Linear::load_without_bias(&weights, "text_projection", hidden, dimensions)?,
                eos_token_id: config.eos_token_id,
            })
        }

        fn forward(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
            // Attention is causal, so what stands after the pooled token changes nothing: short texts need
            // neither the full context nor a padding mask, and any id serves as padding.
            let device = self.embedding.device();
            let batch = TokenBatch::new(texts, 0, device)?;
            let pooled = texts.iter().map(|ids| pooled_position(ids, self.eos_token_id) as i64);
            let pooled = Tensor::f_from_slice(&pooled.collect::<Vec<_>>())?.f_to_device(device)?;
            let x = self.embedding.forward(&batch)?;
            let x = self.encoder.forward_at(x, Mask::Causal, At::Positions(&pooled))?;
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
    use crate::{config::ModelSource, model::config::Activation};

    fn read(json: &str) -> Result<Config, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        Config::read(&ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap())
    }

    #[test]
    fn sparse_files_mean_the_defaults_of_transformers() {
        let config = read(r#"{"model_type": "clip"}"#).unwrap();
        let (text, vision) = (config.text.unwrap(), config.vision.unwrap());
        assert_eq!((config.projection_dim, text.vocab_size, text.eos_token_id), (512, 49408, 49407));
        assert_eq!((text.blocks.num_attention_heads, text.max_position_embeddings), (8, 77));
        assert_eq!((vision.blocks.hidden_size, vision.n_patches()), (768, 49));
        assert_eq!(vision.blocks.hidden_act, Activation::QuickGelu);
    }

    #[test]
    fn an_old_sub_configuration_counts_alone() {
        let config = read(
            r#"{"text_config": {"hidden_size": 64, "vocab_size": 10}, "text_config_dict": {"hidden_size": 32},
                "vision_config_dict": null, "projection_dim": 24}"#,
        );
        let config = config.unwrap();
        let text = config.text.unwrap();
        assert_eq!((text.blocks.hidden_size, text.vocab_size, config.projection_dim), (32, 49408, 24));
    }

    #[test]
    fn a_tower_saved_alone_is_one_tower() {
        let vision = read(r#"{"model_type": "clip_vision_model", "hidden_size": 36, "projection_dim": 9}"#);
        let vision = vision.unwrap();
        assert!(vision.text.is_none() && vision.projection_dim == 9);
        for class in
            ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPTextModelWithProjection"]
        {
            assert!(read(&format!(r#"{{"architectures": ["{class}"]}}"#)).is_ok());
        }
        assert_eq!(vision.vision.unwrap().blocks.hidden_size, 36);
        assert!(read(r#"{"model_type": "clip_text_model"}"#).unwrap().vision.is_none());
    }

    #[test]
    fn weights_of_one_tower_are_one_tower() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("config.json", br#"{"model_type": "clip"}"#);
        write("preprocessor_config.json", br#"{"size": 224, "crop_size": 224}"#);
        let of = |tensors: &[&str]| {
            let data = [0; 4];
            let view = || safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &data);
            let tensors = tensors.iter().map(|name| (*name, view().unwrap()));
            write("model.safetensors", &safetensors::serialize(tensors, None).unwrap());
            let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
            let spec = Clip.spec(&files, None).unwrap();
            assert_eq!((spec.text.is_some(), spec.image.is_some()), {
                (spec.pooling.text.is_some(), spec.pooling.image.is_some())
            });
            (spec.text.is_some(), spec.image.is_some())
        };
        let (text, vision) =
            ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding");
        assert_eq!(of(&[vision]), (false, true));
        assert_eq!(of(&["model.text_model.embeddings.token_embedding.weight"]), (true, false));
        assert_eq!(of(&[text, vision]), (true, true));
        assert_eq!(of(&["other"]), (true, true), "loading names what is missing");
    }

    #[test]
    fn the_tokenizer_may_have_less_than_all_positions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, json: &str| std::fs::write(dir.path().join(name), json).unwrap();
        write("config.json", r#"{"model_type": "clip_text_model"}"#);
        for (max, expected) in [("32", 32), ("77", 77), ("512", 77), ("1000000000000000019884624838656", 77)]
        {
            write("tokenizer_config.json", &format!(r#"{{"model_max_length": {max}}}"#));
            let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
            assert_eq!(Clip.spec(&files, None).unwrap().text.unwrap().max_length, expected);
        }
    }

    #[test]
    fn impossible_values_are_named() {
        for (json, word) in [
            (r#"{"architectures": ["EvaCLIPModel"]}"#, "`EvaCLIPModel`"),
            (r#"{"vision_config": {"num_attention_heads": 7}}"#, "num_attention_heads"),
            (r#"{"vision_config": {"num_channels": 1}}"#, "num_channels"),
            (r#"{"vision_config": {"patch_size": 0}}"#, "patch_size"),
            (r#"{"text_config": {"hidden_act": "mish"}}"#, "mish"),
            (r#"{"projection_dim": 0}"#, "projection_dim"),
            (r#"{"text_config": {"hidden_size": "wide"}}"#, "wide"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }
}
