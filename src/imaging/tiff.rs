//! TIFF of the kinds that the image crate refuses: colours from a palette, and gray with transparency.
//!
//! The tiff crate knows no palettes either. But indices are samples like others, so it is given the file with another
//! word for what they mean.

mod jpegs;
#[cfg(test)]
mod tests;

use image::{DynamicImage, GrayAlphaImage, RgbImage, metadata::Orientation};
use tiff::{
    ColorType, TiffError,
    decoder::{self, Decoder, DecodingResult},
    tags::Tag,
};

use super::crop::Size;
use super::decode::Decoded;
use super::limits::{Limits, Paced};
use super::{ImagingError, directory, icc, orient};
use crate::domain::Icc;

const FORMAT: &str = "TIFF";

/// Tags that are looked up or changed here.
const MEANING: u16 = 262;
const XMP: u16 = 700;
/// `PhotometricInterpretation`: what samples mean.
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;
/// `Compression`: by the rules of CCITT.
const FAX: [u16; 3] = [2, 3, 4];
/// `ExtraSamples`: colours multiplied by their alpha, and not.
const ASSOCIATED_ALPHA: u16 = 1;
const UNASSOCIATED_ALPHA: u16 = 2;
/// `PlanarConfiguration`: the samples of a pixel stand side by side.
const CHUNKY: u16 = 1;

/// Decodes the first page.
///
/// # Errors
/// Any [`ImagingError`] but `ResizedTooLarge`; size and memory are checked before pixels are allocated.
pub(super) fn decode(encoded: &[u8], limits: Limits, icc: Icc) -> Result<Decoded, ImagingError> {
    let failed = |error| failure(error, &limits);
    let mut file = Decoder::new(Paced::new(encoded, limits)).map_err(failed)?;
    let (width, height) = file.dimensions().map_err(failed)?;
    limits.check_size(FORMAT, width.into(), height.into())?;
    if is_fax(&mut file) {
        return Err(unsupported("a fax in colours"));
    }
    // What is decoded, what is made of it, upright RGB; and a copy of the file.
    let pixels = u64::from(width) * u64::from(height);
    limits.check_memory(FORMAT, pixels.saturating_mul(2 + 3 + 3).saturating_add(encoded.len() as u64))?;
    let own_limits = raised_limits(pixels, encoded);
    let mut file = file.with_limits(own_limits.clone());

    let mut tag = |tag| file.find_tag_unsigned::<u16>(tag).map_err(failed);
    let (meaning, layout) = (tag(Tag::PhotometricInterpretation)?, tag(Tag::PlanarConfiguration)?);
    let bits = tag(Tag::BitsPerSample);
    let mut image: DynamicImage = if meaning == Some(PALETTE) && matches!(bits, Ok(Some(8))) {
        let map = file.get_tag_u16_vec(Tag::ColorMap).map_err(failed)?;
        let [reds, greens, blues] = thirds(&map).ok_or_else(|| corrupt("its palette has not 256 colours"))?;
        let mut gray = encoded.to_vec();
        directory::set(&mut gray, MEANING, BLACK_IS_ZERO).ok_or_else(|| unsupported("its palette"))?;
        let gray = Decoder::new(Paced::new(&gray, limits)).map_err(failed)?;
        let mut gray = gray.with_limits(own_limits);
        let indices = samples(gray.read_image().map_err(failed)?)?;
        let colour = |&index: &u8| [reds, greens, blues].map(|map| (map[usize::from(index)] >> 8) as u8);
        let pixels = indices.iter().flat_map(colour).collect();
        RgbImage::from_raw(width, height, pixels).ok_or_else(|| corrupt("it lacks pixels"))?.into()
    } else {
        match (file.colortype().map_err(failed)?, layout.unwrap_or(CHUNKY)) {
            (ColorType::Multiband { bit_depth: 8, num_samples: 2 }, CHUNKY) => {
                if extra_sample(&mut file) != Some(UNASSOCIATED_ALPHA) {
                    return Err(unsupported("its second sample is no plain alpha"));
                }
                let pixels = samples(file.read_image().map_err(failed)?)?;
                GrayAlphaImage::from_raw(width, height, pixels)
                    .ok_or_else(|| corrupt("it lacks pixels"))?
                    .into()
            }
            (other, _) => return Err(unsupported(format!("its samples are {other:?}"))),
        }
    };
    limits.check_time(FORMAT)?;
    // Unreadable metadata does not spoil readable pixels.
    if let (Icc::Srgb, Ok(profile)) = (icc, file.get_tag_u8_vec(Tag::IccProfile)) {
        image = icc::to_srgb(image, &profile);
    }
    Ok(Decoded {
        picture: image.into(),
        orientation: orientation(encoded),
        full: Size { width: width as usize, height: height as usize },
    })
}

/// How the first page is to be turned.
pub(super) fn orientation(encoded: &[u8]) -> Orientation {
    orient::of(Some(encoded), directory::bytes(encoded, XMP))
}

