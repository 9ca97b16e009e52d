//! TIFF files that are written out here, since no encoder makes them.

use super::super::{ImageSpec, ImagingOptions, prepare};
use super::*;
use crate::domain::{Filter, Resize};

const LONG: u16 = 4;

/// A file in Intel's byte order: a directory of `tags` (tag, value), and `data`, which is its only strip.
fn file(tags: &[(u16, u32)], data: &[u8]) -> Vec<u8> {
    let end = 8 + 2 + 12 * (tags.len() + 2) + 4;
    let of_data = [(273, end as u32), (279, data.len() as u32)];
    let tags = [tags, &of_data].concat().into_iter().map(|(tag, value)| (tag, LONG, 1, value));
    [directory(tags.collect()), data.to_vec()].concat()
}

/// What is before the data: a directory of `tags` (tag, type, count, value or where values are).
fn directory(mut tags: Vec<(u16, u16, u32, u32)>) -> Vec<u8> {
    tags.sort_unstable();
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend((tags.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in tags {
        file.extend([tag, kind].map(u16::to_le_bytes).concat());
        file.extend([count, value].map(u32::to_le_bytes).concat());
    }
    file.extend([0; 4]);
    file
}

/// A gray page of `n_tiles` (more than one), all of which are the same `jpeg`.
fn of_tiles([width, height]: [u32; 2], tile: u32, n_tiles: u32, jpeg: &[u8]) -> Vec<u8> {
    let end = 8 + 2 + 12 * 10 + 4;
    let lists = 2 * 4 * n_tiles;
    let plain =
        [(256, width), (257, height), (258, 8), (259, 7), (262, 1), (277, 1), (322, tile), (323, tile)];
    let mut tags: Vec<_> = plain.map(|(tag, value)| (tag, LONG, 1, value)).into();
    tags.extend([(324, LONG, n_tiles, end), (325, LONG, n_tiles, end + 4 * n_tiles)]);
    let list = |value: u32| value.to_le_bytes().repeat(n_tiles as usize);
    [directory(tags), list(end + lists), list(jpeg.len() as u32), jpeg.to_vec()].concat()
}

/// A gray JPEG that breaks off before its first pixel.
fn hollow(side: u32) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_GRAYSCALE);
    encoder.set_fastest_defaults();
    encoder.set_size(side as usize, side as usize);
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(&vec![128; (side * side) as usize]).unwrap();
    let jpeg = encoder.finish().unwrap();
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    [&jpeg[..scan + 10], b"\xff\xd9"].concat()
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
    let error = read(&of_jpeg(400, 400, &jpeg), &narrow).unwrap_err();
    assert!(matches!(error, ImagingError::TooMuchMemory { .. }), "{error}");

    let mut large = jpeg.clone();
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    large[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
    let error = read(&of_jpeg(16384, 16384, &large), &options).unwrap_err();
    assert_eq!(error, ImagingError::TooManyPixels { width: 16384, height: 16384, limit: 160_000 });
}

#[test]
fn a_jpeg_inside_is_no_larger_than_its_strip_or_tile() {
    let options = ImagingOptions::REFERENCE;
    let jpeg = fixture("images/photo_baseline_420.jpg");
    // Padding to whole blocks is common.
    assert_eq!(read(&of_jpeg(399, 390, &jpeg), &options), Ok(()));
    for error in [
        read(&of_jpeg(300, 400, &jpeg), &options).unwrap_err(),
        read(&of_jpeg(400, 300, &jpeg), &options).unwrap_err(),
        read(&of_tiles([7000; 2], 224, 1024, &hollow(7000)), &options).unwrap_err(),
    ] {
        assert!(matches!(error, ImagingError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("strip or tile of"), "{error}");
    }
    assert_eq!(read(&of_tiles([448; 2], 224, 4, &hollow(224)), &options), Ok(()));
}

#[test]
fn tiles_that_are_one_place_take_no_more_time_than_others() {
    // Of each tile the page shows one column, and all are the same piece of the file.
    let file = of_tiles([1, 1_000_000], 2000, 500, &hollow(2000));
    assert!(file.len() < 8192);
    let options = ImagingOptions { timeout_ms: 100, ..ImagingOptions::REFERENCE };
    let began = std::time::Instant::now();
    let error = read(&file, &options).unwrap_err();
    assert_eq!(error, ImagingError::TooSlow { format: FORMAT, limit_ms: 100 });
    assert!(began.elapsed().as_secs() < 4, "{:?}", began.elapsed());
}

#[test]
fn a_part_larger_than_a_picture_may_be_is_refused() {
    let strip = file(&[(256, 8), (257, 8), (258, 8), (262, 1), (277, 1), (278, u32::MAX)], &[0; 64]);
    assert_eq!(read(&strip, &ImagingOptions::REFERENCE), Ok(()));
    let tile = of_tiles([8, 16_000], 8000, 2, &hollow(8));
    let error = read(&tile, &ImagingOptions::REFERENCE).unwrap_err();
    assert_eq!(error, ImagingError::TooManyPixels { width: 8000, height: 8000, limit: 50_000_000 });
}

#[test]
fn a_row_of_too_many_samples_is_refused() {
    const SHORT: u16 = 3;
    let n_samples = 60_000;
    let end = 8 + 2 + 12 * 9 + 4;
    let plain = [(256, 50_000_000), (257, 1), (258, 8), (262, 2), (277, n_samples), (278, 1)];
    let mut tags: Vec<_> = plain.map(|(tag, value)| (tag, LONG, 1, value)).into();
    let n_extra = n_samples - 3;
    tags.extend([(338, SHORT, n_extra, end), (273, LONG, 1, end), (279, LONG, 1, 1000)]);
    let file = [directory(tags), vec![0; 2 * n_extra as usize]].concat();
    let error = read(&file, &ImagingOptions::REFERENCE).unwrap_err();
    assert!(matches!(error, ImagingError::TooMuchMemory { .. }), "{error}");
}

#[test]
fn a_jpeg_inside_of_many_scans_is_refused() {
    let jpeg = fixture("images/photo_baseline_420.jpg");
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    let many = [&jpeg[..scan], &jpeg[scan..scan + 14].repeat(101), b"\xff\xd9"].concat();
    let error = read(&of_jpeg(400, 400, &many), &ImagingOptions::REFERENCE).unwrap_err();
    assert_eq!(error, ImagingError::TooManyScans { scans: 101, limit: 100 });
}

#[test]
fn a_progressive_jpeg_inside_is_refused() {
    let jpeg = fixture("images/photo_progressive_420.jpg");
    let error = read(&of_jpeg(400, 400, &jpeg), &ImagingOptions::REFERENCE).unwrap_err();
    assert!(matches!(error, ImagingError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("progressive"), "{error}");
}

/// Bytes of which these are the bits.
fn packed(bits: &str) -> Vec<u8> {
    let byte = |bits: &[u8]| bits.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
    bits.as_bytes().chunks(8).map(byte).collect()
}

#[test]
fn a_fax_of_many_changes_takes_no_more_time_than_others() {
    // Horizontal mode, and runs of white and of black.
    let [mode, white_0, white_2, white_100, black_0] =
        ["001", "00110101", "0111", "1101100010101", "0000110111"];
    let run = |white| [mode, white, black_0].concat();
    // A line of changes that are all in one place, so that it never ends; then one that goes over all of them, again and again.
    let mut bits = run(white_100) + &run(white_0).repeat(8 * 50_000);
    while (bits.len() + 2 * run(white_2).len() + 1) % 8 != 0 {
        bits += &run(white_0);
    }
    bits += &(run(white_2).repeat(2) + "1");
    let data = [packed(&bits), vec![0x82; 200_000]].concat();
    let tags = [(256, 2000), (257, 2000), (258, 1), (259, 4), (262, 0), (277, 1), (278, 2000)];
    let options = ImagingOptions { timeout_ms: 100, ..ImagingOptions::REFERENCE };
    let began = std::time::Instant::now();
    let error = read(&file(&tags, &data), &options).unwrap_err();
    assert_eq!(error, ImagingError::TooSlow { format: FORMAT, limit_ms: 100 });
    assert!(began.elapsed().as_secs() < 4, "{:?}", began.elapsed());
}

#[test]
fn lzw_without_an_end_is_no_corruption_for_sure() {
    // The code that begins, and nothing else.
    let tags = [(256, 8), (257, 8), (258, 8), (259, 5), (262, 1), (277, 1), (278, 8)];
    let error = read(&file(&tags, &[0x80, 0]), &ImagingOptions::REFERENCE).unwrap_err();
    assert_eq!(error, unsupported(LOST_IN_LZW));
}

#[test]
fn bits_of_parts_that_are_one_place_are_not_turned_for_each() {
    let lowest_first = (266, LONG, 1, LOWEST_FIRST.into());
    let end = 8 + 2 + 12 * 10 + 4;
    let n_strips = 1 << 16;
    let plain = [(256, 1), (257, n_strips), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)];
    let mut tags: Vec<_> = plain.map(|(tag, value)| (tag, LONG, 1, value)).into();
    tags.extend([lowest_first, (273, LONG, n_strips, end), (279, LONG, n_strips, end + 4 * n_strips)]);
    let lists = [8, 100_000].map(|value: u32| value.to_le_bytes().repeat(n_strips as usize));
    let file = [directory(tags), lists.concat()].concat();
    let error = read(&file, &ImagingOptions::REFERENCE).unwrap_err();
    assert_eq!(error, corrupt("its strips or tiles are longer than the file"));
}

#[test]
fn the_crates_limits_follow_ours() {
    let (small, large) = (raised_limits(1, &[0]), raised_limits(600 << 20, &[0]));
    assert_eq!(small.decoding_buffer_size, decoder::Limits::default().decoding_buffer_size);
    assert_eq!(large.decoding_buffer_size, 600 << 20);
}
