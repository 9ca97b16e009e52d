//! TIFF files that are written out here, since no encoder makes them.

use super::super::{ImageSpec, ImagingOptions, prepare};
use super::*;
use crate::domain::{Filter, Resize};

/// A file in Intel's byte order: a directory of `tags` (tag, value), and `data`, which is its only strip.
fn file(tags: &[(u16, u32)], data: &[u8]) -> Vec<u8> {
    const LONG: u16 = 4;
    let end = 8 + 2 + 12 * (tags.len() + 2) + 4;
    let of_data = [(273, end as u32), (279, data.len() as u32)];
    let mut tags = [tags, &of_data].concat();
    tags.sort_unstable();
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend((tags.len() as u16).to_le_bytes());
    for (tag, value) in tags {
        file.extend([tag, LONG].map(u16::to_le_bytes).concat());
        file.extend([1, value].map(u32::to_le_bytes).concat());
    }
    file.extend([0; 4]);
    file.extend(data);
    file
}

fn read(file: &[u8], options: &ImagingOptions) -> Result<(), ImagingError> {
    let spec = ImageSpec {
        resize: Resize::Exact { height: 8, width: 8 },
        crop: None,
        filter: Filter::Bilinear,
        rescale_factor: 1.0,
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    prepare(file, &spec, options).map(drop)
}

#[test]
fn a_message_does_not_list_every_sample() {
    let tags = [(256, 1), (257, 1), (258, 255), (262, 6), (277, 65535), (278, 1)];
    let error = read(&file(&tags, &[0]), &ImagingOptions::REFERENCE).unwrap_err();
    let ImagingError::Unsupported { detail, .. } = error else { panic!("{error}") };
    assert_eq!(detail.len(), 200, "{detail}");
}

/// A page of one strip, which is `jpeg`.
fn of_jpeg(width: u32, height: u32, jpeg: &[u8]) -> Vec<u8> {
    file(&[(256, width), (257, height), (258, 8), (259, 7), (262, 2), (277, 3), (278, height)], jpeg)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn a_jpeg_inside_is_held_to_the_limits() {
    let options = ImagingOptions { max_pixels: 400 * 400, ..ImagingOptions::REFERENCE };
    let jpeg = fixture("images/photo_baseline_420.jpg");
    assert_eq!(read(&of_jpeg(400, 400, &jpeg), &options), Ok(()));
    // 3 x 400 x 400 samples, of three bytes each.
    let narrow = ImagingOptions { max_memory_bytes: 9 * 400 * 400, ..options.clone() };
    let error = read(&of_jpeg(8, 8, &jpeg), &narrow).unwrap_err();
    assert!(matches!(error, ImagingError::TooMuchMemory { .. }), "{error}");

    let mut large = jpeg.clone();
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    large[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
    let error = read(&of_jpeg(8, 8, &large), &options).unwrap_err();
    assert_eq!(error, ImagingError::TooManyPixels { width: 16384, height: 16384, limit: 160_000 });
}

#[test]
fn a_progressive_jpeg_inside_is_refused() {
    let jpeg = fixture("images/photo_progressive_420.jpg");
    let error = read(&of_jpeg(400, 400, &jpeg), &ImagingOptions::REFERENCE).unwrap_err();
    assert!(matches!(error, ImagingError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("progressive"), "{error}");
}

#[test]
fn the_crates_limits_follow_ours() {
    let (small, large) = (raised_limits(1, &[0]), raised_limits(300 << 20, &[0]));
    assert_eq!(small.decoding_buffer_size, decoder::Limits::default().decoding_buffer_size);
    assert_eq!(large.decoding_buffer_size, 600 << 20);
}
