//! The functions between the halves of an MLP.

use tch::{TchError, Tensor};

use crate::model::config::Activation;

impl Activation {
    /// Any shape to the same shape; only [`Self::SwiGlu`] halves the last dimension.
    pub fn forward(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid_()?.f_mul(x),
            Self::Gelu => x.f_gelu("none"),
            Self::GeluTanh => x.f_gelu("tanh"),
            Self::Relu => x.f_relu(),
            Self::Tanh => x.f_tanh(),
            Self::Identity => Ok(x.shallow_clone()),
            Self::SwiGlu => {
                let halves = x.f_chunk(2, -1)?;
                halves[0].f_silu()?.f_mul(&halves[1])
            }
        }
    }
}
