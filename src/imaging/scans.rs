//! How a JPEG file is laid out, walked from marker to marker before libjpeg sees it.
//!
//! Source: ITU-T T.81, annex B.

use super::ImagingError;

/// The most scans that are read. Encoders write about ten; a file of thousands, each of them a few bytes that go once
/// over the whole picture, is a known way to keep a decoder busy.
pub(super) const MAX_SCANS: usize = 100;

/// Whether libjpeg keeps all coefficients until the file is over, as for a progressive picture, instead of a row of
/// blocks.
///
/// # Errors
/// [`ImagingError::TooManyScans`].
pub(super) fn keeps_coefficients(file: &[u8]) -> Result<bool, ImagingError> {
    const START_OF_PROGRESSIVE_FRAME: u8 = 0xc2;
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let (mut keeps, mut components, mut scans) = (false, 0, 0);
    let mut rest = file;
    while let Some((marker, after)) = next_marker(rest) {
        if marker == END_OF_IMAGE {
            break;
        }
        let Some((payload, after)) = segment(marker, after) else { break };
        rest = after;
        match marker {
            // Frame headers; the others of this range are tables.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                keeps |= marker == START_OF_PROGRESSIVE_FRAME;
                components = payload.get(5).copied().unwrap_or(0);
            }
            START_OF_SCAN => {
                scans += 1;
                keeps |= scans > 1 || payload.first().is_some_and(|&n| n < components);
                if scans > MAX_SCANS {
                    return Err(ImagingError::TooManyScans { scans, limit: MAX_SCANS });
                }
            }
            _ => {}
        }
    }
    Ok(keeps)
}

/// The next marker and what follows it. What is stuffed into the data of a scan is none.
fn next_marker(mut rest: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        rest = &rest[memchr::memchr(0xff, rest)?..];
        let padding = rest.iter().take_while(|&&byte| byte == 0xff).count();
        let (&marker, after) = rest[padding..].split_first()?;
        if marker != 0 {
            return Some((marker, after));
        }
        rest = after;
    }
}

/// A marker's segment and what follows it; markers without a segment have an empty one.
fn segment(marker: u8, after: &[u8]) -> Option<(&[u8], &[u8])> {
    if matches!(marker, 0x01 | 0xd0..=0xd8) {
        return Some((&[], after));
    }
    let length = usize::from(u16::from_be_bytes(after.first_chunk().copied()?));
    after.get(2..)?.split_at_checked(length.checked_sub(2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn progressive_pictures_keep_their_coefficients() {
        assert_eq!(keeps_coefficients(&picture("photo_baseline_420.jpg")), Ok(false));
        assert_eq!(keeps_coefficients(&picture("photo_gray.jpg")), Ok(false));
        assert_eq!(keeps_coefficients(&picture("photo_progressive_420.jpg")), Ok(true));
        // A scan of one component of three promises more.
        let mut single = picture("photo_baseline_420.jpg");
        let scan = single.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        single[scan + 4] = 1;
        assert_eq!(keeps_coefficients(&single), Ok(true));
    }

    #[test]
    fn the_scans_are_counted() {
        let header = b"\xff\xd8\xff\xe1\0\x06\xff\xda\xff\xda";
        let scan = b"\xff\xda\0\x03\x01\x12\xff\0\x34\xff\xd0\x56";
        let file = |n: usize| [&header[..], &scan.repeat(n), b"\xff\xd9", &scan.repeat(9)].concat();
        assert_eq!(keeps_coefficients(&file(MAX_SCANS)), Ok(true));
        let error = keeps_coefficients(&file(MAX_SCANS + 1)).unwrap_err();
        assert_eq!(error, ImagingError::TooManyScans { scans: MAX_SCANS + 1, limit: MAX_SCANS });
        assert_eq!(keeps_coefficients(&file(1)), Ok(false));
    }
}
