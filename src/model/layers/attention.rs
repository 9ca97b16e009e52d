//! Multi-head attention, to the tokens themselves or to those of another tower.

use std::ops::Range;

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

/// Which tokens ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// Those that are attended to.
    All,
    /// Some of them, or others.
    Others,
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
    /// Queries by their own, keys and values in one product: rows of a packed matrix cannot be told apart.
    Apart { query: Linear, others: Linear },
}

impl Projections {
    /// For self-attention, where `load` gives some of query, key and value, which are 0, 1 and 2, as one product.
    fn load(
        weights: &Weights,
        queries: Queries,
        load: impl Fn(Range<usize>) -> Result<Linear, ModelError>,
    ) -> Result<Self, ModelError> {
        if queries == Queries::Others && Linear::packs(weights) {
            return Ok(Self::Apart { query: load(0..1)?, others: load(1..3)? });
        }
        load(0..3).map(Self::Stacked)
    }
}

impl Attention {
    /// Query, key, value and output projections under the full `names`. Queries are `hidden` wide, what is
    /// attended to `context` wide.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        [query, key, value, output]: [&str; 4],
        hidden: i64,
        context: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        let query = Linear::load(weights, query, hidden, hidden)?;
        let others = Linear::load_stacked(weights, &[key, value], true, context, hidden)?;
        let projections = Projections::Apart { query, others };
        Ok(Self { heads, projections, output: Linear::load(weights, output, hidden, hidden)? })
    }

    /// As [`Self::load`] for self-attention; only the output projection must have a bias.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_for_self(
        weights: &Weights,
        [query, key, value, output]: [&str; 4],
        has_qkv_bias: bool,
        queries: Queries,
        hidden: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        let names = [query, key, value];
        let projections = Projections::load(weights, queries, |parts| {
            Linear::load_stacked(weights, &names[parts], has_qkv_bias, hidden, hidden)
        })?;
        Ok(Self { heads, projections, output: Linear::load(weights, output, hidden, hidden)? })
    }

    /// As [`Self::load_for_self`], where one matrix `[3 * hidden, hidden]` and, if there is one, one bias
    /// `[3 * hidden]` hold query, key and value, stacked; all under their full names.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_stacked(
        weights: &Weights,
        weight: &str,
        bias: Option<&str>,
        output: &str,
        queries: Queries,
        hidden: i64,
        heads: i64,
    ) -> Result<Self, ModelError> {
        let projections = Projections::load(weights, queries, |parts| {
            let rows = parts.start as i64 * hidden..parts.end as i64 * hidden;
            Linear::load_rows(weights, weight, bias, [3 * hidden, hidden], rows)
        })?;
        Ok(Self { heads, projections, output: Linear::load(weights, output, hidden, hidden)? })
    }

    /// `x` `[batch, tokens, hidden]` attends to `context` `[batch, others, context]`, or to itself without one; gives
    /// the shape of `x`. With a context it must be of [`Queries::Others`].
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
        let apart = |query: &Linear, others: &Linear| {
            let queries = by_head(query.forward(x)?, 1)?;
            let others = by_head(others.forward(context.unwrap_or(x))?, 2)?;
            Ok::<_, TchError>(queries.into_iter().chain(others).collect())
        };
        let qkv = match (&self.projections, context) {
            (Projections::Apart { query, others }, _) => apart(query, others)?,
            (Projections::Stacked(all), None) => by_head(all.forward(x)?, 3)?,
            (Projections::Stacked(all), Some(_)) => {
                apart(&all.narrow(0, hidden)?, &all.narrow(hidden, 2 * hidden)?)?
            }
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
