//! What a PNG says beside its pixels, wherever in the file that stands, and what the png crate makes too much of.

use std::borrow::Cow;
use std::io::Read;

use flate2::bufread::ZlibDecoder;
use image::metadata::Orientation;

use super::{ImagingError, orient};

const SIGNATURE: usize = 8;

/// Bytes of a chunk beside its content: its length, its name and a checksum.
const FRAME: usize = 12;

/// Bytes that a text is inflated to at most. Directories, and what XMP says of a picture, stand at their beginning.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// The last chunk: no content, and a checksum.
const END: &[u8; 12] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// The file with its last chunk, which some that were sent hastily lack.
///
/// # Errors
/// [`ImagingError::Corrupt`] for a palette of which the png crate would panic.
pub(super) fn mended(encoded: &[u8]) -> Result<Cow<'_, [u8]>, ImagingError> {
    const COLOUR_TYPE: usize = 25;
    let is_indexed = encoded.get(COLOUR_TYPE) == Some(&3);
    let mut end = SIGNATURE;
    for (name, content) in chunks(encoded) {
        match name {
            b"PLTE" if is_indexed && content.len() % 3 != 0 => {
                let detail = format!("its palette has {} bytes, which are no whole colours", content.len());
                return Err(ImagingError::corrupt("PNG", detail));
            }
            b"IEND" => break,
            _ => end += FRAME + content.len(),
        }
    }
    Ok(match encoded.get(end..) {
        Some(rest) if rest.len() < END.len() && END.starts_with(rest) => {
            [&encoded[..end], END].concat().into()
        }
        _ => encoded.into(),
    })
}

/// How it is to be turned. Of chunks that say the same thing the last counts; those behind the first frame of an animation
/// do not.
///
/// Source: Pillow 12 `src/PIL/PngImagePlugin.py`.
pub(super) fn orientation(encoded: &[u8]) -> Orientation {
    let (mut exif, mut profile, mut xmp, mut has_pixels) = (None, None, None, false);
    for (name, content) in chunks(encoded) {
        match name {
            b"IDAT" => has_pixels = true,
            b"fcTL" if has_pixels => break,
            b"eXIf" => exif = Some(content),
            b"tEXt" | b"zTXt" | b"iTXt" => {
                let Some(end) = memchr::memchr(0, content) else { continue };
                let text = (name, &content[end + 1..]);
                match &content[..end] {
                    b"Raw profile type exif" => profile = Some(text),
                    b"XML:com.adobe.xmp" => xmp = Some(text),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let profile = || text(profile?).map(|text| raw_profile(&text));
    let exif = exif.map(Cow::from).or_else(|| profile().map(Cow::from));
    orient::of(exif.as_deref(), xmp.and_then(text).as_deref())
}

/// Names and contents, up to the last chunk, of which the end may be missing.
fn chunks(encoded: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = encoded.get(SIGNATURE..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, named) = rest.split_first_chunk()?;
        let (name, behind) = named.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) as usize;
        let content = &behind[..length.min(behind.len())];
        rest = rest.get(length.saturating_add(FRAME)..).unwrap_or_default();
        Some((name, content))
    })
}

/// What stands behind the keyword of a chunk, as text.
fn text<'a>((name, content): (&[u8; 4], &'a [u8])) -> Option<Cow<'a, [u8]>> {
    match name {
        b"tEXt" => Some(content.into()),
        b"zTXt" => Some(inflated(content.get(1..)?).into()),
        _ => {
            let [is_compressed, _method, rest @ ..] = content else { return None };
            // Behind the language and the keyword in that language.
            let text = rest.splitn(3, |byte| *byte == 0).nth(2)?;
            Some(if *is_compressed == 0 { text.into() } else { inflated(text).into() })
        }
    }
}

/// The beginning, as far as it can be read.
fn inflated(compressed: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let _ = ZlibDecoder::new(compressed).take(MAX_TEXT_BYTES).read_to_end(&mut text);
    text
}

/// The bytes of a profile as ImageMagick writes it: a line break, its name, its length, and lines of hexadecimal digits.
fn raw_profile(text: &[u8]) -> Vec<u8> {
    let lines = text.splitn(4, |byte| *byte == b'\n').nth(3).unwrap_or_default();
    let digits: Vec<u8> =
        lines.iter().filter_map(|&byte| char::from(byte).to_digit(16)).map(|digit| digit as u8).collect();
    digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

    use super::*;
    use crate::domain::{Filter, ImageSpec, Resize};
    use crate::imaging::{ImagingOptions, prepare};

    #[test]
    fn only_the_last_chunk_may_be_missing() {
        let mut whole = Vec::new();
        PngEncoder::new(&mut whole).write_image(&[7; 27], 3, 3, ExtendedColorType::Rgb8).unwrap();
        let spec = ImageSpec::centred(Resize::Exact { height: 3, width: 3 }, None, Filter::Bilinear);
        let read = |file: &[u8]| prepare(file, &spec, &ImagingOptions::REFERENCE);
        for end in SIGNATURE..whole.len() {
            let result = read(&whole[..end]);
            if end < whole.len() - END.len() {
                assert!(matches!(result, Err(ImagingError::Corrupt { .. })), "{end}: {result:?}");
            } else {
                assert_eq!(result, read(&whole), "{end}");
            }
            orientation(&whole[..end]);
        }
        assert!(matches!(mended(&whole), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn little_of_a_text_is_inflated() {
        let mut content = b"\0".to_vec();
        let mut encoder = ZlibEncoder::new(&mut content, Compression::fast());
        encoder.write_all(&vec![b'0'; 10 << 20]).unwrap();
        encoder.finish().unwrap();
        assert_eq!(text((b"zTXt", &content)).map(|text| text.len() as u64), Some(MAX_TEXT_BYTES));
        // What breaks off has a beginning.
        assert!(text((b"zTXt", &content[..content.len() / 2])).is_some_and(|text| !text.is_empty()));
        for (name, content) in [(b"zTXt", &b""[..]), (b"iTXt", b"\0"), (b"iTXt", b"\0\0en\0")] {
            assert_eq!(text((name, content)), None);
        }
    }
}
