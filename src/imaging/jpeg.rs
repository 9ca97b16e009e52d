//! JPEG by the libjpeg-turbo family: the integer DCT and smooth chroma upsampling, bit-identical to Pillow.
//!
//! Where a reduction is allowed, the inverse DCT gives 4x4, 2x2 or 1x1 samples for a block of 8x8, and all that
//! follows has a quarter of the work or less. One that is not reduced is left in luma and chroma, which is less work too.
//!
//! A file of several scans is handed to libjpeg in pieces, so that it can be stopped. libjpeg reports errors by
//! unwinding; they are caught here and become [`ImagingError`]s.

use std::io::{self, BufRead, Read};
use std::panic;

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use mozjpeg::{ColorSpace, CompInfo, DctMethod, Decompress, Marker};

use super::crop::Size;
use super::decode::{Decoded, Picture};
use super::limits::{Limits, Paced};
use super::planes::{self, Planes};
use super::scans::{self, Layout};
use super::{ImagingError, icc, orient, positions};
use crate::domain::{Icc, Resize};

mod raw;

pub(super) const FORMAT: &str = "JPEG";

/// What the `mozjpeg` crate puts before libjpeg's own words when it unwinds.
const UNWOUND: &str = "libjpeg fatal error: ";

/// Decodes to RGB or gray, for `reduce_for` at a fraction of the size or to planes.
///
/// # Errors
/// [`ImagingError::Corrupt`] also for a file without its end marker, which Pillow refuses too;
/// [`ImagingError::Unsupported`] for 12-bit, arithmetic-coded or lossless files;
/// [`ImagingError::TooManyPixels`] and [`ImagingError::TooMuchMemory`] before anything of the picture's size is
/// allocated; [`ImagingError::TooManyScans`]; [`ImagingError::TooSlow`].
pub(super) fn decode(
    encoded: &[u8],
    limits: Limits,
    icc: Icc,
    reduce_for: Option<Resize>,
) -> Result<Decoded, ImagingError> {
    let layout = scans::layout(encoded)?;
    let reading = || read(encoded, limits, icc, layout, reduce_for);
    panic::catch_unwind(reading).unwrap_or_else(|payload| {
        match payload.downcast_ref::<String>().and_then(|message| message.strip_prefix(UNWOUND)) {
            Some(message) => Err(limits.check_time(FORMAT).err().unwrap_or_else(|| failure(message))),
            None => panic::resume_unwind(payload),
        }
    })
}

fn read(
    encoded: &[u8],
    limits: Limits,
    icc: Icc,
    layout: Layout,
    reduce_for: Option<Resize>,
) -> Result<Decoded, ImagingError> {
    let failed =
        |error: io::Error| limits.check_time(FORMAT).err().unwrap_or_else(|| failure(&error.to_string()));
    let markers = [Marker::APP(1), Marker::APP(2)];
    let markers = if icc == Icc::Ignore { &markers[..1] } else { &markers };
    // A single scan goes over the picture once, whatever it holds.
    let paced = if layout.is_simple { Paced::in_one_piece } else { Paced::new };
    let whole = Whole(paced(encoded, limits));
    let mut decoder = Decompress::builder().with_markers(markers).from_reader(whole).map_err(failed)?;
    let (columns, rows) = decoder.size();
    limits.check_size(FORMAT, columns as u64, rows as u64)?;
    let full = Size { width: columns, height: rows };
    let orientation = orientation(&decoder);
    let upright = orient::upright_size(full, orientation);
    let step = reduce_for.map_or(1, |resize| step(upright, resize));
    decoder.scale(8 / step as u8);
    decoder.dct_method(DctMethod::IntegerSlow);
    decoder.do_fancy_upsampling(true);
    let (space, components) = match decoder.components().len() {
        1 => (ColorSpace::JCS_GRAYSCALE, 1),
        3 => (ColorSpace::JCS_RGB, 3),
        4 => (ColorSpace::JCS_CMYK, 4),
        n => return Err(failure(&format!("Unsupported number of components {n}"))),
    };
    let profile = match icc {
        Icc::Ignore => None,
        Icc::Srgb => icc::from_jpeg(decoder.markers().map(|marker| marker.data)),
    };
    let coefficients = if layout.keeps_coefficients { coefficient_bytes(decoder.components()) } else { 0 };
    let pixels = (columns.div_ceil(step) * rows.div_ceil(step)) as u64;
    // What is made of the samples afterwards (RGB, turned, another profile's) is made without the coefficients.
    limits.check_memory(FORMAT, pixels * components + coefficients.max(pixels * 4))?;
    let may_be_planes = reduce_for
        .is_some_and(|resize| planes::may_become(positions::target_size(upright, resize), upright, step));
    if may_be_planes
        && step == 1
        && profile.is_none()
        && let Some(steps) = raw::steps(decoder.color_space(), decoder.components(), columns)
    {
        let mut started = decoder.raw().map_err(failed)?;
        let planes = raw::read(&mut started, full, &steps);
        started.finish().map_err(failed)?;
        limits.check_time(FORMAT)?;
        return Ok(Decoded { picture: Picture::Planes(planes), orientation, full });
    }
    let mut started = decoder.to_colorspace(space).map_err(failed)?;
    let (width, height) = (started.width() as u32, started.height() as u32);
    let samples = started.read_scanlines::<u8>().map_err(failed)?;
    started.finish().map_err(failed)?;
    limits.check_time(FORMAT)?;
    let image = match components {
        1 => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
        3 => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
        _ => {
            let samples = cmyk_to_rgb(samples, profile.as_deref());
            RgbImage::from_raw(width, height, samples).map(DynamicImage::from)
        }
    };
    let mut image = image.expect("libjpeg filled every row");
    if let Some(profile) = profile.filter(|_| components != 4) {
        image = icc::to_srgb(image, &profile);
    }
    let picture = match may_be_planes {
        true => Picture::Planes(Planes::of_pixels(image, step)),
        false => Picture::Pixels { image, step },
    };
    Ok(Decoded { picture, orientation, full })
}

