//! The centre crop: which window of the resized picture is needed, and the zeros around it.

use super::ImagingError;
use crate::domain::{ImageSpec, Pixels};

/// Pixels of a resized picture that are never too many.
const LARGEST_INPUT: u64 = 4096 * 4096;

/// Columns and rows of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub width: usize,
    pub height: usize,
}

/// One axis of the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// First position in the resized picture.
    pub start: usize,
    /// Positions taken from it.
    pub len: usize,
    /// Zeros before them.
    pub before: usize,
    /// Positions of the result.
    pub total: usize,
}

/// What the crop takes from the resized picture, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub columns: Span,
    pub rows: Span,
}

/// The window of `resized` that a centre crop `[height, width]` keeps; all of it without a crop.
pub(super) fn window(resized: Size, crop: Option<[u32; 2]>) -> Window {
    let [height, width] = crop.map_or([resized.height, resized.width], |size| size.map(|n| n as usize));
    Window { columns: span(resized.width, width), rows: span(resized.height, height) }
}

fn span(size: usize, crop: usize) -> Span {
    if size >= crop {
        Span { start: (size - crop) / 2, len: crop, before: 0, total: crop }
    } else {
        Span { start: 0, len: size, before: (crop - size).div_ceil(2), total: crop }
    }
}

impl Window {
    /// Refuses a result above `max_pixels`. Only a shortest-edge resize without a crop can ask for it: a
    /// model's own input size is never the caller's fault, so it passes however low the limit is.
    pub(super) fn check(&self, max_pixels: u64) -> Result<(), ImagingError> {
        let (width, height) = (self.columns.len as u64, self.rows.len as u64);
        if width.saturating_mul(height) > max_pixels.max(LARGEST_INPUT) {
            return Err(ImagingError::ResizedTooLarge { width, height, limit: max_pixels });
        }
        Ok(())
    }
}

/// The most pixels that a picture prepared for `spec` can have.
pub(super) fn most_pixels(spec: &ImageSpec, max_pixels: u64) -> u64 {
    let [height, width] = spec.size().map(u64::from);
    max_pixels.max(LARGEST_INPUT).max(height * width)
}

/// Puts the resampled window (RGB8, `rows.len` x `columns.len`) into the crop, zeros around it.
pub(super) fn pad(resampled: Vec<u8>, window: &Window) -> Pixels {
    let Window { columns, rows } = window;
    let (width, height) = (columns.total as u32, rows.total as u32);
    if columns.len == columns.total && rows.len == rows.total {
        return Pixels { rgb8: resampled, height, width };
    }
    let mut rgb8 = vec![0; columns.total * rows.total * 3];
    let inside = rgb8.chunks_exact_mut(columns.total * 3).skip(rows.before);
    for (target, source) in inside.zip(resampled.chunks_exact(columns.len * 3)) {
        target[columns.before * 3..][..columns.len * 3].copy_from_slice(source);
    }
    Pixels { rgb8, height, width }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_by_floor_and_pads_by_ceil() {
        assert_eq!(span(229, 224), Span { start: 2, len: 224, before: 0, total: 224 });
        assert_eq!(span(224, 224), Span { start: 0, len: 224, before: 0, total: 224 });
        assert_eq!(span(2, 5), Span { start: 0, len: 2, before: 2, total: 5 });
    }

    #[test]
    fn zeros_surround_a_small_picture() {
        let window = window(Size { width: 1, height: 3 }, Some([2, 2]));
        let pixels = pad(vec![7; 6], &window);
        assert_eq!((pixels.width, pixels.height), (2, 2));
        assert_eq!(pixels.rgb8, [0, 0, 0, 7, 7, 7, 0, 0, 0, 7, 7, 7]);
    }
}
