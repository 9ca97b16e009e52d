//! Every fixture against Pillow's pixels (`tools/fixtures/pixels.py`), and the inputs that must not hurt.

use std::io::Cursor;
use std::path::PathBuf;

use image::{GrayImage, ImageFormat, RgbImage};
use serde::Deserialize;

use super::*;
use crate::domain::{Filter, ItemErrorKind, Resize};

const OPTIONS: ImagingOptions = ImagingOptions::REFERENCE;

const FAST: ImagingOptions = ImagingOptions { decode: Decode::Fast, ..OPTIONS };

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(path)).unwrap()
}

fn spec(resize: Resize, crop: Option<[u32; 2]>, filter: Filter) -> ImageSpec {
    ImageSpec::centred(resize, crop, filter)
}

fn clip() -> ImageSpec {
    spec(Resize::ShortestEdge(224), Some([224, 224]), Filter::Bicubic)
}

/// The specs of `tools/fixtures/pixels.py`, by name.
fn named(name: &str) -> ImageSpec {
    let exact = |height, width| Resize::Exact { height, width };
    match name {
        "clip-224" => clip(),
        "shortest-64" => spec(Resize::ShortestEdge(64), Some([64, 64]), Filter::Bicubic),
        "shortest-50-no-crop" => spec(Resize::ShortestEdge(50), None, Filter::Bilinear),
        "exact-32x48-bilinear" => spec(exact(32, 48), None, Filter::Bilinear),
        "exact-384" => spec(exact(384, 384), None, Filter::Bicubic),
        "crop-exceeds-resize" => spec(Resize::ShortestEdge(40), Some([61, 57]), Filter::Bicubic),
        other => panic!("no spec {other}"),
    }
}

#[derive(Deserialize)]
struct Expected {
    pictures: Vec<Picture>,
    drawn: Vec<Picture>,
}

#[derive(Deserialize)]
struct Picture {
    file: String,
    white: std::collections::BTreeMap<String, Digest>,
    none: std::collections::BTreeMap<String, Digest>,
}

#[derive(Deserialize)]
struct Digest {
    height: u32,
    width: u32,
    blake3: String,
}

