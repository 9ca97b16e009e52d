//! DINOv2, with and without register tokens: an image tower alone.
//!
//! Source: transformers 5.23.0, `models/dinov2/modeling_dinov2.py` and
//! `models/dinov2_with_registers/modeling_dinov2_with_registers.py`, whose configurations' defaults stand for
//! the keys that a checkpoint leaves out.

use serde::Deserialize;
use serde_json::json;

use super::{
    Family, ModelError, ModelFiles,
    config::{Activation, ConfigJson, VisionConfig, unsupported},
    preprocessor, sentence,
};
use crate::domain::{ModelSpec, Pooling, Poolings};

/// The `model_type` of checkpoints with register tokens.
const WITH_REGISTERS: &str = "dinov2_with_registers";

/// The family.
pub struct Dinov2;

impl Family for Dinov2 {
    fn name(&self) -> &'static str {
        "dinov2"
    }

    fn matches(&self, _: &ModelFiles, config: &ConfigJson) -> bool {
        ["dinov2", WITH_REGISTERS].contains(&config.model_type())
    }

    /// The mean is over the class token, registers and patches alike. The pooler of transformers' DINOv2 has
    /// no weights: it is the class token.
    fn poolings(&self) -> &'static [Pooling] {
        &[Pooling::Mean, Pooling::Cls, Pooling::Pooler]
    }

    fn spec(&self, files: &ModelFiles, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let Config { vision, .. } = Config::read(files)?;
        let pooling = sentence::around_states(files, pooling)?;
        // Published checkpoints were trained at 518 pixels, which `image_size` says, and are served at 224,
        // which the preprocessor says.
        let image = preprocessor::image_spec(files, None, &preprocessor::BIT)?;
        if image.size().into_iter().any(|pixels| pixels < vision.patch_size) {
            let (found, [height, width]) = (vision.patch_size, image.size());
            let found = format!("{found} (pictures {height}x{width})");
            return Err(unsupported("patch_size", found, "a picture has at least one patch"));
        }
        Ok(ModelSpec {
            name: files.name(),
            family: self.name().into(),
            dimensions: vision.blocks.hidden_size as usize,
            image: Some(image),
            text: None,
            pooling: Poolings { image: Some(pooling.unwrap_or(Pooling::Mean)), text: None },
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: super::Placement,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        let image = spec.image.as_ref().expect("a dinov2 model has an image tower");
        let pooling = spec.pooling.image.unwrap_or(Pooling::Mean);
        let weights = super::Weights::open(files, on)?;
        Ok(Box::new(towers::Dinov2::load(&Config::read(files)?, image.size(), pooling, &weights)?))
    }
}

/// `config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Config {
    /// `image_size` is the one that the position embeddings were trained for.
    #[serde(flatten)]
    vision: VisionConfig,
    qkv_bias: bool,
    mlp_ratio: f64,
    use_swiglu_ffn: bool,
    num_register_tokens: i64,
    /// Whether trained positions are smoothed when they become fewer: in transformers the class with registers
    /// does it, the other does not.
    #[serde(skip)]
    antialias: bool,
}

impl Config {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let json = ConfigJson::read(files)?;
        let has_registers = json.model_type() == WITH_REGISTERS;
        let mut config: Self = json.top(json!({
            "hidden_size": 768, "intermediate_size": 0, "num_hidden_layers": 12, "num_attention_heads": 12,
            "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 224,
            "patch_size": if has_registers { 16 } else { 14 }, "qkv_bias": true, "use_swiglu_ffn": false,
            "num_register_tokens": 4,
        }))?;
        config.antialias = has_registers;
        if !has_registers {
            config.num_register_tokens = 0;
        }
        let blocks = &mut config.vision.blocks;
        let inner = (blocks.hidden_size as f64 * config.mlp_ratio) as i64;
        if config.use_swiglu_ffn {
            blocks.hidden_act = Activation::SwiGlu;
            // Two thirds, rounded up to a multiple of eight.
            blocks.intermediate_size = (inner * 2 / 3 + 7) / 8 * 8;
        } else {
            blocks.intermediate_size = inner;
        }
        config.check()?;
        Ok(config)
    }

    /// Refuses what would fail, or divide by zero, only later.
    fn check(&self) -> Result<(), ModelError> {
        self.vision.check()?;
        if self.vision.blocks.intermediate_size < 1 {
            return Err(unsupported("mlp_ratio", self.mlp_ratio.to_string(), "an MLP has a width"));
        }
        if self.num_register_tokens < 0 {
            let found = self.num_register_tokens.to_string();
            return Err(unsupported("num_register_tokens", found, "it is 0 or more"));
        }
        Ok(())
    }
}

