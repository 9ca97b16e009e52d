//! From RGB8 to patches.

use tch::{Device, Kind, TchError, Tensor};

use super::Linear;
use crate::{
    domain::ImageSpec,
    model::{ModelError, Weights},
};

/// Rescaling and normalisation on the device, so that pictures travel as bytes.
pub struct Normalize {
    rescale_factor: f64,
    mean: Tensor,
    std: Tensor,
    kind: Kind,
}

impl Normalize {
    /// Puts the constants of `spec` on the device.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn new(spec: &ImageSpec, device: Device, kind: Kind) -> Result<Self, TchError> {
        let channels =
            |values: &[f32; 3]| Tensor::f_from_slice(values)?.f_view([1, 3, 1, 1])?.f_to_device(device);
        Ok(Self {
            rescale_factor: spec.rescale_factor,
            mean: channels(&spec.mean)?,
            std: channels(&spec.std)?,
            kind,
        })
    }

    /// RGB8 `[batch, height, width, 3]` to `pixel_values` `[batch, 3, height, width]`.
    ///
    /// The steps and their order are the reference's, in float32: `(x * rescale_factor - mean) / std`.
    pub fn forward(&self, rgb8: &Tensor) -> Result<Tensor, TchError> {
        // Turned while they are bytes, and because a constant for each plane is read faster than three in turn.
        let mut x = rgb8.f_permute([0, 3, 1, 2])?.f_contiguous()?.f_to_kind(Kind::Float)?;
        x.f_mul_scalar_(self.rescale_factor)?.f_sub_(&self.mean)?.f_div_(&self.std)?.f_to_kind(self.kind)
    }
}

/// A convolution whose stride is its kernel: one vector per patch, and so one product for all patches.
pub struct PatchEmbedding {
    product: Linear,
    patch: i64,
}

impl PatchEmbedding {
    /// `{name}.weight` `[hidden, 3, patch, patch]` and, if `has_bias`, `{name}.bias` `[hidden]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        name: &str,
        hidden: i64,
        patch: i64,
        has_bias: bool,
    ) -> Result<Self, ModelError> {
        let product = Linear::load_kernel(weights, name, [hidden, 3, patch, patch], has_bias)?;
        Ok(Self { product, patch })
    }

    /// `[batch, 3, height, width]` to `[batch, patches, hidden]`, rows first. A remainder is dropped.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
        let (batch, channels, height, width) = pixel_values.size4()?;
        let patch = self.patch;
        let (rows, columns) = (height / patch, width / patch);
        let whole = pixel_values.f_narrow(2, 0, rows * patch)?.f_narrow(3, 0, columns * patch)?;
        let x =
            whole.f_reshape([batch, channels, rows, patch, columns, patch])?.f_permute([0, 2, 4, 1, 3, 5])?;
        self.product.forward(&x.f_reshape([batch, rows * columns, channels * patch * patch])?)
    }
}

/// Puts the learned token `first` (`hidden` components in any shape), or several of them, in front of `tokens`
/// `[batch, tokens, hidden]`.
pub fn with_first_token(first: &Tensor, tokens: Tensor) -> Result<Tensor, TchError> {
    let (batch, _, hidden) = tokens.size3()?;
    let first = first.f_view([1, -1, hidden])?.f_expand([batch, -1, hidden], false)?;
    Tensor::f_cat(&[first, tokens], 1)
}
