//! JPEGs inside TIFF. The tiff crate decodes each of them at once and without limits, at the size that stands in its own
//! header, whatever the page says: so the headers are read before, by the parser that decodes them afterwards.

use std::borrow::Cow;

use tiff::{decoder::Decoder, tags::Tag};
use zune_jpeg::JpegDecoder;

use super::{FORMAT, JPEG, corrupt, parts, unsupported};
use crate::imaging::limits::{Limits, Paced};
use crate::imaging::{ImagingError, scans};

/// Columns and rows that a JPEG is padded to at most: four blocks of eight.
const LARGEST_MCU: u64 = 32;

/// Refuses a `page` of the file whose JPEGs take more than a picture may. They are the strips or tiles of that size.
///
/// # Errors
/// [`ImagingError::TooManyPixels`], [`ImagingError::TooMuchMemory`], [`ImagingError::TooSlow`],
/// [`ImagingError::TooManyScans`]; [`ImagingError::Unsupported`] for progressive ones, whose every scan goes over the whole
/// picture; [`ImagingError::Corrupt`] for those that are larger than their strip or tile, of which there may be thousands.
pub(super) fn check(
    page: &mut Decoder<Paced<'_>>,
    [chunk_width, chunk_height]: [u64; 2],
    encoded: &[u8],
    limits: Limits,
) -> Result<(), ImagingError> {
    if !matches!(page.find_tag_unsigned(Tag::Compression), Ok(Some(JPEG))) {
        return Ok(());
    }
    let Ok((width, height)) = page.dimensions() else { return Ok(()) };
    let samples = page.find_tag_unsigned::<u64>(Tag::SamplesPerPixel).ok().flatten().unwrap_or(1);
    let page_samples = (u64::from(width) * u64::from(height)).saturating_mul(samples);
    let tables = page.get_tag_u8_vec(Tag::JPEGTables).ok();
    for part in parts(page, encoded.len()) {
        limits.check_time(FORMAT)?;
        let jpeg = whole(tables.as_deref(), &encoded[part]);
        let mut decoder = JpegDecoder::new(Paced::new(&jpeg, limits));
        let info = decoder.decode_headers().ok().and_then(|()| decoder.info());
        let Some(info) = info else { continue };
        if info.sof.is_progressive() {
            return Err(unsupported("it holds a progressive JPEG"));
        }
        // Scans are looked for without regard to segments: too many are found rather than too few.
        let scans = memchr::memmem::find_iter(&jpeg, b"\xff\xda").count();
        if scans > scans::MAX_SCANS {
            return Err(ImagingError::TooManyScans { scans, limit: scans::MAX_SCANS });
        }
        let (width, height) = (u64::from(info.width), u64::from(info.height));
        let padded = |n: u64| n.div_ceil(LARGEST_MCU).saturating_mul(LARGEST_MCU);
        if width > padded(chunk_width) || height > padded(chunk_height) {
            return Err(corrupt(format!(
                "it holds a JPEG of {width}x{height} in a strip or tile of {chunk_width}x{chunk_height}"
            )));
        }
        limits.check_size(FORMAT, width, height)?;
        // The JPEG's samples, with two bytes more for each where its components come one by one; those of the page, in the
        // crate's buffer and in ours.
        let jpeg_samples = width * height * u64::from(info.components);
        limits.check_memory(FORMAT, (3 * jpeg_samples).saturating_add(page_samples.saturating_mul(2)))?;
    }
    Ok(())
}

/// The tables without their end, and the JPEG without its beginning.
fn whole<'a>(tables: Option<&[u8]>, jpeg: &'a [u8]) -> Cow<'a, [u8]> {
    match tables {
        None => jpeg.into(),
        Some(tables) => {
            let tables = &tables[..tables.len().saturating_sub(2)];
            [tables, jpeg.get(2..).unwrap_or_default()].concat().into()
        }
    }
}