/// What the image crate does not tell of a first page.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Page {
    /// Whether its colours are multiplied by their alpha.
    pub is_premultiplied: bool,
    /// Whether it is compressed as a fax: each line by the one before it, which may have any number of changes.
    pub is_fax: bool,
}

/// Looks at the first page, and whether its parts take no more than a picture may, which the image crate does not ask. What
/// else is wrong with the file is said by those who decode it.
///
/// # Errors
/// Those of [`jpegs::check`]; [`ImagingError::Unsupported`] for a page of too many parts;
/// [`ImagingError::TooManyPixels`] and [`ImagingError::TooMuchMemory`] for parts that are too large.
pub(super) fn examine(encoded: &[u8], limits: Limits) -> Result<Page, ImagingError> {
    let mut page = match Decoder::new(Paced::new(encoded, limits)) {
        Ok(page) => page,
        // The crate's own limit, and none of ours.
        Err(TiffError::LimitsExceeded) => return Err(unsupported("a list in its directory is too long")),
        Err(_) => return Ok(Page::default()),
    };
    if let Ok((columns, rows)) = page.dimensions() {
        let pixels = u64::from(columns) * u64::from(rows);
        let chunk = chunk(&mut page, [columns, rows]);
        // A part is decoded whole, however little of it the page shows, and by rows of all its samples, whatever becomes of
        // them.
        let [width, height] = chunk;
        limits.check_size(FORMAT, width, height)?;
        let mut first = |tag| page.find_tag_unsigned_vec::<u64>(tag).ok().flatten()?.first().copied();
        let samples = first(Tag::SamplesPerPixel).unwrap_or(1);
        let bytes = first(Tag::BitsPerSample).unwrap_or(1).div_ceil(8);
        let row = width.saturating_mul(samples.saturating_mul(bytes));
        let frame = pixels.saturating_mul(samples.min(4).saturating_mul(bytes).saturating_add(4));
        limits.check_memory(FORMAT, row.saturating_add(frame))?;
        jpegs::check(&mut page, chunk, encoded, limits)?;
    }
    Ok(Page {
        is_premultiplied: extra_sample(&mut page) == Some(ASSOCIATED_ALPHA),
        is_fax: is_fax(&mut page),
    })
}

fn is_fax(page: &mut Decoder<Paced<'_>>) -> bool {
    let compression = page.find_tag_unsigned::<u16>(Tag::Compression).ok().flatten();
    compression.is_some_and(|compression| FAX.contains(&compression))
}

/// Columns and rows of the tiles of a page of this size, or of its strips.
fn chunk(page: &mut Decoder<Paced<'_>>, [columns, rows]: [u32; 2]) -> [u64; 2] {
    let mut number = |tag| page.find_tag_unsigned::<u64>(tag).ok().flatten();
    match (number(Tag::TileWidth), number(Tag::TileLength)) {
        (Some(width), Some(height)) => [width, height],
        _ => [columns.into(), number(Tag::RowsPerStrip).unwrap_or(u64::MAX).min(rows.into())],
    }
}

/// What the first sample beyond the colours is.
fn extra_sample(file: &mut Decoder<Paced<'_>>) -> Option<u16> {
    file.find_tag_unsigned_vec(Tag::ExtraSamples).ok().flatten()?.first().copied()
}

/// The crate's own limits, raised to what was found to be within ours: two samples for each pixel.
fn raised_limits(pixels: u64, encoded: &[u8]) -> decoder::Limits {
    let mut own = decoder::Limits::default();
    let needed = usize::try_from(pixels.saturating_mul(2)).unwrap_or(usize::MAX);
    own.decoding_buffer_size = own.decoding_buffer_size.max(needed);
    own.intermediate_buffer_size = own.intermediate_buffer_size.max(encoded.len());
    own
}

fn corrupt(detail: impl ToString) -> ImagingError {
    ImagingError::corrupt(FORMAT, detail)
}

fn unsupported(detail: impl ToString) -> ImagingError {
    ImagingError::unsupported(FORMAT, detail)
}

fn failure(error: TiffError, limits: &Limits) -> ImagingError {
    if let Err(too_slow) = limits.check_time(FORMAT) {
        return too_slow;
    }
    match error {
        TiffError::UnsupportedError(error) => unsupported(error),
        TiffError::LimitsExceeded => limits.too_much_memory(FORMAT),
        error => corrupt(error),
    }
}

/// Samples of 8 bits.
fn samples(decoded: DecodingResult) -> Result<Vec<u8>, ImagingError> {
    match decoded {
        DecodingResult::U8(samples) => Ok(samples),
        _ => Err(corrupt("its samples have not 8 bits")),
    }
}

/// All reds, then all greens, then all blues.
fn thirds(map: &[u16]) -> Option<[&[u16; 256]; 3]> {
    let (thirds, rest) = map.as_chunks::<256>();
    match (thirds, rest) {
        ([reds, greens, blues], []) => Some([reds, greens, blues]),
        _ => None,
    }
}
