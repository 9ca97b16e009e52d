//! Decodes to 8 bits per sample.
//!
//! JPEG goes to libjpeg (`jpeg.rs`), AVIF to rav1d (`avif.rs`), the rest to the `image` crate, which agrees with
//! Pillow bit for bit. Where Pillow's reading of 16-bit samples is sound it is followed (colour: the high byte); where
//! it turns almost everything white (gray) the samples are rounded to 8 bits instead.

use std::borrow::Cow;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader};
use tracing::Span;

use super::crop::Size;
use super::limits::{Limits, Paced};
use super::planes::Planes;
use super::sniff::Format;
use super::tiff::{Page, Unfilled};
use super::{ImagingError, ImagingOptions, alpha, avif, bmp, gif, icc, jpeg, png, tiff, webp};
use crate::domain::{Icc, Resize};

/// A picture's first frame, on its full canvas, not yet upright.
pub(super) struct Decoded {
    pub picture: Picture,
    /// How to turn it.
    pub orientation: Orientation,
    /// The size in its header.
    pub full: Size,
}

/// What a decoder gives.
pub(super) enum Picture {
    Pixels {
        image: DynamicImage,
        /// Columns and rows of the full size that a pixel stands for: 1, or 2, 4 or 8 if it was reduced.
        step: usize,
    },
    /// Of a JPEG, and only where pixels may differ a little from Pillow's.
    Planes(Planes),
}

impl From<DynamicImage> for Picture {
    fn from(image: DynamicImage) -> Self {
        Self::Pixels { image, step: 1 }
    }
}

/// Decodes the first frame of a file of this `format`. With `reduce_for` it may come smaller, but in no side below what
/// that resize asks for, or in planes.
///
/// # Errors
/// Any [`ImagingError`] but `AvifOff` and `ResizedTooLarge`. Size and memory are checked before pixels are allocated.
pub(super) fn decode(
    encoded: &[u8],
    format: Format,
    options: &ImagingOptions,
    limits: Limits,
    reduce_for: Option<Resize>,
) -> Result<Decoded, ImagingError> {
    let icc = options.icc;
    let decoded = match format {
        Format::Jpeg => jpeg::decode(encoded, limits, icc, reduce_for),
        Format::Avif => avif::decode(encoded, limits, icc),
        Format::Other(format, name) => other(encoded, format, name, limits, icc),
    }?;
    // For the trace of the picture's request.
    Span::current().record("sidelens.pixels", decoded.full.width * decoded.full.height);
    Ok(decoded)
}

fn other(
    encoded: &[u8],
    format: ImageFormat,
    name: &'static str,
    limits: Limits,
    icc: Icc,
) -> Result<Decoded, ImagingError> {
    let tiff = if format == ImageFormat::Tiff { tiff::examine(encoded, limits)? } else { Page::default() };
    let file = match format {
        ImageFormat::Png => png::mended(encoded)?,
        ImageFormat::WebP => webp::mended(encoded),
        ImageFormat::Tiff => tiff::mended(encoded, &tiff, limits)?,
        ImageFormat::Bmp => bmp::mended(encoded),
        ImageFormat::Gif => gif::mended(encoded),
        _ => encoded.into(),
    };
    let copy = if let Cow::Owned(copy) = &file { copy.len() as u64 } else { 0 };
    let encoded = &file[..];
    if tiff.is_cmyk {
        return tiff::decode(encoded, limits, icc);
    }
    let failed = |error| limits.check_time(name).err().unwrap_or_else(|| failure(error, name, &limits));
    let paced = if tiff.is_fax { Paced::in_small_pieces } else { Paced::new };
    let mut reader = ImageReader::with_format(paced(encoded, limits), format);
    let mut own_limits = image::Limits::no_limits();
    own_limits.max_alloc = Some(limits.max_memory_bytes.min(header_bytes(format, encoded)));
    reader.limits(own_limits.clone());
    let mut decoder = match reader.into_decoder() {
        Err(ImageError::Unsupported(_)) if format == ImageFormat::Tiff => {
            return tiff::decode(encoded, limits, icc);
        }
        decoder => decoder.map_err(failed)?,
    };
    let (width, mut height) = decoder.dimensions();
    limits.check_size(name, width.into(), height.into())?;
    let pixels = u64::from(width) * u64::from(height);
    let frame = decoder.total_bytes();
    // A PNG's is inflated already, whether anybody wants it or not; the decoder keeps it beside ours.
    let counts = icc == Icc::Srgb || format == ImageFormat::Png;
    let profile = if counts { decoder.icc_profile().ok().flatten() } else { None };
    let profiles = 2 * profile.as_ref().map_or(0, |profile| profile.len() as u64);
    let beside = pixels.saturating_mul(beside_frame(format, encoded, frame / pixels));
    limits.check_memory(name, frame.saturating_add(beside).saturating_add(profiles + copy))?;
    own_limits.max_alloc = Some(limits.max_memory_bytes - frame);
    decoder.set_limits(own_limits).map_err(failed)?;
    let orientation = match format {
        ImageFormat::Png => png::orientation(encoded),
        ImageFormat::WebP => webp::orientation(encoded),
        ImageFormat::Tiff => tiff::orientation(encoded),
        _ => Orientation::NoTransforms,
    };
    let profile = profile.filter(|_| icc == Icc::Srgb);
    let mut image = to_8_bit(DynamicImage::from_decoder(decoder).map_err(failed)?);
    limits.check_time(name)?;
    if let Some(Unfilled { rows, .. }) = tiff.unfilled {
        height = rows;
        image = image.crop_imm(0, 0, width, height);
    }
    if tiff.is_premultiplied {
        alpha::divide(&mut image);
    }
    if let (ImageFormat::Gif, Some(colour)) = (format, gif::canvas(encoded)) {
        alpha::fill(&mut image, colour);
    }
    if let Some(profile) = profile {
        image = icc::to_srgb(image, &profile);
    }
    let full = Size { width: width as usize, height: height as usize };
    Ok(Decoded { picture: image.into(), orientation, full })
}

