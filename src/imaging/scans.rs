//! How a JPEG file is laid out, walked from marker to marker before libjpeg sees it.
//!
//! Source: ITU-T T.81, annex B.

use super::ImagingError;

/// The most scans that are read. Encoders write about ten; a file of thousands, each of them a few bytes that go once
/// over the whole picture, is a known way to keep a decoder busy.
pub(super) const MAX_SCANS: usize = 100;

/// The most application segments of a file that is read in one piece. libjpeg walks along the list of those that it keeps
/// to add another, so that millions of them, of four bytes each, take hours.
const MAX_SEGMENTS: usize = 1000;

/// What libjpeg will do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Whether it keeps all coefficients until the file is over, as for a progressive picture, instead of a row of blocks.
    pub keeps_coefficients: bool,
    /// Whether it goes over the picture but once, and over nothing else for long.
    pub is_simple: bool,
}

/// Walks along `file` as libjpeg does. Of one that it cannot walk to the end the worst is assumed.
///
/// # Errors
/// [`ImagingError::TooManyScans`].
pub(super) fn layout(file: &[u8]) -> Result<Layout, ImagingError> {
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let (mut frames, mut components, mut scans, mut segments) = (0, 0, 0, 0);
    let mut is_sequential = true;
    let mut is_interleaved = true;
    let mut has_ended = false;
    let mut rest = file;
    while let Some((marker, after)) = next_marker(rest) {
        if marker == END_OF_IMAGE {
            has_ended = true;
            break;
        }
        let Some((payload, after)) = segment(marker, after) else { break };
        rest = after;
        match marker {
            // Frame headers; the others of this range are tables.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                frames += 1;
                is_sequential &= matches!(marker, 0xc0 | 0xc1);
                components = payload.get(5).copied().unwrap_or(0);
            }
            START_OF_SCAN => {
                scans += 1;
                is_interleaved &= payload.first().is_some_and(|&n| n == components);
                if scans > MAX_SCANS {
                    return Err(ImagingError::TooManyScans { scans, limit: MAX_SCANS });
                }
            }
            0xe0..=0xef => segments += 1,
            _ => {}
        }
    }
    let has_one_scan = has_ended && is_sequential && is_interleaved && (frames, scans) == (1, 1);
    Ok(Layout { keeps_coefficients: !has_one_scan, is_simple: has_one_scan && segments <= MAX_SEGMENTS })
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
///
/// Where libjpeg is lenient, so is this, or what follows is hidden from one of the two: a length that does not even count
/// itself is read as that of nothing, and a marker that no standard has given a segment, which ends a file between its
/// segments, is passed over in the data of a scan.
///
/// Source: `skip_variable` and `jpeg_resync_to_restart` of libjpeg-turbo's `jdmarker.c`.
fn segment(marker: u8, after: &[u8]) -> Option<(&[u8], &[u8])> {
    if matches!(marker, ..0xc0 | 0xd0..=0xd8) {
        return Some((&[], after));
    }
    let length = usize::from(u16::from_be_bytes(after.first_chunk().copied()?));
    after.get(2..)?.split_at_checked(length.saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn keeps_coefficients(file: &[u8]) -> Result<bool, ImagingError> {
        layout(file).map(|layout| layout.keeps_coefficients)
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

    /// A frame of one component, of the kind that `marker` is.
    fn frame(marker: u8) -> Vec<u8> {
        [&[0xff, marker][..], b"\0\x0b\x08\0\x10\0\x10\x01\x01\x11\0"].concat()
    }

    const START: &[u8] = b"\xff\xd8";
    const SCAN: &[u8] = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\x12\xff\0\x34\xff\xd0\x56";
    const END: &[u8] = b"\xff\xd9";

    #[test]
    fn the_scans_are_counted() {
        let header = [START, b"\xff\xe1\0\x06\xff\xda\xff\xda", &frame(0xc0)].concat();
        let file = |n: usize| [&header, &SCAN.repeat(n), END, &SCAN.repeat(9)].concat();
        assert_eq!(keeps_coefficients(&file(MAX_SCANS)), Ok(true));
        let error = keeps_coefficients(&file(MAX_SCANS + 1)).unwrap_err();
        assert_eq!(error, ImagingError::TooManyScans { scans: MAX_SCANS + 1, limit: MAX_SCANS });
        assert_eq!(keeps_coefficients(&file(1)), Ok(false));
    }

    #[test]
    fn nothing_hides_what_follows() {
        let frame = frame(0xc2);
        let many = SCAN.repeat(MAX_SCANS + 1);
        let bare = [&b"\xff\xec\0\0"[..], b"\xff\xfe\0\x01", b"\xff\xff\xdc\0\0", b"\xff\x01", b"junk\xff\0"];
        for hiding in bare {
            for file in [
                [START, hiding, &frame, SCAN, END].concat(),
                [START, &frame, hiding, SCAN, END].concat(),
                [START, &frame, SCAN, hiding, SCAN, END].concat(),
            ] {
                assert_eq!(keeps_coefficients(&file), Ok(true), "{hiding:x?}");
            }
            for file in [
                [START, hiding, &frame, &many, END].concat(),
                [START, &frame, hiding, &many, END].concat(),
                [START, &frame, SCAN, hiding, &many, END].concat(),
            ] {
                let error = keeps_coefficients(&file).unwrap_err();
                assert!(matches!(error, ImagingError::TooManyScans { .. }), "{hiding:x?}: {error}");
            }
        }
        // In the data of a scan a marker of no standard has no segment, whatever length seems to follow it.
        let within = [START, &frame, SCAN, b"\xff\x02\xff\xff", &many, END].concat();
        assert!(matches!(layout(&within), Err(ImagingError::TooManyScans { .. })));
    }

    #[test]
    fn the_worst_is_assumed_of_what_cannot_be_walked() {
        let frame = |marker| frame(marker);
        let simple = Layout { keeps_coefficients: false, is_simple: true };
        let worst = Layout { keeps_coefficients: true, is_simple: false };
        for (file, expected) in [
            ([START, &frame(0xc0), SCAN, END, b"trailing \xff\xda"].concat(), simple),
            ([START, &frame(0xc1), SCAN, END].concat(), simple),
            ([START, &frame(0xc0), SCAN].concat(), worst),
            ([START, &frame(0xc0), SCAN, b"\xff\xfe\x12\x34", END].concat(), worst),
            ([START, &frame(0xc0), END].concat(), worst),
            ([START, SCAN, END].concat(), worst),
            ([START, &frame(0xc0), &frame(0xc0), SCAN, END].concat(), worst),
            ([START, &frame(0xca), SCAN, END].concat(), worst),
            (b"\xff\xd8\xff".to_vec(), worst),
        ] {
            assert_eq!(layout(&file), Ok(expected), "{file:x?}");
        }
    }

    #[test]
    fn a_file_of_many_segments_is_not_simple() {
        let file = |n: usize| [START, &b"\xff\xe1\0\x02".repeat(n), &frame(0xc0), SCAN, END].concat();
        assert!(layout(&file(MAX_SEGMENTS)).unwrap().is_simple);
        let many = layout(&file(MAX_SEGMENTS + 1)).unwrap();
        assert_eq!(many, Layout { keeps_coefficients: false, is_simple: false });
    }
}
