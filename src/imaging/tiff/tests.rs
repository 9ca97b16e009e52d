//! TIFF files that are written out here, since no encoder makes them.

use super::super::{ImageSpec, ImagingOptions, prepare};
use super::*;
use crate::domain::{Filter, Resize};

/// A file in Intel's byte order: a directory of `tags` (tag, value), in their order, and `data`, where the tags of
/// strips place it whole.
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
