//! TIFF of the kinds that the image crate refuses or converts in another way: colours from a palette, gray with
//! transparency, inks, and luma with chroma in JPEGs.
//!
//! The tiff crate knows no palettes either. But indices are samples like others, so it is given the file with another
//! word for what they mean. Likewise with what it reads otherwise than libtiff.

mod jpegs;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::ops::Range;

use image::{DynamicImage, GrayAlphaImage, RgbImage, metadata::Orientation};
use tiff::{
    ColorType, TiffError,
    decoder::{self, ChunkType, Decoder, DecodingResult},
    tags::Tag,
};

use super::crop::Size;
use super::decode::Decoded;
use super::limits::{Limits, Paced};
use super::{ImagingError, directory, icc, jpeg, orient};
use crate::domain::Icc;

const FORMAT: &str = "TIFF";

/// Tags that are looked up or changed here.
const ROWS: u16 = 257;
const MEANING: u16 = 262;
const PREDICTOR: u16 = 317;
const XMP: u16 = 700;
/// `PhotometricInterpretation`: what samples mean.
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;
/// `Compression`: by the rules of CCITT; those that samples are made ready for by a predictor; each part a JPEG, but for the
/// tables that they share.
const FAX: [u16; 3] = [2, 3, 4];
const PREDICTED: [u16; 3] = [5, 8, 32946];
const JPEG: u16 = 7;
/// `Predictor`: none.
const UNPREDICTED: u16 = 1;
/// `FillOrder`: the first pixel in the lowest bit of a byte.
const LOWEST_FIRST: u16 = 2;
/// `ExtraSamples`: colours multiplied by their alpha, and not.
const ASSOCIATED_ALPHA: u16 = 1;
const UNASSOCIATED_ALPHA: u16 = 2;
/// `PlanarConfiguration`: the samples of a pixel stand side by side.
const CHUNKY: u16 = 1;
/// Each in a plane of its own.
const PLANAR: u64 = 2;

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
    let colour = file.colortype();
    // What is decoded, what is made of it, upright RGB; and copies of the file.
    let pixels = u64::from(width) * u64::from(height);
    let sample_bytes =
        |colour: &ColorType| u64::from(colour.bit_depth()).div_ceil(8) * u64::from(colour.num_samples());
    let decoded = pixels.saturating_mul(colour.as_ref().map_or(1, sample_bytes));
    let beside = pixels.saturating_mul(3 + 3).saturating_add(2 * encoded.len() as u64);
    limits.check_memory(FORMAT, decoded.saturating_add(beside))?;
    let own_limits = raised_limits(decoded, encoded);
    let mut file = file.with_limits(own_limits.clone());

    let mut tag = |tag| file.find_tag_unsigned::<u16>(tag).map_err(failed);
    let (meaning, layout) = (tag(Tag::PhotometricInterpretation)?, tag(Tag::PlanarConfiguration)?);
    let (bits, compression) = (tag(Tag::BitsPerSample), tag(Tag::Compression)?);
    // Unreadable metadata does not spoil readable pixels.
    let mut profile = (icc == Icc::Srgb).then(|| file.get_tag_u8_vec(Tag::IccProfile).ok()).flatten();
    let rgb = |pixels| RgbImage::from_raw(width, height, pixels).ok_or_else(|| corrupt("it lacks pixels"));
    let mut image: DynamicImage = if meaning == Some(PALETTE) && matches!(bits, Ok(Some(8))) {
        let map = file.get_tag_u16_vec(Tag::ColorMap).map_err(failed)?;
        let [reds, greens, blues] = thirds(&map).ok_or_else(|| corrupt("its palette has not 256 colours"))?;
        let mut gray = encoded.to_vec();
        directory::set(&mut gray, MEANING, BLACK_IS_ZERO).ok_or_else(|| unsupported("its palette"))?;
        let gray = Decoder::new(Paced::new(&gray, limits)).map_err(failed)?;
        let mut gray = gray.with_limits(own_limits);
        let indices = samples(gray.read_image().map_err(failed)?)?;
        let colour = |&index: &u8| [reds, greens, blues].map(|map| (map[usize::from(index)] >> 8) as u8);
        rgb(indices.iter().flat_map(colour).collect())?.into()
    } else {
        match (colour.map_err(failed)?, layout.unwrap_or(CHUNKY)) {
            (ColorType::Multiband { bit_depth: 8, num_samples: 2 }, CHUNKY) => {
                if extra_sample(&mut file) != Some(UNASSOCIATED_ALPHA) {
                    return Err(unsupported("its second sample is no plain alpha"));
                }
                let pixels = samples(file.read_image().map_err(failed)?)?;
                GrayAlphaImage::from_raw(width, height, pixels)
                    .ok_or_else(|| corrupt("it lacks pixels"))?
                    .into()
            }
            (ColorType::YCbCr(8), CHUNKY) if compression == Some(JPEG) => {
                let mut pixels = samples(file.read_image().map_err(failed)?)?;
                pixels.as_chunks_mut().0.iter_mut().for_each(|pixel| *pixel = ycc_to_rgb(*pixel));
                rgb(pixels)?.into()
            }
            (ColorType::CMYK(8 | 16), CHUNKY) => {
                let mut inks = samples(file.read_image().map_err(failed)?)?;
                inks.iter_mut().for_each(|ink| *ink = !*ink);
                rgb(jpeg::cmyk_to_rgb(inks, profile.take().as_deref()))?.into()
            }
            (other, _) => return Err(unsupported(format!("its samples are {other:?}"))),
        }
    };
    limits.check_time(FORMAT)?;
    if let Some(profile) = profile {
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
    /// Whether its samples are inks.
    pub is_cmyk: bool,
    /// Where it has planes of tiles that it does not fill: of all but the first the tiff crate writes what is below the page, too.
    pub unfilled: Option<Unfilled>,
}