#[cfg(feature = "torch")]
mod towers {
    use tch::{Kind, TchError, Tensor};

    use super::{Config, ModelError, Pooling};
    use crate::model::{
        Towers, Weights,
        layers::{
            At, AttentionNames, BlockForm, Encoder, LayerNorm, Mask, Norms, PatchEmbedding, mean,
            with_first_token,
        },
    };

    const POSITIONS: &str = "embeddings.position_embeddings";

    const ATTENTION: [&str; 4] = [
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    ];

    impl Config {
        /// The form of a block.
        fn form(&self) -> BlockForm {
            BlockForm {
                norms: Norms::Before,
                norm1: "norm1",
                norm2: "norm2",
                attention: match self.qkv_bias {
                    true => AttentionNames::Separate(ATTENTION),
                    false => AttentionNames::WithoutQkvBias(ATTENTION),
                },
                mlp: match self.use_swiglu_ffn {
                    true => ["mlp.weights_in", "mlp.weights_out"],
                    false => ["mlp.fc1", "mlp.fc2"],
                },
                scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
            }
        }
    }

    /// The tower.
    pub struct Dinov2 {
        patches: PatchEmbedding,
        /// Of the patches, `[1, patches, hidden]`.
        positions: Tensor,
        /// The class token with its position, then the registers, which have none:
        /// `[1, 1 + registers, hidden]`.
        first: Tensor,
        encoder: Encoder,
        norm: LayerNorm,
        pooling: Pooling,
    }

    impl Dinov2 {
        /// For pictures of `size` (rows, columns).
        pub fn load(
            config: &Config,
            size: [u32; 2],
            pooling: Pooling,
            weights: &Weights,
        ) -> Result<Self, ModelError> {
            let weights = weights.rooted_at("embeddings.cls_token");
            let (vision, blocks) = (&config.vision, &config.vision.blocks);
            let hidden = blocks.hidden_size;
            let trained = i64::from(vision.image_size / vision.patch_size);
            let served = size.map(|pixels| i64::from(pixels / vision.patch_size));
            let embeddings = Embeddings {
                class: weights.tensor("embeddings.cls_token", &[1, 1, hidden])?,
                registers: match config.num_register_tokens {
                    0 => None,
                    n => Some(weights.tensor("embeddings.register_tokens", &[1, n, hidden])?),
                },
                positions: weights.tensor(POSITIONS, &[1, vision.n_patches() + 1, hidden])?,
            };
            let (first, positions) = embeddings
                .at(trained, served, config.antialias)
                .map_err(|error| ModelError::torch(POSITIONS, &error))?;
            Ok(Self {
                patches: PatchEmbedding::load(
                    &weights,
                    "embeddings.patch_embeddings.projection",
                    hidden,
                    i64::from(vision.patch_size),
                    true,
                )?,
                positions,
                first,
                encoder: Encoder::load(&weights, "encoder.layer", &config.form(), blocks)?,
                norm: LayerNorm::load(&weights, "layernorm", hidden, blocks.layer_norm_eps)?,
                pooling,
            })
        }
    }

