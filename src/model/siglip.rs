//! SigLIP, and SigLIP 2 of fixed resolution: an image and a text tower that share one space.
//!
//! Source: transformers 5.23.0, `models/siglip/modeling_siglip.py`, `configuration_siglip.py` and
//! `tokenization_siglip.py`, whose defaults stand for the keys that a checkpoint leaves out.

use serde::Deserialize;
use serde_json::json;

use super::{
    Family, ModelError, ModelFiles,
    config::{ConfigJson, TransformerConfig, VisionConfig, unsupported},
    preprocessor,
    sentence::{self, Takes},
    tokenizer_config::{self, TokenizerConfig},
    weights::Index,
};
use crate::domain::{CleanUp, ModelSpec, Pooling, Poolings, TextSpec};

/// The family.
pub struct Siglip;

impl Family for Siglip {
    fn name(&self) -> &'static str {
        "siglip"
    }

    fn matches(&self, _: &ModelFiles, config: &ConfigJson) -> bool {
        ["siglip", "siglip_vision_model", "siglip_text_model"].contains(&config.model_type())
    }

    fn spec(&self, files: &ModelFiles, _: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let Config { dimensions, text, vision } = Config::read(files)?;
        let around = sentence::around_vectors(files, Takes::Vectors)?;
        let anchors = [
            "text_model.embeddings.token_embedding.weight",
            "vision_model.embeddings.patch_embedding.weight",
        ];
        let [has_text, has_vision] = Index::towers(files, anchors);
        let (text, vision) = (text.filter(|_| has_text), vision.filter(|_| has_vision));
        Ok(ModelSpec {
            name: files.name(),
            family: self.name().into(),
            dimensions: dimensions as usize,
            pooling: Poolings {
                image: vision.as_ref().map(|_| Pooling::Attention),
                text: text.as_ref().map(|_| Pooling::Projection),
            },
            image: vision
                .map(|vision| {
                    preprocessor::image_spec(files, Some(vision.sizes.image_size), &preprocessor::SIGLIP)
                })
                .transpose()?,
            text: match text {
                Some(text) => {
                    let spec = text_spec(&around.tokenizer(files)?, text.max_position_embeddings)?;
                    Some(around.texts(spec))
                }
                None => None,
            },
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: super::Placement,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        Ok(Box::new(towers::Siglip::load(&Config::read(files)?, spec, &super::Weights::open(files, on)?)?))
    }
}

/// How texts are prepared, from the tokenizer's settings. Files that leave its class out mean SigLIP's own,
/// whose defaults differ from those of others. Texts are filled up behind, as the models were trained; sentence-transformers
/// fills them only to the longest of a batch, unless it is told otherwise, so that a vector depends on its neighbours.
///
/// # Errors
/// When the tokenizer fills them in front: Gemma's does where the file is silent, which no published one is.
fn text_spec(config: &TokenizerConfig, max_position_embeddings: usize) -> Result<TextSpec, ModelError> {
    let side = match (config.padding_side.as_deref(), config.class()) {
        (Some(side), _) => side,
        (None, Some("GemmaTokenizer" | "Siglip2Tokenizer")) => "absent, which means `left`",
        (None, _) => "right",
    };
    if side != "right" {
        return Err(ModelError::Unsupported {
            file: tokenizer_config::FILE.into(),
            key: "padding_side",
            found: side.into(),
            expected: "SigLIP was trained with its padding at the right; set it to right to have that",
        });
    }
    let (padding, clean_up, max_length) = match config.class() {
        None | Some("SiglipTokenizer") => {
            ("</s>", CleanUp::Siglip { lowercase: config.do_lower_case.unwrap_or(true) }, 64.0)
        }
        // Its Python code puts texts in lower case, whatever the tokenizer.json beside it says.
        Some("Siglip2Tokenizer") => ("<pad>", CleanUp::Lowercase, f64::INFINITY),
        Some(_) => ("<pad>", CleanUp::None, f64::INFINITY),
    };
    // Texts are padded to the tokenizer's length, but the tower has no more positions than it has.
    let max_length = config.model_max_length.unwrap_or(max_length).min(max_position_embeddings as f64);
    Ok(TextSpec {
        clean_up,
        padding: Some(config.pad_token().unwrap_or(padding).into()),
        ..TextSpec::new(max_length as usize)
    })
}

/// `config.json`.
#[derive(Debug, Clone, PartialEq)]
struct Config {
    dimensions: i64,
    text: Option<TextConfig>,
    vision: Option<Vision>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct TextConfig {
    #[serde(flatten)]
    blocks: TransformerConfig,
    max_position_embeddings: usize,
    vocab_size: i64,
    /// The width of a vector; the tower's own where it is not given.
    projection_size: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Vision {
    #[serde(flatten)]
    sizes: VisionConfig,
    vision_use_head: bool,
}

impl Config {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let json = ConfigJson::read(files)?;
        let text = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "max_position_embeddings": 64, "vocab_size": 32000, "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        });
        let vision = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
            "vision_use_head": true,
        });
        let (text, vision) = json.towers("siglip", text, vision)?;
        Self::checked(text, vision)
    }

    /// Refuses what would fail, or divide by zero, only later.
    fn checked(text: Option<TextConfig>, vision: Option<Vision>) -> Result<Self, ModelError> {
        let from_text = text.as_ref().map(|text| text.projection_size.unwrap_or(text.blocks.hidden_size));
        let from_vision = vision.as_ref().map(|vision| vision.sizes.blocks.hidden_size);
        if let Some(vision) = &vision {
            vision.sizes.check()?;
            if !vision.vision_use_head {
                let expected = "the image tower gives its vector through its attention-pooling head";
                return Err(unsupported("vision_use_head", "false".into(), expected));
            }
        }
        if let Some(text) = &text {
            text.blocks.check()?;
            if text.max_position_embeddings < 2 {
                let found = text.max_position_embeddings.to_string();
                let expected = "a text has at least one token beside its end";
                return Err(unsupported("max_position_embeddings", found, expected));
            }
        }
        let dimensions = from_text.or(from_vision).unwrap_or_default();
        if dimensions <= 0 || from_vision.is_some_and(|other| other != dimensions) {
            let expected = "it must be the hidden_size of the image tower, which both towers' vectors have";
            return Err(unsupported("projection_size", dimensions.to_string(), expected));
        }
        Ok(Self { dimensions, text, vision })
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
                At, Attention, BlockForm, Encoder, LayerNorm, Linear, Mask, Mlp, PatchEmbedding, Queries,
                TokenBatch, TokenEmbedding,
            },
            missing_tower,
        },
    };

    /// Both towers, or the one that is wanted.
    pub struct Siglip {
        vision: Option<Vision>,
        text: Option<Text>,
    }

    struct Vision {
        patches: PatchEmbedding,
        positions: Tensor,
        encoder: Encoder,
        post_norm: LayerNorm,
        head: AttentionPooling,
    }

    /// One learned query that attends to every patch, and an MLP on what it found.
    struct AttentionPooling {
        probe: Tensor,
        attention: Attention,
        norm: LayerNorm,
        mlp: Mlp,
    }

    struct Text {
        embedding: TokenEmbedding,
        encoder: Encoder,
        final_norm: LayerNorm,
        head: Linear,
    }

    impl Siglip {
        pub fn load(config: &Config, spec: &ModelSpec, weights: &Weights) -> Result<Self, ModelError> {
            let vision = config.vision.as_ref().filter(|_| spec.image.is_some());
            let text = config.text.as_ref().filter(|_| spec.text.is_some());
            Ok(Self {
                vision: vision.map(|config| Vision::load(&config.sizes, weights)).transpose()?,
                text: text.map(|text| Text::load(text, config.dimensions, weights)).transpose()?,
            })
        }
    }

    impl Towers for Siglip {
        fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            self.vision.as_ref().ok_or_else(missing_tower)?.forward(pixel_values)
        }

        fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
            self.text.as_ref().ok_or_else(missing_tower)?.forward(texts)
        }
    }

    impl Vision {
        fn load(config: &VisionConfig, weights: &Weights) -> Result<Self, ModelError> {
            // `vision_model.` in most files; a tower saved alone may go without.
            let weights = weights.rooted_at("embeddings.patch_embedding.weight");
            let (hidden, eps) = (config.blocks.hidden_size, config.blocks.layer_norm_eps);
            let patch = i64::from(config.patch_size);
            Ok(Self {
                patches: PatchEmbedding::load(&weights, "embeddings.patch_embedding", hidden, patch, true)?,
                positions: weights
                    .tensor("embeddings.position_embedding.weight", &[config.n_patches(), hidden])?,
                encoder: Encoder::load(&weights, "encoder.layers", &BlockForm::CLIP, &config.blocks)?,
                post_norm: LayerNorm::load(&weights, "post_layernorm", hidden, eps)?,
                head: AttentionPooling::load(config, &weights)?,
            })
        }

        fn forward(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            let x = self.patches.forward(pixel_values)?.f_add(&self.positions)?;
            let x = self.encoder.forward(x, Mask::None)?;
            self.head.forward(&self.post_norm.forward(&x)?)
        }
    }

    impl AttentionPooling {
        fn load(config: &VisionConfig, weights: &Weights) -> Result<Self, ModelError> {
            let blocks = &config.blocks;
            let hidden = blocks.hidden_size;
            Ok(Self {
                probe: weights.tensor("head.probe", &[1, 1, hidden])?,
                attention: Attention::load_stacked(
                    weights,
                    "head.attention.in_proj_weight",
                    Some("head.attention.in_proj_bias"),
                    "head.attention.out_proj",
                    Queries::Others,
                    hidden,
                    blocks.num_attention_heads,
                )?,
                norm: LayerNorm::load(weights, "head.layernorm", hidden, blocks.layer_norm_eps)?,
                mlp: Mlp::load(
                    weights,
                    ["head.mlp.fc1", "head.mlp.fc2"],
                    hidden,
                    blocks.intermediate_size,
                    blocks.hidden_act,
                )?,
            })
        }

        /// `[batch, patches, hidden]` to `[batch, hidden]`.
        fn forward(&self, patches: &Tensor) -> Result<Tensor, TchError> {
            let (batch, _, hidden) = patches.size3()?;
            let probe = self.probe.f_expand([batch, 1, hidden], false)?;
            // The residual is what was found, not the probe.
            let found = self.attention.forward(&probe, Some(patches), Mask::None)?;
            self.mlp.add_to(&found, &self.norm.forward(&found)?)?.f_select(1, 0)
        }
    }

    impl Text {
        fn load(config: &TextConfig, dimensions: i64, weights: &Weights) -> Result<Self, ModelError> {
            let weights = weights.rooted_at("embeddings.token_embedding.weight");
            let (hidden, eps) = (config.blocks.hidden_size, config.blocks.layer_norm_eps);
            Ok(Self {
                embedding: TokenEmbedding::load(
                    &weights,
                    ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"],
                    config.vocab_size,
                    config.max_position_embeddings as i64,
                    hidden,
                )?,
                encoder: Encoder::load(&weights, "encoder.layers", &BlockForm::CLIP, &config.blocks)?,
                final_norm: LayerNorm::load(&weights, "final_layer_norm", hidden, eps)?,
                head: Linear::load(&weights, "head", hidden, dimensions)?,
            })
        }

        fn forward(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
            // Texts come in at one length: their padding is attended to, and the last position, mostly
            // padding itself, stands for the text.
            let batch = TokenBatch::new(texts, 0, self.embedding.device())?;
            let x = self.encoder.forward_at(self.embedding.forward(&batch)?, Mask::None, At::Last)?;
            self.head.forward(&self.final_norm.forward(&x)?)
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
        let config = read(
            r#"{"model_type": "siglip", "text_config": {"vocab_size": 256000}, "vision_config": {"image_size": 512}}"#,
        );
        let config = config.unwrap();
        let (text, vision) = (config.text.unwrap(), config.vision.unwrap());
        assert_eq!((config.dimensions, text.vocab_size, text.max_position_embeddings), (768, 256_000, 64));
        assert_eq!((vision.sizes.n_patches(), vision.sizes.blocks.layer_norm_eps), (1024, 1e-6));
        assert_eq!(text.blocks.hidden_act, Activation::GeluTanh);
    }

    #[test]
    fn the_text_tower_may_be_narrower_than_the_space() {
        let config = read(r#"{"text_config": {"hidden_size": 96, "projection_size": 768}}"#).unwrap();
        assert_eq!(config.dimensions, 768);
        let message = read(r#"{"text_config": {"hidden_size": 96}}"#).unwrap_err().to_string();
        assert!(message.contains("projection_size") && message.contains("96"), "{message}");
    }

    #[test]
    fn a_tower_saved_alone_is_one_tower() {
        let vision = read(r#"{"model_type": "siglip_vision_model", "hidden_size": 36}"#).unwrap();
        assert!(vision.text.is_none() && vision.dimensions == 36);
        let text = read(r#"{"model_type": "siglip_text_model", "projection_size": 24}"#).unwrap();
        assert!(text.vision.is_none() && text.dimensions == 24);
    }

    #[test]
    fn impossible_values_are_named() {
        for (json, word) in [
            (r#"{"vision_config": {"vision_use_head": false}}"#, "vision_use_head"),
            (r#"{"vision_config": {"num_attention_heads": 7}}"#, "num_attention_heads"),
            (r#"{"text_config": {"max_position_embeddings": 1}}"#, "max_position_embeddings"),
            (r#"{"text_config": {"projection_size": 0}}"#, "projection_size"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }

    #[test]
    fn weights_of_one_tower_are_one_tower() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("config.json", br#"{"model_type": "siglip"}"#);
        write("preprocessor_config.json", br#"{"size": {"height": 224, "width": 224}}"#);
        let of = |tensor: &str| {
            let data = [0; 4];
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &data).unwrap();
            write("model.safetensors", &safetensors::serialize([(tensor, view)], None).unwrap());
            let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
            let spec = Siglip.spec(&files, None).unwrap();
            (spec.text.is_some(), spec.image.is_some())
        };
        assert_eq!(of("vision_model.embeddings.patch_embedding.weight"), (false, true));
        assert_eq!(of("text_model.embeddings.token_embedding.weight"), (true, false));
        assert_eq!(of("other"), (true, true), "loading names what is missing");
    }

    #[test]
    fn texts_are_prepared_as_the_tokenizer_says() {
        let check = |json: &str, positions, clean_up, padding: &str, max_length| {
            let spec = text_spec(&serde_json::from_str(json).unwrap(), positions).unwrap();
            let expected = TextSpec { clean_up, padding: Some(padding.into()), ..TextSpec::new(max_length) };
            assert_eq!(spec, expected, "{json}");
        };
        let siglip = |lowercase| CleanUp::Siglip { lowercase };
        check("{}", 64, siglip(true), "</s>", 64);
        check(
            r#"{"tokenizer_class": "GemmaTokenizer", "model_max_length": 1e30, "padding_side": "right"}"#,
            48,
            CleanUp::None,
            "<pad>",
            48,
        );
        check(
            r#"{"tokenizer_class": "SiglipTokenizer", "do_lower_case": false, "model_max_length": 16,
                "pad_token": "<pad>"}"#,
            64,
            siglip(false),
            "<pad>",
            16,
        );
        check(
            r#"{"tokenizer_class": "Siglip2Tokenizer", "padding_side": "right"}"#,
            64,
            CleanUp::Lowercase,
            "<pad>",
            64,
        );
        check(r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, 64, CleanUp::None, "<pad>", 64);
        // The tower's positions are the limit, and SigLIP's class has one of its own.
        check(r#"{"model_max_length": 64}"#, 16, siglip(true), "</s>", 16);
        check("{}", 128, siglip(true), "</s>", 64);
        for (json, word) in [
            (r#"{"tokenizer_class": "GemmaTokenizerFast"}"#, "absent"),
            (r#"{"tokenizer_class": "Siglip2Tokenizer"}"#, "absent"),
            (r#"{"padding_side": "left"}"#, "left"),
        ] {
            let message = text_spec(&serde_json::from_str(json).unwrap(), 64).unwrap_err().to_string();
            assert!(message.contains("padding_side") && message.contains(word), "{message}");
        }
    }
}
