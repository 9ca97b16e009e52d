//! From RGB8 to patches.

use std::{array, mem::MaybeUninit, slice};

use tch::{Device, Kind, TchError, Tensor};

use super::Linear;
use crate::{
    domain::{ImageSpec, Pixels},
    model::{ModelError, Weights},
};

const CHANNELS: usize = 3;

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

/// [`Normalize`] for a processor that has the pictures at hand: a byte has 256 values, so that each is looked up, on its way
/// from the picture into the batch.
pub struct NormalizeTable {
    /// `[1, 3, 256, 1]`: what each byte becomes in each channel.
    values: Tensor,
}

impl NormalizeTable {
    /// Takes the steps of `normalize`, which is on the CPU, for each byte.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn new(normalize: &Normalize) -> Result<Self, TchError> {
        let bytes: Vec<u8> = (0..=u8::MAX).flat_map(|byte| [byte; 3]).collect();
        let values = normalize.forward(&Tensor::f_from_slice(&bytes)?.f_view([1, 256, 1, 3])?)?;
        Ok(Self { values: values.f_contiguous()? })
    }

    /// Pictures of one size to `pixel_values` `[batch, 3, height, width]`.
    ///
    /// # Errors
    /// When their sizes differ, or memory is exhausted.
    pub fn forward(&self, pictures: &[&Pixels]) -> Result<Tensor, TchError> {
        let (height, width) = pictures.first().map_or((0, 0), |picture| (picture.height, picture.width));
        let n_bytes = height as usize * width as usize * CHANNELS;
        if let Some(other) =
            pictures.iter().find(|p| (p.height, p.width, p.rgb8.len()) != (height, width, n_bytes))
        {
            return Err(TchError::Shape(format!("{other:?} in a batch of {width}x{height}")));
        }
        let size = [pictures.len() as i64, CHANNELS as i64, i64::from(height), i64::from(width)];
        let batch = Tensor::f_empty(size, (self.values.kind(), self.values.device()))?;
        if batch.numel() == 0 {
            // It lies nowhere, not even at a place for nothing.
            return Ok(batch);
        }
        // As bits: what a value is does not matter here.
        match self.values.kind().elt_size_in_bytes() {
            2 => self.look_up::<u16>(pictures, &batch),
            _ => self.look_up::<u32>(pictures, &batch),
        }
        Ok(batch)
    }

    /// Fills `batch`, which has elements, as large as `T`.
    fn look_up<T: Copy>(&self, pictures: &[&Pixels], batch: &Tensor) {
        assert_eq!(size_of::<T>(), self.values.kind().elt_size_in_bytes());
        // SAFETY: Both are contiguous, on the CPU and of elements of this size; nobody else has the batch, and the values are
        // never written.
        let (values, batch) = unsafe {
            let values = slice::from_raw_parts(self.values.data_ptr().cast::<T>(), self.values.numel());
            (values, slice::from_raw_parts_mut(batch.data_ptr().cast::<MaybeUninit<T>>(), batch.numel()))
        };
        let (tables, _) = values.as_chunks::<256>();
        let mut planes = batch.chunks_exact_mut(batch.len() / (pictures.len() * CHANNELS));
        for picture in pictures {
            let (pixels, _) = picture.rgb8.as_chunks::<CHANNELS>();
            let [red, green, blue] = array::from_fn(|_| planes.next().expect("each picture has its planes"));
            for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
                red.write(tables[0][usize::from(pixel[0])]);
                green.write(tables[1][usize::from(pixel[1])]);
                blue.write(tables[2][usize::from(pixel[2])]);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Filter, Resize};

    fn picture(height: u32, width: u32, seed: u32) -> Pixels {
        let rgb8 = (0..height * width * 3).map(|i| (i * 7 + seed * 31) as u8).collect();
        Pixels { rgb8, height, width }
    }

    fn normalize(kind: Kind) -> Normalize {
        let spec = ImageSpec {
            mean: [0.481_454_7, 0.457_827_5, 0.408_210_7],
            std: [0.268_629_5, 0.261_302_6, 0.275_777_1],
            ..ImageSpec::centred(Resize::ShortestEdge(8), None, Filter::Bicubic)
        };
        Normalize::new(&spec, Device::Cpu, kind).unwrap()
    }

    #[test]
    fn looked_up_values_are_those_of_the_steps() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let normalize = normalize(kind);
            let table = NormalizeTable::new(&normalize).unwrap();
            for (n, height, width) in [(1_u32, 20, 30), (3, 5, 7), (2, 1, 1)] {
                let pictures: Vec<_> = (0..n).map(|seed| picture(height, width, seed)).collect();
                let bytes: Vec<u8> = pictures.iter().flat_map(|picture| &picture.rgb8).copied().collect();
                let size = [i64::from(n), i64::from(height), i64::from(width), 3];
                let expected = normalize.forward(&Tensor::from_slice(&bytes).view(size)).unwrap();
                let batch = table.forward(&pictures.iter().collect::<Vec<_>>()).unwrap();
                assert_eq!((batch.kind(), batch.size()), (kind, expected.size()));
                assert!(batch.equal(&expected), "{kind:?}");
            }
        }
    }

    #[test]
    fn pictures_of_several_sizes_are_no_batch() {
        let table = NormalizeTable::new(&normalize(Kind::Float)).unwrap();
        let error = table.forward(&[&picture(2, 3, 0), &picture(3, 2, 0)]).unwrap_err().to_string();
        assert!(error.contains("Pixels(2x3) in a batch of 3x2"), "{error}");
        assert_eq!(table.forward(&[]).unwrap().size(), [0, 3, 0, 0]);
    }
}
