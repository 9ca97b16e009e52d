//! From RGB8 to patches.

use tch::{Device, Kind, TchError, Tensor};

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
            |values: &[f32; 3]| Tensor::f_from_slice(values)?.f_view([1, 1, 1, 3])?.f_to_device(device);
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
        let x = rgb8.f_to_kind(Kind::Float)?.f_mul_scalar(self.rescale_factor)?;
        let x = x.f_sub(&self.mean)?.f_div(&self.std)?;
        x.f_permute([0, 3, 1, 2])?.f_contiguous()?.f_to_kind(self.kind)
    }
}

/// A convolution whose stride is its kernel: one vector per patch.
pub struct PatchEmbedding {
    weight: Tensor,
    bias: Option<Tensor>,
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
        let weight = weights.tensor(&format!("{name}.weight"), &[hidden, 3, patch, patch])?;
        let bias = has_bias.then(|| weights.tensor(&format!("{name}.bias"), &[hidden])).transpose()?;
        Ok(Self { weight, bias, patch })
    }

    /// `[batch, 3, height, width]` to `[batch, patches, hidden]`, rows first. A remainder is dropped.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
        let stride = [self.patch, self.patch];
        let x = pixel_values.f_conv2d(&self.weight, self.bias.as_ref(), stride, [0, 0], [1, 1], 1)?;
        x.f_flatten(2, 3)?.f_transpose(1, 2)
    }
}

/// Puts the learned token `first` (`hidden` components in any shape), or several of them, in front of `tokens`
/// `[batch, tokens, hidden]`.
pub fn with_first_token(first: &Tensor, tokens: Tensor) -> Result<Tensor, TchError> {
    let (batch, _, hidden) = tokens.size3()?;
    let first = first.f_view([1, -1, hidden])?.f_expand([batch, -1, hidden], false)?;
    Tensor::f_cat(&[first, tokens], 1)
}