/// Bytes that a decoder may take for what is before the pixels.
fn header_bytes(format: ImageFormat, encoded: &[u8]) -> u64 {
    const METADATA: u64 = 64 << 20;
    match format {
        // It inflates a colour profile up to that, whether anybody wants it or not; beside that it has some rows, whose
        // length the header tells.
        ImageFormat::Png => {
            let columns = encoded.get(16..20).and_then(|width| width.first_chunk().copied());
            METADATA + 16 * u64::from(columns.map_or(0, u32::from_be_bytes))
        }
        _ => u64::MAX,
    }
}

/// Bytes per pixel beside the decoded frame, at the worst moment: a decoder's own, or what is made of the frame
/// afterwards (8 bits, RGB, turned).
fn beside_frame(format: ImageFormat, encoded: &[u8], bytes_per_pixel: u64) -> u64 {
    const AFTERWARDS: u64 = 4;
    let own = match format {
        // The strips, as they are stored.
        ImageFormat::Tiff => bytes_per_pixel,
        // The canvas, a frame and its planes.
        ImageFormat::WebP if webp::is_animated(encoded) => 10,
        _ => 0,
    };
    own.max(AFTERWARDS)
}

fn failure(error: ImageError, format: &'static str, limits: &Limits) -> ImagingError {
    match error {
        ImageError::IoError(error) if tiff::is_lost_in_lzw(&error) => {
            ImagingError::unsupported(format, tiff::LOST_IN_LZW)
        }
        ImageError::Unsupported(error) => ImagingError::unsupported(format, error),
        ImageError::Limits(_) => limits.too_much_memory(format),
        error => ImagingError::corrupt(format, error),
    }
}

fn to_8_bit(image: DynamicImage) -> DynamicImage {
    fn map<P, Q>(image: ImageBuffer<P, Vec<u16>>, to_u8: impl Fn(u16) -> u8) -> ImageBuffer<Q, Vec<u8>>
    where
        P: image::Pixel<Subpixel = u16>,
        Q: image::Pixel<Subpixel = u8>,
    {
        let (width, height) = image.dimensions();
        let samples = image.into_raw().into_iter().map(to_u8).collect();
        ImageBuffer::from_raw(width, height, samples).expect("as many samples as before")
    }
    let high_byte = |v: u16| (v >> 8) as u8;
    let rounded = |v: u16| ((u32::from(v) + 128) / 257) as u8;
    match image {
        DynamicImage::ImageLuma16(image) => DynamicImage::ImageLuma8(map(image, rounded)),
        DynamicImage::ImageLumaA16(image) => DynamicImage::ImageLumaA8(map(image, high_byte)),
        DynamicImage::ImageRgb16(image) => DynamicImage::ImageRgb8(map(image, high_byte)),
        DynamicImage::ImageRgba16(image) => DynamicImage::ImageRgba8(map(image, high_byte)),
        DynamicImage::ImageRgb32F(_) => image.to_rgb8().into(),
        DynamicImage::ImageRgba32F(_) => image.to_rgba8().into(),
        image => image,
    }
}
