//! The functions between the halves of an MLP.

use tch::{TchError, Tensor};

use crate::model::config::Activation;

/// The constant of [`Activation::QuickGelu`], `x sigmoid(1.702 x)`.
pub(super) const QUICK_GELU: f64 = 1.702;

impl Activation {
    /// Any shape to the same shape; only [`Self::SwiGlu`] halves the last dimension. `x` is overwritten.
    pub fn forward(self, mut x: Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::QuickGelu => x.f_mul_scalar(QUICK_GELU)?.f_sigmoid_()?.f_mul_(&x),
            Self::Gelu => x.f_gelu_("none"),
            Self::GeluTanh => x.f_gelu_("tanh"),
            Self::Relu => x.f_relu_(),
            Self::Silu => x.f_silu_(),
            Self::Tanh => x.f_tanh_(),
            Self::Identity => Ok(x),
            Self::SwiGlu => {
                // Not into the half itself, whose rows lie apart.
                let mut halves = x.f_chunk(2, -1)?;
                halves[0].f_silu_()?.f_mul(&halves[1])
            }
        }
    }
}
