//! What goes into the Q-Former, and what comes out of it.

use tch::{Kind, TchError, Tensor};

use super::{Config, Vision as VisionConfig, qformer::QFormer};
use crate::{
    domain::{ModelSpec, Pooling},
    model::{
        ModelError, Towers, Weights,
        layers::{
            AttentionNames, BlockForm, Encoder, LayerNorm, Linear, Mask, Norms, PatchEmbedding, TokenBatch,
            TokenEmbedding, mean, with_first_token,
        },
        missing_tower,
    },
};

/// The towers that are wanted, around the Q-Former that both go through.
pub struct Blip2 {
    qformer: QFormer,
    image: Option<Image>,
    text: Option<Text>,
}

struct Image {
    vision: Vision,
    query_tokens: Tensor,
    /// Into the shared space; `None` for the mean of the queries' states themselves.
    projection: Option<Linear>,
}

struct Text {
    embedding: TokenEmbedding,
    projection: Linear,
}

/// A vision transformer; all its tokens are seen.
struct Vision {
    patches: PatchEmbedding,
    class_embedding: Tensor,
    positions: Tensor,
    encoder: Encoder,
    post_norm: LayerNorm,
}

impl Blip2 {
    /// Loads the towers that `spec` has.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(config: &Config, spec: &ModelSpec, weights: &Weights) -> Result<Self, ModelError> {
        let (images, texts) = (spec.image.is_some(), spec.text.is_some());
        let (hidden, shared) = (config.qformer.blocks.hidden_size, config.image_text_hidden_size);
        let image = || -> Result<Image, ModelError> {
            let projection = (spec.pooling.image == Some(Pooling::ItcMean))
                .then(|| Linear::load(weights, "vision_projection", hidden, shared));
            Ok(Image {
                vision: Vision::load(weights, &config.vision)?,
                query_tokens: weights.tensor("query_tokens", &[1, config.num_query_tokens, hidden])?,
                projection: projection.transpose()?,
            })
        };
        let text = || -> Result<Text, ModelError> {
            Ok(Text {
                embedding: TokenEmbedding::load(
                    weights,
                    ["embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"],
                    config.qformer.vocab_size,
                    config.qformer.max_position_embeddings as i64,
                    hidden,
                )?,
                projection: Linear::load(weights, "text_projection", hidden, shared)?,
            })
        };
        Ok(Self {
            qformer: QFormer::load(weights, config, images, texts)?,
            image: images.then(image).transpose()?,
            text: texts.then(text).transpose()?,
        })
    }
}

impl Towers for Blip2 {
    fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
        let Image { vision, query_tokens, projection } = self.image.as_ref().ok_or_else(missing_tower)?;
        let states = self.qformer.look(query_tokens, &vision.forward(pixel_values)?)?;
        match projection {
            None => mean(&states, None),
            // Each query is a vector of its own to the head; only unit vectors may be averaged.
            Some(projection) => {
                let projected = projection.forward(&states)?.f_to_kind(Kind::Float)?;
                let lengths = projected.f_norm_scalaropt_dim(2, [-1_i64].as_slice(), true)?;
                mean(&projected.f_div(&lengths.f_clamp_min(1e-12)?)?, None)
            }
        }
    }

    fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
        let Text { embedding, projection } = self.text.as_ref().ok_or_else(missing_tower)?;
        let batch = TokenBatch::new(texts, 0, embedding.device())?;
        let mask = batch.attention_mask()?;
        let mask = mask.as_ref().map_or(Mask::None, Mask::Tokens);
        let states = self.qformer.read(&embedding.forward(&batch)?, mask)?;
        projection.forward(&states.f_select(1, 0)?)
    }
}

impl Vision {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self, ModelError> {
        let form = BlockForm {
            norms: Norms::Before,
            norm1: "layer_norm1",
            norm2: "layer_norm2",
            attention: AttentionNames::Stacked {
                weight: "self_attn.qkv.weight",
                bias: config.qkv_bias.then_some("self_attn.qkv.bias"),
                output: "self_attn.projection",
            },
            mlp: ["mlp.fc1", "mlp.fc2"],
            scales: None,
        };
        let base = &config.base;
        let (hidden, eps) = (base.blocks.hidden_size, base.blocks.layer_norm_eps);
        let embeddings = |part: &str| format!("vision_model.embeddings.{part}");
        let patch = i64::from(base.patch_size);
        Ok(Self {
            patches: PatchEmbedding::load(weights, &embeddings("patch_embedding"), hidden, patch, true)?,
            class_embedding: weights.tensor(&embeddings("class_embedding"), &[1, 1, hidden])?,
            positions: weights
                .tensor(&embeddings("position_embedding"), &[1, base.n_patches() + 1, hidden])?,
            encoder: Encoder::load(weights, "vision_model.encoder.layers", &form, &base.blocks)?,
            post_norm: LayerNorm::load(weights, "vision_model.post_layernorm", hidden, eps)?,
        })
    }

    /// `[batch, 3, height, width]` to `[batch, 1 + patches, hidden]`.
    fn forward(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
        let x = with_first_token(&self.class_embedding, self.patches.forward(pixel_values)?)?;
        let x = self.encoder.forward(x.f_add(&self.positions)?, Mask::None)?;
        self.post_norm.forward(&x)
    }
}