/// A page that ends within its last tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unfilled {
    pub rows: u32,
    /// To the end of the tiles.
    pub rows_of_tiles: u64,
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
    let mut unfilled = None;
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
        let is_planar = samples > 1 && first(Tag::PlanarConfiguration) == Some(PLANAR);
        jpegs::check(&mut page, chunk, encoded, limits)?;
        if is_planar && page.get_chunk_type() == ChunkType::Tile {
            let of_tiles = u64::from(rows).checked_next_multiple_of(height);
            unfilled = of_tiles
                .filter(|&of_tiles| of_tiles != u64::from(rows))
                .map(|rows_of_tiles| Unfilled { rows, rows_of_tiles });
        }
    }
    Ok(Page {
        unfilled,
        is_premultiplied: extra_sample(&mut page) == Some(ASSOCIATED_ALPHA),
        is_fax: is_fax(&mut page),
        is_cmyk: matches!(page.colortype(), Ok(ColorType::CMYK(_))),
    })
}

/// The file as the tiff crate reads it in libtiff's way: it predicts whatever the compression, takes all bytes to begin with
/// their highest bit, and reads planes of tiles to the end of those.
///
/// # Errors
/// [`ImagingError::Unsupported`] where it predicts from too few samples, and gives wrong pixels, and for such tiles of too many
/// rows; [`ImagingError::Corrupt`] for parts that are longer than the file.
pub(super) fn mended<'a>(
    encoded: &'a [u8],
    page: &Page,
    limits: Limits,
) -> Result<Cow<'a, [u8]>, ImagingError> {
    let mut file = Cow::from(encoded);
    if let Some(Unfilled { rows_of_tiles, .. }) = page.unfilled {
        let rows = u16::try_from(rows_of_tiles).ok();
        rows.and_then(|rows| directory::set(file.to_mut(), ROWS, rows)).ok_or_else(|| {
            unsupported("its planes do not fill their tiles, which have more than 65535 rows")
        })?;
    }
    let Ok(mut page) = Decoder::new(Paced::new(encoded, limits)) else { return Ok(file) };
    let mut number = |tag| page.find_tag_unsigned::<u16>(tag).ok().flatten();
    let compression = number(Tag::Compression).unwrap_or(1);
    let n_samples = number(Tag::SamplesPerPixel).unwrap_or(1);
    let is_chunky = number(Tag::PlanarConfiguration).unwrap_or(CHUNKY) == CHUNKY;
    let is_predicted = number(Tag::Predictor).unwrap_or(UNPREDICTED) != UNPREDICTED;
    let is_lowest_first = number(Tag::FillOrder) == Some(LOWEST_FIRST);
    if is_predicted && !PREDICTED.contains(&compression) {
        directory::set(file.to_mut(), PREDICTOR, UNPREDICTED);
    } else if is_predicted
        && is_chunky
        && page.colortype().is_ok_and(|colour| colour.num_samples() < n_samples)
    {
        return Err(unsupported("it has a predictor, and samples beside its colours"));
    }
    if is_lowest_first && compression != JPEG {
        let parts = parts(&mut page, encoded.len());
        if parts.iter().map(ExactSizeIterator::len).sum::<usize>() > encoded.len() {
            return Err(corrupt("its strips or tiles are longer than the file"));
        }
        for part in parts {
            file.to_mut()[part].iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
    }
    Ok(file)
}

