//! Tells formats apart by their first bytes and decodes them to 8 bits per sample.
//!
//! JPEG goes to libjpeg (`jpeg.rs`), the rest to the `image` crate, which agrees with Pillow bit for bit. Where
//! Pillow's reading of 16-bit samples is sound it is followed (colour: the high byte); where it turns almost
//! everything white (gray) the samples are rounded to 8 bits instead.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::crop::Size;
use super::{ImagingError, jpeg};
use crate::domain::Resize;

/// A picture's first frame, on its full canvas, not yet upright.
pub(super) struct Decoded {
    pub image: DynamicImage,
    /// How to turn it.
    pub orientation: Orientation,
    /// The size in its header.
    pub full: Size,
    /// Columns and rows of the full size that a pixel of `image` stands for: 1, or 2, 4 or 8 if it was reduced.
    pub step: usize,
}

/// Decodes the first frame. With `reduce_for` it may come smaller, but in no side below what that resize asks for.
///
/// # Errors
/// Any [`ImagingError`] but `ResizedTooLarge`. The size is checked before pixels are allocated.
pub(super) fn decode(
    encoded: &[u8],
    max_pixels: u64,
    reduce_for: Option<Resize>,
) -> Result<Decoded, ImagingError> {
    if encoded.is_empty() {
        return Err(ImagingError::Empty);
    }
    let (format, name) = match image::guess_format(encoded) {
        Ok(ImageFormat::Jpeg) => return jpeg::decode(encoded, max_pixels, reduce_for),
        Ok(ImageFormat::Png) => (ImageFormat::Png, "PNG"),
        Ok(ImageFormat::Gif) => (ImageFormat::Gif, "GIF"),
        Ok(ImageFormat::Bmp) => (ImageFormat::Bmp, "BMP"),
        Ok(ImageFormat::WebP) => (ImageFormat::WebP, "WebP"),
        Ok(ImageFormat::Tiff) => (ImageFormat::Tiff, "TIFF"),
        _ => return Err(ImagingError::UnknownFormat { found: name_of_other(encoded) }),
    };
    let failed = |error| failure(error, name, max_pixels);
    let mut reader = ImageReader::with_format(Cursor::new(encoded), format);
    let mut limits = Limits::no_limits();
    // The widest pixel has 16 bytes (a float RGBA TIFF); the rest is for the decoders' own buffers.
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(16 << 20));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width.into(), height.into(), max_pixels)?;
    // Unreadable metadata does not spoil readable pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let full = Size { width: width as usize, height: height as usize };
    Ok(Decoded { image: to_8_bit(image), orientation, full, step: 1 })
}

/// Refuses a size that a header claims.
pub(super) fn check_size(
    format: &'static str,
    width: u64,
    height: u64,
    max_pixels: u64,
) -> Result<(), ImagingError> {
    match width.saturating_mul(height) {
        0 => Err(ImagingError::Corrupt { format, detail: format!("its size is {width}x{height}") }),
        pixels if pixels > max_pixels => {
            Err(ImagingError::TooManyPixels { width, height, limit: max_pixels })
        }
        _ => Ok(()),
    }
}

fn failure(error: ImageError, format: &'static str, max_pixels: u64) -> ImagingError {
    match error {
        ImageError::Unsupported(error) => ImagingError::Unsupported { format, detail: error.to_string() },
        ImageError::Limits(_) => ImagingError::TooMuchMemory { format, limit: max_pixels },
        error => ImagingError::Corrupt { format, detail: error.to_string() },
    }
}

/// What bytes that are no readable picture look like, so that the message helps.
fn name_of_other(encoded: &[u8]) -> &'static str {
    if let Some([b'f', b't', b'y', b'p', brand @ ..]) = encoded.get(4..12) {
        return match brand {
            b"avif" | b"avis" => "an AVIF picture",
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => "a HEIC picture",
            _ => "a video or another ISO media file",
        };
    }
    if encoded.starts_with(b"%PDF") {
        return "a PDF document";
    }
    let head = String::from_utf8_lossy(&encoded[..encoded.len().min(1024)]).to_ascii_lowercase();
    let head = head.trim_start_matches('\u{feff}').trim_start();
    if head.starts_with('<') && head.contains("<svg") {
        "an SVG drawing"
    } else if head.starts_with("<!doctype html") || head.starts_with("<html") {
        "an HTML page"
    } else if head.chars().all(|c| c != '\u{fffd}' && (!c.is_control() || c.is_whitespace())) {
        "text"
    } else {
        "not a picture, or one of an unknown format"
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
