//! The transformer block and the stack of them that is an encoder.

use tch::{Kind, TchError, Tensor};

use super::{Attention, LayerNorm, Mask, Mlp, Queries};
use crate::model::{ModelError, Weights, config::TransformerConfig};

/// Where a block's layer norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// `x += attention(LN1(x)); x += mlp(LN2(x))`: CLIP, SigLIP, DINOv2.
    Before,
    /// `x = LN1(x + attention(x)); x = LN2(x + mlp(x))`: BERT and kin.
    After,
}

/// What a family's block is: where its norms stand, and what its tensors are called below its own prefix.
#[derive(Debug, Clone, Copy)]
pub struct BlockForm {
    /// Where the norms stand.
    pub norms: Norms,
    /// The norm of the attention.
    pub norm1: &'static str,
    /// The norm of the MLP.
    pub norm2: &'static str,
    /// Query, key, value and output projections.
    pub attention: AttentionNames,
    /// The two halves of the MLP.
    pub mlp: [&'static str; 2],
    /// Factors per channel on what attention and MLP add (LayerScale), where the family has them.
    pub scales: Option<[&'static str; 2]>,
}

impl BlockForm {
    /// CLIP's and SigLIP's, in both towers.
    pub const CLIP: Self = Self {
        norms: Norms::Before,
        norm1: "layer_norm1",
        norm2: "layer_norm2",
        attention: AttentionNames::Separate([
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
        ]),
        mlp: ["mlp.fc1", "mlp.fc2"],
        scales: None,
    };
}

/// How a family stores the projections of an attention.
#[derive(Debug, Clone, Copy)]
pub enum AttentionNames {
    /// Query, key, value and output, each a matrix with a bias.
    Separate([&'static str; 4]),
    /// The same four, but only the output has a bias.
    WithoutQkvBias([&'static str; 4]),
    /// One matrix for query, key and value, with or without a bias, and the output projection.
    Stacked {
        /// The matrix.
        weight: &'static str,
        /// Its bias.
        bias: Option<&'static str>,
        /// The output projection.
        output: &'static str,
    },
}

/// One block.
pub struct Block {
    norms: Norms,
    norm1: LayerNorm,
    norm2: LayerNorm,
    attention: Attention,
    mlp: Mlp,
    scales: Option<[Tensor; 2]>,
}

impl Block {
    /// The block whose tensors start with `prefix`; with a context it must be of [`Queries::Others`].
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        form: &BlockForm,
        queries: Queries,
        config: &TransformerConfig,
    ) -> Result<Self, ModelError> {
        let TransformerConfig { hidden_size: hidden, num_attention_heads: heads, .. } = *config;
        let eps = config.layer_norm_eps;
        let name = |part: &str| format!("{prefix}.{part}");
        let attention = match form.attention {
            AttentionNames::Separate(names) => {
                let names = names.map(name);
                let names = names.each_ref().map(String::as_str);
                Attention::load_for_self(weights, names, true, queries, hidden, heads)?
            }
            AttentionNames::WithoutQkvBias(names) => {
                let names = names.map(name);
                let names = names.each_ref().map(String::as_str);
                Attention::load_for_self(weights, names, false, queries, hidden, heads)?
            }
            AttentionNames::Stacked { weight, bias, output } => {
                let (weight, bias, output) = (name(weight), bias.map(name), name(output));
                Attention::load_stacked(weights, &weight, bias.as_deref(), &output, queries, hidden, heads)?
            }
        };
        let mlp = form.mlp.map(name);
        let mlp = mlp.each_ref().map(String::as_str);
        let scales = match form.scales {
            Some([first, second]) => {
                let scale = |part| weights.tensor(&name(part), &[hidden]);
                Some([scale(first)?, scale(second)?])
            }
            None => None,
        };
        Ok(Self {
            norms: form.norms,
            norm1: LayerNorm::load(weights, &name(form.norm1), hidden, eps)?,
            norm2: LayerNorm::load(weights, &name(form.norm2), hidden, eps)?,
            attention,
            mlp: Mlp::load(weights, mlp, hidden, config.intermediate_size, config.hidden_act)?,
            scales,
        })
    }

    /// `x` `[batch, tokens, hidden]` to the same shape. Where `x` is a part of a sequence, it attends to the whole,
    /// `context` `[batch, others, hidden]`.
    pub fn forward(&self, x: &Tensor, context: Option<&Tensor>, mask: Mask<'_>) -> Result<Tensor, TchError> {
        let attended = |sum: &Tensor, x: &Tensor, context| match &self.scales {
            None => self.attention.add_to(sum, x, context, mask),
            Some([scale, _]) => sum.f_addcmul(&self.attention.forward(x, context, mask)?, scale),
        };
        let widened = |sum: &Tensor, x: &Tensor| match &self.scales {
            None => self.mlp.add_to(sum, x),
            Some([_, scale]) => sum.f_addcmul(&self.mlp.forward(x)?, scale),
        };
        match self.norms {
            Norms::Before => {
                let context = context.map(|context| self.norm1.forward(context)).transpose()?;
                let x = attended(x, &self.norm1.forward(x)?, context.as_ref())?;
                widened(&x, &self.norm2.forward(&x)?)
            }
            Norms::After => {
                let x = self.norm1.forward(&attended(x, x, context)?)?;
                self.norm2.forward(&widened(&x, &x)?)
            }
        }
    }
}

/// Blocks one after another.
pub struct Encoder(Vec<Block>);

impl Encoder {
    /// `config.num_hidden_layers` blocks; block N's tensors start with `{prefix}.N`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        form: &BlockForm,
        config: &TransformerConfig,
    ) -> Result<Self, ModelError> {
        let load = |n| {
            // The last may be asked for one token alone, and then computes no other's query.
            let queries = if n + 1 == config.num_hidden_layers { Queries::Others } else { Queries::All };
            Block::load(weights, &format!("{prefix}.{n}"), form, queries, config)
        };
        (0..config.num_hidden_layers).map(load).collect::<Result<_, _>>().map(Self)
    }

    /// `[batch, tokens, hidden]` to the same shape.
    pub fn forward(&self, x: Tensor, mask: Mask<'_>) -> Result<Tensor, TchError> {
        self.0.iter().try_fold(x, |x, block| block.forward(&x, None, mask))
    }

    /// As [`Self::forward`], but only the token of each row that is `at` a place: `[batch, hidden]`. The last block
    /// computes the others' keys and values and nothing else of them, which saves most of a block.
    pub fn forward_at(&self, x: Tensor, mask: Mask<'_>, at: At<'_>) -> Result<Tensor, TchError> {
        let Some((last, before)) = self.0.split_last() else { return at.of(&x)?.f_select(1, 0) };
        let x = before.iter().try_fold(x, |x, block| block.forward(&x, None, mask))?;
        let until = match (mask, at) {
            (Mask::Causal, at) => Some(at.up_to(&x)?),
            _ => None,
        };
        let mask = until.as_ref().map_or(mask, Mask::Tokens);
        last.forward(&at.of(&x)?, Some(&x), mask)?.f_select(1, 0)
    }
}

/// The one token of each row that stands for it.
#[derive(Debug, Clone, Copy)]
pub enum At<'a> {
    /// The first.
    First,
    /// The last, padding or not.
    Last,
    /// At positions of their own: int64 `[batch]`.
    Positions(&'a Tensor),
}

impl At<'_> {
    /// Of `[batch, tokens, hidden]` the one token: `[batch, 1, hidden]`.
    fn of(self, x: &Tensor) -> Result<Tensor, TchError> {
        let (batch, tokens, hidden) = x.size3()?;
        match self {
            Self::First => x.f_narrow(1, 0, 1)?.f_contiguous(),
            Self::Last => x.f_narrow(1, tokens - 1, 1)?.f_contiguous(),
            Self::Positions(positions) => {
                x.f_gather(1, &positions.f_view([batch, 1, 1])?.f_expand([batch, 1, hidden], false)?, false)
            }
        }
    }

    /// What the one token may see of `x` `[batch, tokens, hidden]` where attention is causal: bool
    /// `[batch, 1, 1, tokens]`.
    fn up_to(self, x: &Tensor) -> Result<Tensor, TchError> {
        let (batch, tokens, _) = x.size3()?;
        let places = Tensor::f_arange(tokens, (Kind::Int64, x.device()))?;
        let seen = match self {
            Self::First => places.f_le(0)?,
            Self::Last => places.f_ge(0)?,
            Self::Positions(positions) => places.f_le_tensor(&positions.f_view([batch, 1, 1, 1])?)?,
        };
        seen.f_expand([batch, 1, 1, tokens], false)
    }
}
