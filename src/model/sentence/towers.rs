//! The forward pass.

use tch::{Kind as Dtype, TchError, Tensor};

use super::{
    encoder::{Encoder as Config, Kind},
    steps::{Dense, Step, Steps},
};
use crate::{
    domain::Pooling,
    model::{
        ModelError, ModelFiles, Placement, Towers, Weights,
        config::Activation,
        layers::{
            At, AttentionNames, BlockForm, Encoder, LayerNorm, Linear, Mask, Norms, TokenBatch,
            TokenEmbedding, mean,
        },
    },
};

/// BERT's blocks, and RoBERTa's.
const BERT: BlockForm = BlockForm {
    norms: Norms::After,
    norm1: "attention.output.LayerNorm",
    norm2: "output.LayerNorm",
    attention: AttentionNames::Separate([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ]),
    mlp: ["intermediate.dense", "output.dense"],
    scales: None,
};
/// DistilBERT's blocks.
const DISTILBERT: BlockForm = BlockForm {
    norms: Norms::After,
    norm1: "sa_layer_norm",
    norm2: "output_layer_norm",
    attention: AttentionNames::Separate([
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
    ]),
    mlp: ["ffn.lin1", "ffn.lin2"],
    scales: None,
};
/// As torch's `normalize`, which divides nothing by zero.
const SHORTEST: f64 = 1e-12;

/// An encoder and the steps behind it.
pub struct Text {
    embedding: TokenEmbedding,
    norm: LayerNorm,
    encoder: Encoder,
    pad_token_id: u32,
    pool: Pool,
    after: Vec<After>,
}

enum Pool {
    Mean,
    Cls,
    Pooler(Linear),
}

enum After {
    Dense { linear: Linear, activation: Activation, kind: Dtype },
    Normalize,
    Truncate(i64),
}

impl Text {
    /// The encoder that `files` hold, and what stands behind it.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        files: &ModelFiles,
        config: &Config,
        steps: &Steps,
        on: Placement,
    ) -> Result<Self, ModelError> {
        let weights = Weights::open(files, on)?.rooted_at("embeddings.word_embeddings.weight");
        let hidden = config.blocks.hidden_size;
        let mut embedding = TokenEmbedding::load(
            &weights,
            ["embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"],
            config.vocab_size,
            config.n_positions,
            hidden,
        )?;
        if let Some(n_types) = config.n_types {
            let name = "embeddings.token_type_embeddings.weight";
            // A text alone is of the first type.
            let first = weights.tensor(name, &[n_types, hidden])?.f_select(0, 0);
            embedding = embedding.with_token_type(first.map_err(|e| ModelError::torch(name, &e))?);
        }
        if config.kind == Kind::Roberta {
            embedding = embedding.counting_after(config.pad_token_id);
        }
        let (form, layers) = match config.kind {
            Kind::DistilBert => (&DISTILBERT, "transformer.layer"),
            Kind::Bert | Kind::Roberta => (&BERT, "encoder.layer"),
        };
        Ok(Self {
            embedding,
            norm: LayerNorm::load(&weights, "embeddings.LayerNorm", hidden, config.blocks.layer_norm_eps)?,
            encoder: Encoder::load(&weights, layers, form, &config.blocks)?,
            pad_token_id: config.pad_token_id,
            pool: match steps.pooling.way {
                Pooling::Cls => Pool::Cls,
                Pooling::Pooler => Pool::Pooler(Linear::load(&weights, "pooler.dense", hidden, hidden)?),
                // `Family::poolings` lets no other through.
                _ => Pool::Mean,
            },
            after: steps.after.iter().map(|step| After::load(files, step, on)).collect::<Result<_, _>>()?,
        })
    }
}

impl Towers for Text {
    fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
        let batch = TokenBatch::new(texts, self.pad_token_id, self.embedding.device())?;
        let mask = batch.attention_mask()?;
        let x = self.norm.forward(&self.embedding.forward(&batch)?)?;
        let mask = mask.as_ref().map_or(Mask::None, Mask::Tokens);
        let pooled = match &self.pool {
            Pool::Mean => mean(&self.encoder.forward(x, mask)?, batch.is_token.as_ref())?,
            Pool::Cls => self.encoder.forward_at(x, mask, At::First)?,
            Pool::Pooler(dense) => {
                Activation::Tanh.forward(dense.forward(&self.encoder.forward_at(x, mask, At::First)?)?)?
            }
        };
        self.after.iter().try_fold(pooled, |x, step| step.forward(&x))
    }
}

impl After {
    fn load(files: &ModelFiles, step: &Step, on: Placement) -> Result<Self, ModelError> {
        match step {
            Step::Normalize => Ok(Self::Normalize),
            Step::Truncate(n) => Ok(Self::Truncate(*n)),
            Step::Dense(Dense { path, inputs, outputs, bias, activation }) => {
                let weights = Weights::open(&files.top().below(path)?, on)?;
                let linear = match bias {
                    true => Linear::load(&weights, "linear", *inputs, *outputs)?,
                    false => Linear::load_without_bias(&weights, "linear", *inputs, *outputs)?,
                };
                Ok(Self::Dense { linear, activation: *activation, kind: on.kind })
            }
        }
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            // The mean is float32 whatever the weights are.
            Self::Dense { linear, activation, kind } => {
                activation.forward(linear.forward(&x.f_to_kind(*kind)?)?)
            }
            Self::Truncate(n) => x.f_narrow(-1, 0, *n),
            Self::Normalize => {
                let x = x.f_to_kind(Dtype::Float)?;
                x.f_div(&x.f_norm_scalaropt_dim(2, [-1], true)?.f_clamp_min(SHORTEST)?)
            }
        }
    }
}