    impl Towers for Dinov2 {
        fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
            let patches = self.patches.forward(pixel_values)?.f_add(&self.positions)?;
            let x = with_first_token(&self.first, patches)?;
            match self.pooling {
                Pooling::Mean => mean(&self.norm.forward(&self.encoder.forward(x, Mask::None)?)?, None),
                // The norm works token by token.
                _ => self.norm.forward(&self.encoder.forward_at(x, Mask::None, At::First)?),
            }
        }
    }

    /// What is learned beside the patches.
    struct Embeddings {
        /// `[1, 1, hidden]`.
        class: Tensor,
        /// `[1, registers, hidden]`.
        registers: Option<Tensor>,
        /// `[1, 1 + patches, hidden]`, the class token's first.
        positions: Tensor,
    }

    impl Embeddings {
        /// The first tokens and the patches' positions, brought from a square grid of side `trained` to the
        /// `served` rows and columns.
        fn at(&self, trained: i64, served: [i64; 2], antialias: bool) -> Result<(Tensor, Tensor), TchError> {
            let class = self.class.f_add(&self.positions.f_narrow(1, 0, 1)?)?;
            let first = match &self.registers {
                Some(registers) => Tensor::f_cat(&[&class, registers], 1)?,
                None => class,
            };
            let positions = self.positions.f_narrow(1, 1, trained * trained)?;
            Ok((first, resized(&positions, trained, served, antialias)?))
        }
    }

    /// `positions` `[1, side * side, hidden]` to `[1, rows * columns, hidden]`, bicubic (a = -0.75), in float32
    /// whatever the dtype. With `antialias` (and a = -0.5) as an image would be shrunk.
    fn resized(
        positions: &Tensor,
        side: i64,
        [rows, columns]: [i64; 2],
        antialias: bool,
    ) -> Result<Tensor, TchError> {
        if [rows, columns] == [side; 2] {
            return Ok(positions.shallow_clone());
        }
        let hidden = positions.size3()?.2;
        let grid = positions.f_reshape([1, side, side, hidden])?.f_permute([0, 3, 1, 2])?;
        let (grid, size) = (grid.f_to_kind(Kind::Float)?, [rows, columns]);
        let grid = match antialias {
            true => grid.f_internal_upsample_bicubic2d_aa(size, false, None, None)?,
            false => grid.f_upsample_bicubic2d(size, false, None, None)?,
        };
        let grid = grid.f_to_kind(positions.f_kind()?)?.f_permute([0, 2, 3, 1])?;
        grid.f_reshape([1, rows * columns, hidden])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    fn files(config: &str, preprocessor: &str) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        std::fs::write(dir.path().join("preprocessor_config.json"), preprocessor).unwrap();
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    fn read(config: &str) -> Result<Config, ModelError> {
        let (_dir, files) = files(config, "{}");
        Config::read(&files)
    }

    const PUBLISHED: &str = r#"{"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}"#;

    #[test]
    fn sparse_files_mean_the_defaults_of_transformers() {
        let plain = read(r#"{"model_type": "dinov2", "num_register_tokens": 9}"#).unwrap();
        assert_eq!((plain.vision.patch_size, plain.num_register_tokens), (14, 0));
        assert_eq!(plain.vision.blocks.intermediate_size, 3072);
        let registers = read(r#"{"model_type": "dinov2_with_registers"}"#).unwrap();
        assert_eq!((registers.vision.patch_size, registers.num_register_tokens), (16, 4));
    }

    #[test]
    fn the_giant_has_gates_two_thirds_as_wide() {
        let giant = read(
            r#"{"model_type": "dinov2", "hidden_size": 1536, "num_attention_heads": 24,
            "use_swiglu_ffn": true}"#,
        );
        let blocks = giant.unwrap().vision.blocks;
        assert_eq!((blocks.intermediate_size, blocks.hidden_act), (4096, Activation::SwiGlu));
    }

    #[test]
    fn the_preprocessor_says_the_served_size() {
        let (_dir, files) = files(r#"{"model_type": "dinov2", "image_size": 518}"#, PUBLISHED);
        let spec = Dinov2.spec(&files, None).unwrap();
        assert_eq!(spec.image.unwrap().size(), [224, 224]);
        assert_eq!((spec.dimensions, spec.pooling.image), (768, Some(Pooling::Mean)));
        let spec = Dinov2.spec(&files, Some(Pooling::Cls)).unwrap();
        assert_eq!(spec.pooling.image, Some(Pooling::Cls));
    }

    #[test]
    fn impossible_values_are_named() {
        for (json, word) in [
            (r#"{"model_type": "dinov2", "num_attention_heads": 7}"#, "num_attention_heads"),
            (r#"{"model_type": "dinov2", "mlp_ratio": 0}"#, "mlp_ratio"),
            (r#"{"model_type": "dinov2", "image_size": 518, "patch_size": 300}"#, "patch_size"),
            (r#"{"model_type": "dinov2_with_registers", "num_register_tokens": -1}"#, "num_register_tokens"),
        ] {
            let (_dir, files) = files(json, PUBLISHED);
            let message = Dinov2.spec(&files, None).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
