//! Multi-head attention, to the tokens themselves or to those of another tower.

use tch::{TchError, Tensor};

use super::Linear;
use crate::model::{ModelError, Weights};

/// Which tokens are attended to.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All.
    None,
    /// Those up to the token itself.
    Causal,
    /// Those where this is true: bool `[batch, 1, 1, tokens]`.
    Tokens(&'a Tensor),
}

/// Queries from one sequence, keys and values from the same or from another.
pub struct Attention {
    heads: i64,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl Attention {
    /// Query, key, value and output projections under the full `names`. Queries are `hidden` wide, what is
    /// attended to `context` wide (the same for self-attention).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        names: [&str; 4],
        hidden: i64,
        context: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        let [query, key, value, output] = names;
        Ok(Self {
            heads,
            query: Linear::load(weights, query, hidden, hidden)?,
            key: Linear::load(weights, key, context, hidden)?,
            value: Linear::load(weights, value, context, hidden)?,
            output: Linear::load(weights, output, hidden, hidden)?,
        })
    }

    /// As [`Self::load`] for self-attention, where only the output projection has a bias.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_without_qkv_bias(
        weights: &Weights,
        [query, key, value, output]: [&str; 4],
        hidden: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        let load = |name| Linear::load_without_bias(weights, name, hidden, hidden);
        let output = Linear::load(weights, output, hidden, hidden)?;
        Ok(Self { heads, query: load(query)?, key: load(key)?, value: load(value)?, output })
    }

    /// As [`Self::load`], where one matrix `[3 * hidden, hidden]` and, if there is one, one bias
    /// `[3 * hidden]` hold query, key and value, stacked; all under their full names.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_stacked(
        weights: &Weights,
        weight: &str,
        bias: Option<&str>,
        output: &str,
        hidden: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        let matrix = weights.tensor(weight, &[3 * hidden, hidden])?;
        let offset = bias.map(|bias| weights.tensor(bias, &[3 * hidden])).transpose()?;
        let third = |n: i64| -> Result<Linear, TchError> {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, n * hidden, hidden);
            Ok(Linear::new(rows(&matrix)?, offset.as_ref().map(rows).transpose()?))
        };
        let third = |n| third(n).map_err(|e| ModelError::torch(weight, &e));
        Ok(Self {
            heads,
            query: third(0)?,
            key: third(1)?,
            value: third(2)?,
            output: Linear::load(weights, output, hidden, hidden)?,
        })
    }

    /// `x` `[batch, tokens, hidden]` attends to `context` `[batch, others, context]`; gives the shape of `x`.
    pub fn forward(&self, x: &Tensor, context: &Tensor, mask: Mask<'_>) -> Result<Tensor, TchError> {
        let (batch, tokens, hidden) = x.size3()?;
        let split = |projection: &Linear, from: &Tensor| {
            let size = [batch, from.size3()?.1, self.heads, hidden / self.heads];
            projection.forward(from)?.f_view(size)?.f_transpose(1, 2)
        };
        let (q, k, v) = (split(&self.query, x)?, split(&self.key, context)?, split(&self.value, context)?);
        let (mask, causal) = match mask {
            Mask::None => (None, false),
            Mask::Causal => (None, true),
            Mask::Tokens(tokens) => (Some(tokens), false),
        };
        let y = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, false)?;
        self.output.forward(&y.f_transpose(1, 2)?.f_reshape([batch, tokens, hidden])?)
    }
}