/// How it is to be turned: by its first EXIF data, or its last XMP packet.
fn orientation<R>(decoder: &Decompress<R>) -> Orientation {
    let behind =
        |prefix: &'static [u8]| decoder.markers().filter_map(move |marker| marker.data.strip_prefix(prefix));
    orient::of(behind(b"Exif\0\0").next(), behind(b"http://ns.adobe.com/xap/1.0/\0").last())
}

/// What libjpeg keeps of a progressive picture: two bytes for each of a block's 64 coefficients. The last blocks of a
/// row may be padding.
fn coefficient_bytes(components: &[CompInfo]) -> u64 {
    let blocks = |component: &CompInfo| {
        let padded = |blocks: u32, factor: i32| u64::from(blocks) + factor.unsigned_abs() as u64;
        padded(component.width_in_blocks, component.h_samp_factor)
            * padded(component.height_in_blocks, component.v_samp_factor)
    };
    components.iter().map(blocks).sum::<u64>() * 64 * 2
}

/// How many times the resize's size a reduced picture must at least have. Chosen by the
/// table in docs/benchmarks.md: random checkpoints fall below a cosine of 0.999 more often, and further, with less.
const MARGIN: usize = 2;

/// The same for pictures reduced to a quarter or an eighth, whose blocks lose more: at 3 one random checkpoint gave
/// 0.9989.
const COARSE_MARGIN: usize = 4;

/// The most columns and rows that one pixel may stand for. Other steps than these have no short DCT.
fn step(upright: Size, resize: Resize) -> usize {
    let target = positions::target_size(upright, resize);
    let suffices = |(step, margin)| {
        let least = |n: usize| n * step * margin;
        upright.width >= least(target.width) && upright.height >= least(target.height)
    };
    let steps = [(8, COARSE_MARGIN), (4, COARSE_MARGIN), (2, MARGIN)];
    steps.into_iter().find(|step| suffices(*step)).map_or(1, |(step, _)| step)
}

fn failure(message: &str) -> ImagingError {
    // libjpeg tells what it cannot from what is broken only by its wording, which has not changed since 1998.
    if message.starts_with("Unsupported") || message.starts_with("Sorry") {
        ImagingError::unsupported(FORMAT, message)
    } else if message == "Input file read error" {
        ImagingError::corrupt(FORMAT, "it breaks off before its end")
    } else {
        ImagingError::corrupt(FORMAT, message)
    }
}

/// By the profile, or as Pillow does without colour management. Samples are stored inverted (Adobe's habit, assumed
/// always).
pub(super) fn cmyk_to_rgb(mut inverted: Vec<u8>, profile: Option<&[u8]>) -> Vec<u8> {
    if let Some(profile) = profile {
        inverted.iter_mut().for_each(|sample| *sample = !*sample);
        if let Some(rgb) = icc::cmyk_to_srgb(&inverted, profile) {
            return rgb;
        }
        inverted.iter_mut().for_each(|sample| *sample = !*sample);
    }
    let ink = |stored: u8, light: u32| {
        let t = u32::from(255 - stored) * light + 128;
        light.saturating_sub(((t >> 8) + t) >> 8) as u8
    };
    inverted
        .chunks_exact(4)
        .flat_map(|pixel| {
            let light = u32::from(pixel[3]);
            [ink(pixel[0], light), ink(pixel[1], light), ink(pixel[2], light)]
        })
        .collect()
}

