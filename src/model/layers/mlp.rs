//! The two-layer network inside every transformer block.

use tch::{TchError, Tensor};

use super::Linear;
use crate::model::{ModelError, Weights, config::Activation};

/// `W2 activation(W1 x)`, with biases.
pub struct Mlp {
    inner: Linear,
    activation: Activation,
    outer: Linear,
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
        Ok(Self {
            inner: Linear::load(weights, inner, hidden, width)?,
            activation,
            outer: Linear::load(weights, outer, intermediate, hidden)?,
        })
    }

    /// `[.., hidden]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.outer.forward(&self.activation.forward(&self.inner.forward(x)?)?)
    }
}
