//! The pre-norm transformer block: `x += attention(LN1(x)); x += mlp(LN2(x))`.

use tch::{TchError, Tensor};

use super::{LayerNorm, Linear};
use crate::model::{ModelError, Weights};

/// The function between the two halves of an MLP, by its transformers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// The exact one, by erf.
    Gelu,
}

impl Activation {
    fn forward(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid_()?.f_mul(x),
            Self::Gelu => x.f_gelu("none"),
        }
    }
}

/// The sizes of a block.
#[derive(Debug, Clone, Copy)]
pub struct BlockShape {
    /// Width of the residual stream.
    pub hidden: i64,
    /// Width inside the MLP.
    pub intermediate: i64,
    /// Attention heads; `hidden` is a multiple of it.
    pub heads: i64,
    /// Layer norm epsilon.
    pub eps: f64,
    /// Between the halves of the MLP.
    pub activation: Activation,
    /// Whether a token sees only those before it.
    pub causal: bool,
}

/// What a family calls the tensors of a block, below the block's own prefix.
pub struct BlockNames {
    /// Norm before the attention.
    pub norm1: &'static str,
    /// Norm before the MLP.
    pub norm2: &'static str,
    /// Query, key, value and output projections.
    pub attention: [&'static str; 4],
    /// The two halves of the MLP.
    pub mlp: [&'static str; 2],
}

/// One block.
pub struct Block {
    shape: BlockShape,
    norm1: LayerNorm,
    norm2: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    /// The block whose tensors start with `prefix`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        names: &BlockNames,
        shape: BlockShape,
    ) -> Result<Self, ModelError> {
        let BlockShape { hidden, intermediate, eps, .. } = shape;
        let name = |part: &str| format!("{prefix}.{part}");
        let square = |part| Linear::load(weights, &name(part), hidden, hidden);
        let [query, key, value, output] = names.attention;
        Ok(Self {
            shape,
            norm1: LayerNorm::load(weights, &name(names.norm1), hidden, eps)?,
            norm2: LayerNorm::load(weights, &name(names.norm2), hidden, eps)?,
            query: square(query)?,
            key: square(key)?,
            value: square(value)?,
            output: square(output)?,
            fc1: Linear::load(weights, &name(names.mlp[0]), hidden, intermediate)?,
            fc2: Linear::load(weights, &name(names.mlp[1]), intermediate, hidden)?,
        })
    }

    /// `[batch, tokens, hidden]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let x = x.f_add(&self.attend(&self.norm1.forward(x)?)?)?;
        let inner = self.shape.activation.forward(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        x.f_add(&self.fc2.forward(&inner)?)
    }

    fn attend(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (batch, tokens, hidden) = x.size3()?;
        let heads = self.shape.heads;
        let split = |projection: &Linear| {
            projection.forward(x)?.f_view([batch, tokens, heads, hidden / heads])?.f_transpose(1, 2)
        };
        let (q, k, v) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let mask = None::<Tensor>;
        let y =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, self.shape.causal, None, false)?;
        self.output.forward(&y.f_transpose(1, 2)?.f_reshape([batch, tokens, hidden])?)
    }
}