/// The file, whose end is an error: at a mere end of input libjpeg would invent an end marker and paint the
/// missing part gray.
struct Whole<'a>(Paced<'a>);

impl BufRead for Whole<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.0.fill_buf()? {
            [] => Err(io::Error::other("the file is over")),
            piece => Ok(piece),
        }
    }

    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}

impl Read for Whole<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::ImagingOptions;

    const PHOTO: &[u8] = include_bytes!("../../tests/fixtures/images/photo_422_odd.jpg");

    /// The offset of the frame header's payload (precision, height, width, components).
    fn frame_header() -> usize {
        PHOTO.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 4
    }

    /// At full size, in planes, and at 1/8.
    const REDUCTIONS: [Option<Resize>; 3] =
        [None, Some(Resize::ShortestEdge(150)), Some(Resize::ShortestEdge(6))];

    fn decode(file: &[u8], reduce_for: Option<Resize>) -> Result<Decoded, ImagingError> {
        let options = ImagingOptions { max_pixels: 1 << 20, ..ImagingOptions::REFERENCE };
        super::decode(file, Limits::begin(&options), Icc::Ignore, reduce_for)
    }

    #[test]
    fn every_truncation_is_corrupt() {
        for reduce_for in REDUCTIONS {
            for length in [4, 20, 300, PHOTO.len() / 2, PHOTO.len() - 2, PHOTO.len() - 1] {
                let error = decode(&PHOTO[..length], reduce_for).err().unwrap();
                assert!(matches!(error, ImagingError::Corrupt { .. }), "{length}: {error}");
            }
            assert!(decode(PHOTO, reduce_for).is_ok());
        }
    }

    #[test]
    fn what_is_reduced_keeps_a_margin() {
        let size = |width, height| Size { width, height };
        for (picture, resize, expected) in [
            (size(895, 10_000), Resize::ShortestEdge(224), 1),
            (size(896, 10_000), Resize::ShortestEdge(224), 2),
            (size(640, 480), Resize::ShortestEdge(224), 1),
            (size(40_000, 3583), Resize::ShortestEdge(224), 2),
            (size(40_000, 3584), Resize::ShortestEdge(224), 4),
            (size(50_000, 7168), Resize::ShortestEdge(224), 8),
            // Both sides count where the shape changes.
            (size(4000, 200), Resize::Exact { height: 51, width: 50 }, 1),
            (size(4000, 200), Resize::Exact { height: 50, width: 50 }, 2),
            (size(100, 100), Resize::ShortestEdge(200), 1),
        ] {
            assert_eq!(step(picture, resize), expected, "{picture:?} {resize:?}");
        }
    }

    #[test]
    fn a_length_of_nothing_hides_no_scans() {
        let whole = include_bytes!("../../tests/fixtures/images/photo_progressive_420.jpg");
        let scan = whole.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
        let (rest, end) = whole.split_at(whole.len() - 2);
        let options = ImagingOptions { timeout_ms: 0, ..ImagingOptions::REFERENCE };
        for length in [0, 1] {
            let bare = [0xff, 0xec, 0, length];
            let marked = |file: &[u8]| [&file[..2], &bare, &file[2..]].concat();
            // libjpeg reads on, so it has to be paced, and its scans counted.
            assert!(decode(&marked(whole), None).is_ok());
            let limits = Limits::begin(&options);
            let error = super::decode(&marked(whole), limits, Icc::Ignore, None).err().unwrap();
            assert_eq!(error, ImagingError::TooSlow { format: FORMAT, limit_ms: 0 });
            let many = [rest, &rest[scan..].repeat(scans::MAX_SCANS), end].concat();
            let error = decode(&marked(&many), None).err().unwrap();
            assert!(matches!(error, ImagingError::TooManyScans { .. }), "{error}");
        }
    }

    #[test]
    fn twelve_bits_are_refused_clearly() {
        let mut file = PHOTO.to_vec();
        file[frame_header()] = 12;
        let error = decode(&file, None).err().unwrap();
        assert!(
            matches!(error, ImagingError::Unsupported { .. }) && error.to_string().contains("12"),
            "{error}"
        );
    }

    #[test]
    fn a_claimed_size_is_refused_before_decoding() {
        let mut file = PHOTO.to_vec();
        file[frame_header() + 1..frame_header() + 5].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
        for reduce_for in REDUCTIONS {
            let error = decode(&file, reduce_for).err().unwrap();
            assert_eq!(error, ImagingError::TooManyPixels { width: 60000, height: 60000, limit: 1 << 20 });
        }
    }
}