#[test]
fn every_picture_has_pillows_pixels() {
    let expected: Expected = serde_json::from_slice(&read("pixels/expected.json")).unwrap();
    assert_eq!((expected.pictures.len(), expected.drawn.len()), (25, 2));
    let mut wrong = Vec::new();
    let pictures = expected.pictures.iter().map(|picture| ("images", picture));
    for (folder, picture) in pictures.chain(expected.drawn.iter().map(|picture| ("pixels", picture))) {
        let encoded = read(&format!("{folder}/{}", picture.file));
        for (background, digests) in [(Background::WHITE, &picture.white), (Background::None, &picture.none)]
        {
            for (name, digest) in digests {
                let options = ImagingOptions { background, ..OPTIONS };
                let pixels = prepare(&encoded, &named(name), &options).unwrap();
                assert_eq!(pixels.rgb8.len() as u32, pixels.height * pixels.width * 3);
                let same = (pixels.height, pixels.width) == (digest.height, digest.width)
                    && blake3::hash(&pixels.rgb8).to_hex().as_str() == digest.blake3;
                if !same {
                    wrong.push(format!("{} {name} {background:?}", picture.file));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "differ from Pillow: {wrong:#?}");
}

#[test]
fn fast_pixels_stay_close() {
    let expected: Expected = serde_json::from_slice(&read("pixels/expected.json")).unwrap();
    let mut n_reduced = 0;
    for picture in &expected.pictures {
        let encoded = read(&format!("images/{}", picture.file));
        for name in picture.white.keys() {
            let [exact, fast] =
                [OPTIONS, FAST].map(|options| prepare(&encoded, &named(name), &options).unwrap());
            assert_eq!((fast.height, fast.width), (exact.height, exact.width));
            if exact == fast {
                continue;
            }
            assert!(picture.file.ends_with(".jpg"), "{}: only JPEGs are reduced", picture.file);
            n_reduced += 1;
            let squares = exact.rgb8.iter().zip(&fast.rgb8).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
            let psnr = 10.0 * (255.0 * 255.0 * exact.rgb8.len() as f64 / squares.sum::<f64>()).log10();
            assert!(psnr >= 40.0, "{} {name}: {psnr:.1} dB", picture.file);
        }
    }
    assert!(n_reduced >= 10, "only {n_reduced} were reduced");
}

/// In either mode the same.
fn kind_of(encoded: &[u8]) -> (ItemErrorKind, String) {
    let [exact, fast] = [OPTIONS, FAST].map(|options| prepare(encoded, &clip(), &options).unwrap_err());
    assert_eq!(exact, fast);
    (exact.kind(), exact.to_string())
}

#[test]
fn bad_files_are_told_apart() {
    for (file, kind, words) in [
        ("empty", ItemErrorKind::EmptyImage, "empty"),
        ("not_an_image.html", ItemErrorKind::NotAnImage, "an HTML page; JPEG, PNG"),
        ("truncated.jpg", ItemErrorKind::Corrupt, "breaks off"),
        ("truncated.png", ItemErrorKind::Corrupt, "PNG"),
        ("huge_header.png", ItemErrorKind::TooManyPixels, "100000x100000, above `image.max_pixels` 50000000"),
    ] {
        let (actual, message) = kind_of(&read(&format!("bad/{file}")));
        assert!(actual == kind && message.contains(words), "{file}: {actual} {message}");
    }
}

#[test]
fn what_is_no_picture_is_named() {
    for (bytes, words) in [
        (
            &b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..],
            "HEIC picture, which patents keep from being read: convert",
        ),
        (b"\xff\x0a", "JPEG XL"),
        (b"8BPS", "Photoshop"),
        (b"\0\0\x01\0", "icon"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw file"),
        (b"<?xml version=\"1.0\"?>\n<svg xmlns=\"x\"/>", "SVG"),
        (b"\xef\xbb\xbf hello", "text"),
        (b"%PDF-1.7", "PDF"),
        (b"\x01\x02\x03", "unknown"),
    ] {
        let (kind, message) = kind_of(bytes);
        assert!(kind == ItemErrorKind::NotAnImage && message.contains(words), "{message}");
    }
}

#[test]
fn no_format_survives_being_cut() {
    for file in ["photo_gray.jpg", "palette_trns.png", "anim.gif", "photo.bmp", "anim.webp", "interlaced.png"]
    {
        let encoded = read(&format!("images/{file}"));
        // The first of an animation's three frames may well be whole after a third of the file.
        for length in (1..encoded.len() / 4).step_by(encoded.len() / 49) {
            for options in [OPTIONS, FAST] {
                assert!(prepare(&encoded[..length], &clip(), &options).is_err(), "{file} cut to {length}");
            }
        }
    }
}

#[test]
fn the_limit_counts_pixels() {
    let encoded = read("images/photo_baseline_420.jpg");
    let small = spec(Resize::ShortestEdge(40), None, Filter::Bicubic);
    for options in [OPTIONS, FAST] {
        let prepare =
            |max_pixels| prepare(&encoded, &small, &ImagingOptions { max_pixels, ..options.clone() });
        assert!(prepare(160_000).is_ok());
        let error = prepare(159_999).unwrap_err();
        assert_eq!(error, ImagingError::TooManyPixels { width: 400, height: 400, limit: 159_999 });
    }
}

fn encode(image: impl Into<image::DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

#[test]
fn extreme_aspect_ratios_cost_only_their_window() {
    for (width, height) in [(65535, 1), (1, 65535)] {
        // A ramp along the long side: the middle of it is what the crop sees.
        let ramp = RgbImage::from_fn(width, height, |x, y| image::Rgb([((x + y) >> 8) as u8; 3]));
        let encoded = encode(ramp, ImageFormat::Png);
        let pixels = prepare(&encoded, &clip(), &OPTIONS).unwrap();
        assert_eq!((pixels.width, pixels.height), (224, 224));
        assert!(pixels.rgb8.iter().all(|v| (127..=128).contains(v)), "the crop is not the middle");
        // A resize to an exact size reads all of it.
        let exact = spec(Resize::Exact { height: 8, width: 8 }, None, Filter::Bicubic);
        let pixels = prepare(&encoded, &exact, &OPTIONS).unwrap();
        assert!(pixels.rgb8[0] < 20 && pixels.rgb8[8 * 8 * 3 - 1] > 235);
        // Without a crop the result itself would be gigabytes.
        let whole = spec(Resize::ShortestEdge(224), None, Filter::Bicubic);
        let error = prepare(&encoded, &whole, &OPTIONS).unwrap_err();
        assert!(matches!(error, ImagingError::ResizedTooLarge { .. }), "{error}");
    }
}

#[test]
fn a_long_side_is_reckoned_before_it_is_resampled() {
    let exact = spec(Resize::Exact { height: 384, width: 384 }, None, Filter::Bicubic);
    let options = ImagingOptions { max_memory_bytes: 64 << 20, ..OPTIONS };
    for (width, height) in [(5_000_000, 1), (1, 5_000_000)] {
        let encoded = encode(GrayImage::new(width, height), ImageFormat::Png);
        // 384 times 2 x 2 x 5,000,000 / 384 weights of four bytes; decoding takes a quarter.
        let error = prepare(&encoded, &exact, &options).unwrap_err();
        assert!(matches!(error, ImagingError::TooMuchMemory { .. }), "{error}");
        assert_eq!(error.kind(), ItemErrorKind::TooManyPixels);
    }
}

#[test]
fn resampling_is_held_to_the_time() {
    // Decoded in no time, and then a hundred thousand columns of each row, before the rows become ten.
    let encoded = encode(GrayImage::new(20, 2000), ImageFormat::Png);
    let exact = spec(Resize::Exact { height: 10, width: 100_000 }, None, Filter::Bicubic);
    let options = ImagingOptions { timeout_ms: 20, ..OPTIONS };
    let error = prepare(&encoded, &exact, &options).unwrap_err();
    assert_eq!(error, ImagingError::TooSlow { format: "PNG", limit_ms: 20 });
}

#[test]
fn a_flat_picture_stays_flat_in_every_format() {
    let exact = spec(Resize::Exact { height: 9, width: 5 }, None, Filter::Bicubic);
    for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Bmp, ImageFormat::WebP] {
        let flat = RgbImage::from_pixel(31, 17, image::Rgb([10, 200, 255]));
        let pixels = prepare(&encode(flat, format), &exact, &OPTIONS).unwrap();
        assert!(pixels.rgb8.chunks(3).all(|p| p == [10, 200, 255]), "{format:?}");
    }
    let gray = encode(GrayImage::from_pixel(3, 3, image::Luma([99])), ImageFormat::Tiff);
    assert!(prepare(&gray, &exact, &OPTIONS).unwrap().rgb8.iter().all(|&v| v == 99));
}
