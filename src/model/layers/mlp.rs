//! The two-layer network inside every transformer block.

use tch::{TchError, Tensor};

use super::{Linear, activation::QUICK_GELU};
use crate::model::{ModelError, Weights, config::Activation};

/// `W2 activation(W1 x)`, with biases.
pub struct Mlp {
    inner: Linear,
    between: Between,
    outer: Linear,
}

/// What is computed between the halves.
enum Between {
    /// The activation as it is.
    Activation(Activation),
    /// `x sigmoid(x)`, which [`Activation::QuickGelu`] is when its constant `c` is moved into the weights:
    /// `x sigmoid(c x) = silu(c x) / c`. One pass over the widest tensor of the block instead of three.
    Silu,
}

impl Mlp {
    /// Both halves under their full `names`; the activation's output is `intermediate` wide.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        [inner, outer]: [&str; 2],
        hidden: i64,
        intermediate: i64,
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let width = match activation {
            Activation::SwiGlu => 2 * intermediate,
            _ => intermediate,
        };
        if activation == Activation::QuickGelu {
            let (into, back) = (QUICK_GELU, QUICK_GELU.recip());
            return Ok(Self {
                inner: Linear::load_scaled(weights, inner, hidden, width, [into, into])?,
                between: Between::Silu,
                outer: Linear::load_scaled(weights, outer, intermediate, hidden, [back, 1.0])?,
            });
        }
        Ok(Self {
            inner: Linear::load(weights, inner, hidden, width)?,
            between: Between::Activation(activation),
            outer: Linear::load(weights, outer, intermediate, hidden)?,
        })
    }

    /// `[.., hidden]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.outer.forward(&self.activate(x)?)
    }

    /// As [`Self::forward`], added to `sum`, which has the shape of `x`.
    pub fn add_to(&self, sum: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        self.outer.add_to(sum, &self.activate(x)?)
    }

    /// `[.., hidden]` to `[.., intermediate]`.
    fn activate(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mut x = self.inner.forward(x)?;
        match self.between {
            Between::Activation(activation) => activation.forward(x),
            Between::Silu => x.f_silu_(),
        }
    }
}
