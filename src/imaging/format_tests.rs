//! Every flavour of every format against Pillow (`tools/fixtures/formats.py`), whole, broken and under limits.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde::Deserialize;

use super::*;
use crate::domain::{Filter, ItemErrorKind, Resize};

#[derive(Deserialize)]
struct Expected {
    pictures: Vec<Picture>,
}

#[derive(Deserialize)]
struct Picture {
    file: String,
    #[serde(default)]
    width: u32,
    #[serde(default)]
    height: u32,
    /// The digest of the pixels, where ours are the same.
    blake3: Option<String>,
    /// The pixels, where ours may differ.
    rgb: Option<String>,
    /// By how much.
    #[serde(default)]
    difference: u8,
    /// Whether the profile counts.
    #[serde(default)]
    icc: bool,
    refused: Option<ItemErrorKind>,
}

impl Picture {
    fn encoded(&self) -> Vec<u8> {
        std::fs::read(folder().join(&self.file)).unwrap()
    }

    fn options(&self) -> ImagingOptions {
        let icc = if self.icc { Icc::Srgb } else { Icc::Ignore };
        ImagingOptions { icc, ..ImagingOptions::REFERENCE }
    }

    /// What is wrong with our pixels, if anything.
    fn compare(&self, pixels: &Pixels) -> Option<String> {
        let Self { width, height, difference, .. } = *self;
        if (pixels.width, pixels.height) != (width, height) {
            return Some(format!("{}x{} instead of {width}x{height}", pixels.width, pixels.height));
        }
        let Some(rgb) = &self.rgb else {
            let digest = blake3::hash(&pixels.rgb8).to_hex();
            return (Some(digest.as_str()) != self.blake3.as_deref()).then(|| "other pixels".into());
        };
        let rgb = base64::prelude::BASE64_STANDARD.decode(rgb).unwrap();
        let differences: Vec<u8> = rgb.iter().zip(&pixels.rgb8).map(|(a, b)| a.abs_diff(*b)).collect();
        let largest = *differences.iter().max().unwrap();
        let n = differences.iter().filter(|&&d| d > 0).count();
        (largest > difference).then(|| format!("{n} of {} samples differ, by up to {largest}", rgb.len()))
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats")
}

fn pictures() -> Vec<Picture> {
    let text = std::fs::read(folder().join("expected.json")).unwrap();
    serde_json::from_slice::<Expected>(&text).unwrap().pictures
}

/// Nothing resized: the picture's own pixels.
fn own_size(width: u32, height: u32) -> ImageSpec {
    ImageSpec::centred(Resize::Exact { height, width }, None, Filter::Bilinear)
}

#[test]
fn every_flavour_is_read_as_pillow_reads_it() {
    let mut wrong = BTreeMap::new();
    for picture in pictures() {
        let spec = own_size(picture.width.max(1), picture.height.max(1));
        let problem = match (prepare(&picture.encoded(), &spec, &picture.options()), picture.refused) {
            (Ok(_), Some(kind)) => Some(format!("was to be refused as {kind}")),
            (Ok(pixels), None) => picture.compare(&pixels),
            (Err(error), Some(kind)) if error.kind() == kind => None,
            (Err(error), _) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            wrong.insert(picture.file, problem);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        // Source: George Marsaglia, "Xorshift RNGs".
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn what_is_broken_gives_pixels_or_an_error() {
    let limits = ImagingOptions {
        max_pixels: 100_000,
        max_memory_bytes: 8 << 20,
        timeout_ms: 2000,
        ..ImagingOptions::REFERENCE
    };
    let spec = own_size(16, 16);
    let mut random = Random(0x5eed);
    for picture in pictures() {
        let whole = picture.encoded();
        let options = ImagingOptions { icc: Icc::Srgb, ..limits.clone() };
        for _ in 0..12 {
            let mut broken = whole.clone();
            match random.below(3) {
                0 => broken.truncate(random.below(whole.len())),
                1 => broken[random.below(whole.len())] ^= 1 << random.below(8),
                // Headers are where sizes and counts are.
                _ => {
                    for _ in 0..3 {
                        broken[random.below(whole.len().min(64))] = random.below(256) as u8;
                    }
                }
            }
            if let Ok(pixels) = prepare(&broken, &spec, &options) {
                assert_eq!(pixels.rgb8.len(), 16 * 16 * 3, "{}", picture.file);
            }
        }
    }
}

#[test]
fn memory_is_reckoned_before_it_is_taken() {
    // 37x23 pixels; the least that any of them takes is RGB and what is made of it.
    let options = ImagingOptions { max_memory_bytes: 37 * 23 * 4, ..ImagingOptions::REFERENCE };
    for picture in pictures().iter().filter(|picture| picture.refused.is_none()) {
        let error = prepare(&picture.encoded(), &own_size(8, 8), &options).unwrap_err();
        assert_eq!(error.kind(), ItemErrorKind::TooManyPixels, "{}: {error}", picture.file);
    }
}

#[test]
fn time_is_over_for_every_decoder() {
    let options = ImagingOptions { timeout_ms: 0, ..ImagingOptions::REFERENCE };
    for file in [
        "444.jpg",
        "420_progressive.jpg",
        "rgb8.png",
        "plain.gif",
        "lossy.webp",
        "rgb24.bmp",
        "tiled.tif",
        "jpeg.tif",
        "420_full.avif",
    ] {
        let encoded = std::fs::read(folder().join(file)).unwrap();
        let error = prepare(&encoded, &own_size(8, 8), &options).unwrap_err();
        assert!(matches!(error, ImagingError::TooSlow { limit_ms: 0, .. }), "{file}: {error}");
        // Final: it would take as long again.
        assert_eq!(error.kind(), ItemErrorKind::Corrupt);
    }
}

#[test]
fn profiles_count_only_when_they_are_asked_for() {
    for picture in pictures().iter().filter(|picture| picture.icc) {
        let spec = own_size(picture.width, picture.height);
        let ignored = prepare(&picture.encoded(), &spec, &ImagingOptions::REFERENCE).unwrap();
        assert!(picture.compare(&ignored).is_some(), "{}: the profile makes no difference", picture.file);
    }
}

#[test]
fn a_broken_profile_leaves_the_picture() {
    let picture = std::fs::read(folder().join("icc_rgb.jpg")).unwrap();
    let at = picture.windows(4).position(|bytes| bytes == b"acsp").unwrap();
    let read = |file: &[u8], icc| {
        prepare(file, &own_size(37, 23), &ImagingOptions { icc, ..ImagingOptions::REFERENCE }).unwrap()
    };
    let mut broken = picture.clone();
    broken[at] = b'x';
    assert_eq!(read(&broken, Icc::Srgb), read(&picture, Icc::Ignore));
    assert_ne!(read(&picture, Icc::Srgb), read(&picture, Icc::Ignore));
}

#[test]
fn an_inflated_profile_is_counted_or_not_read() {
    let with_profile = |bytes: usize| {
        let mut file = Vec::new();
        let mut encoder = PngEncoder::new(&mut file);
        encoder.set_icc_profile(vec![0; bytes]).unwrap();
        encoder.write_image(&[7; 12], 2, 2, ExtendedColorType::Rgb8).unwrap();
        file
    };
    let read = |file: &[u8], max_memory_bytes| {
        prepare(file, &own_size(2, 2), &ImagingOptions { max_memory_bytes, ..ImagingOptions::REFERENCE })
    };
    let plain = read(&with_profile(1), 1 << 20).unwrap();
    let large = with_profile(40 << 20);
    assert!(large.len() < 1 << 20);
    assert_eq!(read(&large, 100 << 20).as_ref(), Ok(&plain));
    let error = read(&large, 64 << 20).unwrap_err();
    assert!(matches!(error, ImagingError::TooMuchMemory { format: "PNG", .. }), "{error}");
    // Larger than any profile is.
    assert_eq!(read(&with_profile(70 << 20), 100 << 20).as_ref(), Ok(&plain));
}

#[test]
fn later_frames_are_never_read() {
    for file in ["animated.gif", "animated.png", "animated.webp"] {
        let picture = pictures().into_iter().find(|picture| picture.file == file).unwrap();
        let mut encoded = picture.encoded();
        let last_third = encoded.len() * 2 / 3;
        // From within the second frame on.
        encoded[last_third..].fill(0xaa);
        let pixels = prepare(&encoded, &own_size(37, 23), &ImagingOptions::REFERENCE).unwrap();
        assert_eq!(picture.compare(&pixels), None, "{file}");
    }
}

#[test]
fn avif_is_read_only_where_it_is_opened() {
    let file = pictures().into_iter().find(|picture| picture.file.ends_with(".avif")).expect("one").encoded();
    let closed = ImagingOptions { avif: false, ..ImagingOptions::REFERENCE };
    assert_eq!(prepare(&file, &own_size(37, 23), &closed), Err(ImagingError::AvifOff));
    assert!(prepare(&file, &own_size(37, 23), &ImagingOptions::REFERENCE).is_ok());
}
