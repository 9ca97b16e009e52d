//! Encoded bytes to RGB8 at the model's input size, as Pillow 12 and transformers do it: with [`Decode::Exact`] to
//! the pixel, with [`Decode::Fast`] but for JPEGs that are decoded at a fraction of their size.
//!
//! Pure functions on the caller's thread. The steps are those of [`prepare`], one file each. Rescaling and
//! normalisation are left to the device, fetching and base64 to the rooms before this one.
//!
//! libjpeg's errors unwind and are caught in `jpeg.rs`. A panic of another decoder is not: the caller runs
//! this room behind its own `catch_unwind`.

mod alpha;
mod crop;
mod decode;
mod error;
mod jpeg;
mod orient;
mod resample;
#[cfg(test)]
mod tests;

use crate::domain::{Background, Decode, ImageSpec, Pixels};

pub use error::ImagingError;

/// What the service decides about every picture, whatever the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagingOptions {
    /// Whether a large JPEG may be decoded at a fraction of its size.
    pub decode: Decode,
    /// What shows through transparent pixels.
    pub background: Background,
    /// Most pixels (width times height) of a picture, checked in its header before anything is allocated.
    pub max_pixels: u64,
}

/// Makes an encoded picture (JPEG, PNG, GIF, BMP, WebP or TIFF) ready for the image tower of `spec`.
///
/// Returns RGB8 `[height, width, 3]`, of the crop's size where `spec` has one, else of the resize's. Colour
/// profiles are ignored; of an animation the first frame counts.
///
/// # Errors
/// [`ImagingError`], whose [`kind`](ImagingError::kind) says what the caller is told. All are the caller's fault.
pub fn prepare(encoded: &[u8], spec: &ImageSpec, options: &ImagingOptions) -> Result<Pixels, ImagingError> {
    let reduce_for = match options.decode {
        Decode::Fast => Some(spec.resize),
        Decode::Exact => None,
    };
    let decoded = decode::decode(encoded, options.max_pixels, reduce_for)?;
    let (upright, grid) = orient::upright(decoded);
    let rgb = alpha::flatten(upright, options.background);
    let resized = resample::target_size(grid.full(), spec.resize);
    let window = crop::window(resized, spec.crop);
    window.check(options.max_pixels)?;
    let resampled = resample::resample(&rgb, &grid, resized, &window, spec.filter);
    Ok(crop::pad(resampled, &window))
}
