//! Encoded bytes to RGB8 at the model's input size, as Pillow 12 and transformers do it: with [`Decode::Exact`] to
//! the pixel, with [`Decode::Fast`] but for JPEGs, which are decoded at a fraction of their size or resized in planes.
//!
//! Pure functions on the caller's thread. The steps are those of [`prepare`], one file each. Rescaling and
//! normalisation are left to the device, fetching and base64 to the rooms before this one.
//!
//! libjpeg's errors unwind and are caught in `jpeg.rs`. A panic of another decoder is not: the caller runs
//! this room behind its own `catch_unwind`. One of rav1d, which decodes AVIF, ends the process, and a lossless WebP may ask
//! for any memory: the service has both decoded in others ([`Workers`]).

mod alpha;
mod avif;
mod bmp;
mod crop;
mod decode;
mod directory;
mod error;
#[cfg(test)]
mod format_tests;
mod gif;
mod icc;
mod jpeg;
mod limits;
mod orient;
mod planes;
mod png;
mod positions;
mod resample;
mod scans;
mod sniff;
#[cfg(test)]
mod tests;
mod tiff;
mod webp;
mod workers;
mod yuv;

use std::sync::Arc;

use image::ImageFormat;
use serde::{Deserialize, Serialize};
use tracing::Span;

use crate::domain::{Background, Decode, Icc, ImageSpec, Pixels};

use crop::Size;
use decode::{Decoded, Picture};
pub use error::ImagingError;
use limits::Limits;
use orient::Grid;
use sniff::{Format, sniff};
pub use workers::{ServeError, WorkerCommand, Workers, serve};

/// What the service decides about every picture, whatever the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImagingOptions {
    /// Whether a large JPEG may be decoded at a fraction of its size.
    pub decode: Decode,
    /// What shows through transparent pixels.
    pub background: Background,
    /// What happens to embedded colour profiles.
    pub icc: Icc,
    /// Whether AVIF is read, or refused by name.
    pub avif: bool,
    /// Where pictures are decoded that may end their process. None: in this one, for those who may lose it.
    #[serde(skip)]
    pub workers: Option<Arc<Workers>>,
    /// Most pixels (width times height) of a picture, checked in its header before anything is allocated.
    pub max_pixels: u64,
    /// Most bytes that decoding a picture may take, reckoned from its header in the same way, and resizing it.
    pub max_memory_bytes: u64,
    /// Milliseconds of CPU time that decoding and resizing may take.
    pub timeout_ms: u64,
}

impl ImagingOptions {
    /// To the pixel as the Python reference, within the limits of `config/default.toml`.
    pub const REFERENCE: Self = Self {
        decode: Decode::Exact,
        background: Background::WHITE,
        icc: Icc::Ignore,
        avif: true,
        workers: None,
        max_pixels: 50_000_000,
        max_memory_bytes: 512 << 20,
        timeout_ms: 10_000,
    };
}

/// Makes an encoded picture (JPEG, PNG, GIF, BMP, WebP, TIFF or AVIF) ready for the image tower of `spec`.
///
/// Returns RGB8 `[height, width, 3]`, of the crop's size where `spec` has one, else of the resize's. Of an
/// animation the first frame counts.
///
/// # Errors
/// [`ImagingError`], whose [`kind`](ImagingError::kind) says what the caller is told. All but `NoDecoder` are the caller's
/// fault.
pub fn prepare(encoded: &[u8], spec: &ImageSpec, options: &ImagingOptions) -> Result<Pixels, ImagingError> {
    if encoded.is_empty() {
        return Err(ImagingError::Empty);
    }
    let format = sniff(encoded).map_err(|found| ImagingError::UnknownFormat { found })?;
    // For the trace of the picture's request.
    Span::current().record("sidelens.format", format.name());
    let may_end_its_process = match format {
        Format::Avif if !options.avif => return Err(ImagingError::AvifOff),
        Format::Avif => true,
        Format::Other(ImageFormat::WebP, _) => {
            webp::most_bytes(encoded).is_some_and(|bytes| bytes > options.max_memory_bytes)
        }
        Format::Jpeg | Format::Other(..) => false,
    };
    if let (Some(workers), true) = (&options.workers, may_end_its_process) {
        return workers.prepare(format.name(), encoded, spec, options);
    }
    let reduce_for = match options.decode {
        Decode::Fast => Some(spec.resize),
        Decode::Exact => None,
    };
    let limits = Limits::begin(options);
    let Decoded { picture, orientation, full } =
        decode::decode(encoded, format, options, limits, reduce_for)?;
    let upright = orient::upright_size(full, orientation);
    let resized = positions::target_size(upright, spec.resize);
    let window = crop::window(resized, spec.crop);
    window.check(options.max_pixels)?;
    let resampled = match picture {
        Picture::Pixels { mut image, step } => {
            let rgb = 3 * u64::from(image.width()) * u64::from(image.height());
            let taps = resample::bytes(upright, resized, &window, spec.filter);
            limits.check_memory(format.name(), rgb.saturating_add(taps))?;
            image.apply_orientation(orientation);
            let grid = Grid::upright(full, Size { width: step, height: step }, orientation);
            let rgb = alpha::flatten(image, options.background);
            let check_time = || limits.check_time(format.name());
            resample::resample(&rgb, &grid, resized, &window, spec.filter, check_time)?
        }
        Picture::Planes(planes) => planes.resample(full, orientation, resized, &window, spec.filter),
    };
    Ok(crop::pad(resampled, &window))
}