/// Where the strips or tiles of a page are, as far as the file reaches.
fn parts(page: &mut Decoder<Paced<'_>>, file_bytes: usize) -> Vec<Range<usize>> {
    let mut numbers = |of_strips, of_tiles| {
        page.get_tag_u64_vec(of_strips).or_else(|_| page.get_tag_u64_vec(of_tiles)).unwrap_or_default()
    };
    let places = numbers(Tag::StripOffsets, Tag::TileOffsets);
    let lengths = numbers(Tag::StripByteCounts, Tag::TileByteCounts);
    let within = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(file_bytes);
    let part = |(place, length): (u64, u64)| within(place)..within(place.saturating_add(length));
    places.into_iter().zip(lengths).map(part).collect()
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

/// The crate's own limits, raised to what was found to be within ours: the bytes that are decoded.
fn raised_limits(decoded: u64, encoded: &[u8]) -> decoder::Limits {
    let mut own = decoder::Limits::default();
    let needed = usize::try_from(decoded).unwrap_or(usize::MAX);
    own.decoding_buffer_size = own.decoding_buffer_size.max(needed);
    own.intermediate_buffer_size = own.intermediate_buffer_size.max(encoded.len());
    own
}

/// What is said of LZW that [`is_lost_in_lzw`].
pub(super) const LOST_IN_LZW: &str = "no end is found of its LZW, of which some is written so that the decoder loses its \
                                      place; try Deflate or no compression";

/// Whether the tiff crate finds no end of LZW, which happens with whole files too, mostly those of tiles.
pub(super) fn is_lost_in_lzw(error: &io::Error) -> bool {
    error.to_string() == "no lzw end code found"
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
        TiffError::IoError(error) if is_lost_in_lzw(&error) => unsupported(LOST_IN_LZW),
        TiffError::UnsupportedError(error) => unsupported(error),
        TiffError::LimitsExceeded => limits.too_much_memory(FORMAT),
        error => corrupt(error),
    }
}

/// Samples of 8 bits, or the high bytes of others, as Pillow takes them.
fn samples(decoded: DecodingResult) -> Result<Vec<u8>, ImagingError> {
    match decoded {
        DecodingResult::U8(samples) => Ok(samples),
        DecodingResult::U16(samples) => Ok(samples.into_iter().map(|sample| (sample >> 8) as u8).collect()),
        _ => Err(unsupported("its samples are no positive numbers of 8 or 16 bits")),
    }
}

/// Red, green and blue of luma and chroma, as in any JPEG.
///
/// Source: libjpeg `jdcolor.c`.
fn ycc_to_rgb([luma, blue, red]: [u8; 3]) -> [u8; 3] {
    let [luma, blue, red] = [i32::from(luma), i32::from(blue) - 128, i32::from(red) - 128];
    // Weights (1.402, 0.34414, 0.71414, 1.772) times 2^16.
    [91_881 * red, -22_554 * blue - 46_802 * red, 116_130 * blue]
        .map(|sum| (luma + ((sum + (1 << 15)) >> 16)).clamp(0, 255) as u8)
}

/// All reds, then all greens, then all blues.
fn thirds(map: &[u16]) -> Option<[&[u16; 256]; 3]> {
    let (thirds, rest) = map.as_chunks::<256>();
    match (thirds, rest) {
        ([reds, greens, blues], []) => Some([reds, greens, blues]),
        _ => None,
    }
}
