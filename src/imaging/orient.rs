//! Turns a picture upright, as its EXIF orientation asks (transformers' `load_image` does the same).

use image::metadata::Orientation;
use memchr::memmem;

use super::crop::Size;
use super::directory;

/// The tag in EXIF data and TIFF files.
const TAG: u16 = 274;

/// How the pixels of an upright picture, which may have been reduced, stand to those of the full size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub columns: Axis,
    pub rows: Axis,
}

/// One axis of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Axis {
    /// Positions at full size.
    pub full: usize,
    /// Full positions that one pixel stands for.
    pub step: usize,
    /// How many of those the first pixel lacks. The last one lacks what is missing to a whole `step`.
    pub lead: usize,
}

impl Grid {
    /// Of a picture whose file has the `full` size, and pixels that stand for `step` columns and rows of it.
    pub fn upright(full: Size, step: Size, orientation: Orientation) -> Self {
        let full = upright_size(full, orientation);
        let step = upright_size(step, orientation);
        let [columns, rows] = reversed(orientation);
        let axis = |full: usize, step: usize, is_reversed: bool| {
            let lead = if is_reversed { full.next_multiple_of(step) - full } else { 0 };
            Axis { full, step, lead }
        };
        Self { columns: axis(full.width, step.width, columns), rows: axis(full.height, step.height, rows) }
    }
}

impl Axis {
    /// The pixel that stands for a position.
    pub fn pixel(&self, position: usize) -> usize {
        (position + self.lead) / self.step
    }
}

/// The orientation in EXIF data (a TIFF header and what follows, or a whole TIFF file), else in an XMP packet. Unreadable
/// metadata does not spoil readable pixels.
///
/// Source: Pillow 12 `src/PIL/Image.py`, `Image.getexif`.
pub(super) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let code = exif.and_then(from_exif).or_else(|| xmp.and_then(from_xmp));
    let code = code.and_then(|code| u8::try_from(code).ok());
    code.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// What EXIF data says, as it stands there.
pub(super) fn from_exif(mut exif: &[u8]) -> Option<u32> {
    // What stands before EXIF data in a JPEG is copied into other files with it.
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    directory::number(exif, TAG)
}

/// By its text, as an attribute or an element.
fn from_xmp(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    memmem::find_iter(xmp, NAME).find_map(|at| {
        let value = &xmp[at + NAME.len()..];
        let value = value.strip_prefix(b"=\"").or_else(|| value.strip_prefix(b">"))?;
        char::from(*value.first()?).to_digit(10)
    })
}

/// The size of a picture once it is upright.
pub(super) fn upright_size(size: Size, orientation: Orientation) -> Size {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    match orientation {
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => {
            Size { width: size.height, height: size.width }
        }
        _ => size,
    }
}

/// Whether the columns and the rows, once upright, run against the axis of the file that they were.
fn reversed(orientation: Orientation) -> [bool; 2] {
    match orientation {
        Orientation::NoTransforms | Orientation::Rotate90FlipH => [false, false],
        Orientation::FlipHorizontal | Orientation::Rotate90 => [true, false],
        Orientation::FlipVertical | Orientation::Rotate270 => [false, true],
        Orientation::Rotate180 | Orientation::Rotate270FlipH => [true, true],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exif_counts_before_xmp() {
        let exif =
            |code| [&b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[code, 0, 0, 0]].concat();
        let xmp = |text: &str| format!("<x:xmpmeta a=\"tiff:Orientation\" {text}");
        for (exif, xmp, expected) in [
            (Some(exif(6)), None, Orientation::Rotate90),
            (Some(exif(6)[6..].into()), None, Orientation::Rotate90),
            (Some([&b"Exif\0\0"[..], &exif(8)].concat()), None, Orientation::Rotate270),
            (Some(exif(1)), Some(xmp("tiff:Orientation=\"3\"")), Orientation::NoTransforms),
            (Some(exif(9)), Some(xmp("tiff:Orientation=\"3\"")), Orientation::NoTransforms),
            (Some(b"Exif\0\0".into()), Some(xmp("tiff:Orientation=\"3\"")), Orientation::Rotate180),
            (None, Some(xmp("<tiff:Orientation>8</tiff:Orientation>")), Orientation::Rotate270),
            (None, Some(xmp("tiff:Orientation=\"")), Orientation::NoTransforms),
            (None, None, Orientation::NoTransforms),
        ] {
            let found = of(exif.as_deref(), xmp.as_deref().map(str::as_bytes));
            assert_eq!(found, expected, "{exif:?} {xmp:?}");
        }
    }

    #[test]
    fn a_pixel_that_lacks_positions_is_followed() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).unwrap();
            // 9x17 in steps of 2 is 5x9 pixels; the last column and the last row stand for one position each.
            let pixel = |x, y| image::Luma([u8::from(x == 4) | u8::from(y == 8)]);
            let mut image = image::DynamicImage::from(image::GrayImage::from_fn(5, 9, pixel));
            let grid =
                Grid::upright(Size { width: 9, height: 17 }, Size { width: 2, height: 2 }, orientation);
            image.apply_orientation(orientation);
            let image = image.into_luma8();
            let (width, height) = image.dimensions();
            let axis = |pixels: u32, first: &image::Luma<u8>| Axis {
                full: pixels as usize * 2 - 1,
                step: 2,
                lead: first[0].into(),
            };
            // A line through the middle meets them at its start or at its end.
            let columns = axis(width, image.get_pixel(0, height / 2));
            let rows = axis(height, image.get_pixel(width / 2, 0));
            assert_eq!(grid, Grid { columns, rows }, "{orientation:?}");
        }
    }
}
