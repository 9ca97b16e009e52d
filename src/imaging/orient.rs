//! Turns a picture upright, as its EXIF orientation asks (transformers' `load_image` does the same).

use image::DynamicImage;
use image::metadata::Orientation;

/// The orientation in EXIF data (a TIFF header and what follows); none when it is absent or unreadable.
pub(super) fn from_exif(tiff: &[u8]) -> Orientation {
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}

/// Rotates and mirrors, exactly.
pub(super) fn upright(mut image: DynamicImage, orientation: Orientation) -> DynamicImage {
    image.apply_orientation(orientation);
    image
}
