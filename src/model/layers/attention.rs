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
    projections: Projections,
    output: Linear,
}

/// How queries, keys and values are computed.
enum Projections {
    /// All three in one product, from the same sequence.
    Stacked(Linear),
    /// Each by its own.
    Separate { query: Linear, key: Linear, value: Linear },
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
        let projections = Projections::Separate {
            query: Linear::load(weights, query, hidden, hidden)?,
            key: Linear::load(weights, key, context, hidden)?,
            value: Linear::load(weights, value, context, hidden)?,
        };
        Ok(Self { heads, projections, output: Linear::load(weights, output, hidden, hidden)? })
    }

    /// As [`Self::load`] for self-attention, in one product where that is faster.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_for_self(
        weights: &Weights,
        names: [&str; 4],
        hidden: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        Self::load(weights, names, hidden, hidden, heads)?.stacked(weights, names[0])
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
        let projections = Projections::Separate { query: load(query)?, key: load(key)?, value: load(value)? };
        Self { heads, projections, output }.stacked(weights, query)
    }

    /// With one product instead of three, unless the matrices are packed or stay in the mapped file: on the CPU in fp32
    /// three are as fast (ViT-B/32, 32 pictures: 25.0 against 24.7 a second).
    fn stacked(mut self, weights: &Weights, name: &str) -> Result<Self, ModelError> {
        self.projections = match self.projections {
            Projections::Separate { query, key, value } if !weights.stay_in_file() => {
                let stacked = Linear::stack(&[query, key, value]);
                Projections::Stacked(stacked.map_err(|e| ModelError::torch(name, &e))?)
            }
            as_they_are => as_they_are,
        };
        Ok(self)
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
        let projections = if Linear::packs(weights) {
            // Rows of a packed matrix cannot be told apart, and the last block needs the query's alone.
            let [query, key, value] = Linear::pack_three(weights, weight, bias, hidden, hidden)?;
            Projections::Separate { query, key, value }
        } else {
            let matrix = weights.tensor(weight, &[3 * hidden, hidden])?;
            let offset = bias.map(|bias| weights.tensor(bias, &[3 * hidden])).transpose()?;
            let stacked = Linear::new(matrix, offset).map_err(|e| ModelError::torch(weight, &e))?;
            Projections::Stacked(stacked)
        };
        Ok(Self { heads, projections, output: Linear::load(weights, output, hidden, hidden)? })
    }

    /// `x` `[batch, tokens, hidden]` attends to `context` `[batch, others, context]`, or to itself without one; gives
    /// the shape of `x`.
    pub fn forward(&self, x: &Tensor, context: Option<&Tensor>, mask: Mask<'_>) -> Result<Tensor, TchError> {
        self.output.forward(&self.attend(x, context, mask)?)
    }

    /// As [`Self::forward`], added to `sum`, which has the shape of `x`.
    pub fn add_to(
        &self,
        sum: &Tensor,
        x: &Tensor,
        context: Option<&Tensor>,
        mask: Mask<'_>,
    ) -> Result<Tensor, TchError> {
        self.output.add_to(sum, &self.attend(x, context, mask)?)
    }

    /// All but the output projection.
    fn attend(&self, x: &Tensor, context: Option<&Tensor>, mask: Mask<'_>) -> Result<Tensor, TchError> {
        let (batch, tokens, hidden) = x.size3()?;
        // Of `n` projections side by side, the tensors `[batch, heads, tokens, hidden / heads]`.
        let by_head = |projected: Tensor, n: i64| {
            let size = [batch, projected.size3()?.1, n, self.heads, hidden / self.heads];
            projected.f_view(size)?.f_permute([2, 0, 3, 1, 4])?.f_unbind(0)
        };
        let qkv = match &self.projections {
            Projections::Separate { query, key, value } => {
                let context = context.unwrap_or(x);
                let [q, k, v] = [query.forward(x)?, key.forward(context)?, value.forward(context)?];
                [by_head(q, 1)?, by_head(k, 1)?, by_head(v, 1)?].into_iter().flatten().collect()
            }
            Projections::Stacked(all) => match context {
                None => by_head(all.forward(x)?, 3)?,
                Some(context) => {
                    let queries = by_head(all.narrow(0, hidden)?.forward(x)?, 1)?;
                    let others = by_head(all.narrow(hidden, 2 * hidden)?.forward(context)?, 2)?;
                    queries.into_iter().chain(others).collect::<Vec<_>>()
                }
            },
        };
        let [q, k, v] = &qkv[..] else { return Err(TchError::Shape("three projections".into())) };
        let (mask, causal) = match mask {
            Mask::None => (None, false),
            Mask::Causal => (None, true),
            Mask::Tokens(tokens) => (Some(tokens), false),
        };
        let y = Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None, false)?;
        y.f_transpose(1, 2)?.f_reshape([batch, tokens, hidden])
    }
}
