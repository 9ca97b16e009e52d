//! How large a picture becomes, and what each of its new columns and rows takes of the old ones: Pillow's kernels,
//! stretched when shrinking. The passes over the pixels, `resample.rs` and `planes.rs`, put the weights in fixed point.
//!
//! Source: Pillow 12 `src/libImaging/Resample.c`; for sizes transformers' `get_resize_output_image_size`.

use super::crop::{Size, Span};
use super::orient::Axis;
use crate::domain::{Filter, Resize};

/// The size that `resize` gives to a picture of this size.
pub(super) fn target_size(Size { width, height }: Size, resize: Resize) -> Size {
    // Python's int(n * long / short): an exact product, one rounding in the division, truncated.
    let scaled = |n: u32, long: usize, short: usize| ((n as usize * long) as f64 / short as f64) as usize;
    match resize {
        Resize::Exact { height, width } => Size { width: width as usize, height: height as usize },
        Resize::ShortestEdge(n) if width <= height => {
            Size { width: n as usize, height: scaled(n, height, width) }
        }
        Resize::ShortestEdge(n) => Size { width: scaled(n, width, height), height: n as usize },
    }
}

/// What one output position takes of the positions of an axis.
#[derive(Clone)]
pub(super) struct Positions {
    /// The first one.
    pub first: usize,
    /// Their weights from there on, one at least; they need not add up to 1.
    pub weights: Vec<f64>,
}

impl Positions {
    /// What it takes of the pixels that stand for them.
    ///
    /// One that stands for several gets the sum of their weights, so that a reduced picture is softened as the full one
    /// would be. Weights made for its own size keep it sharper, and vectors less alike.
    pub fn of_pixels(&self, axis: &Axis) -> Self {
        let end = self.first + self.weights.len();
        let first = axis.pixel(self.first);
        let mut weights = vec![0.0; axis.pixel(end - 1) + 1 - first];
        for (position, weight) in (self.first..end).zip(&self.weights) {
            weights[axis.pixel(position) - first] += weight;
        }
        Self { first, weights }
    }
}

/// Of `n_full` positions that become `n_out`, what each output position in `span` takes.
pub(super) fn positions(
    n_full: usize,
    n_out: usize,
    span: &Span,
    filter: Filter,
) -> impl Iterator<Item = Positions> {
    let (kernel, radius) = kernel(filter);
    let (scale, stretch) = (n_full as f64 / n_out as f64, stretch(n_full, n_out));
    let (support, inverse) = (radius * stretch, 1.0 / stretch);
    (span.start..span.start + span.len).map(move |i| {
        let centre = (i as f64 + 0.5) * scale;
        // The casts truncate, and turn what is negative to 0.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(n_full);
        let weights = (first..end).map(|j| kernel((j as f64 - centre + 0.5) * inverse)).collect();
        Positions { first, weights }
    })
}

/// The most weights that one of `n_out` positions has.
pub(super) fn most_weights(n_full: usize, n_out: usize, filter: Filter) -> usize {
    let (_, radius) = kernel(filter);
    (2.0 * radius * stretch(n_full, n_out) + 2.0).min(n_full as f64) as usize
}

/// By how much the kernel is widened: by as much as the picture shrinks, which is the antialiasing.
fn stretch(n_full: usize, n_out: usize) -> f64 {
    (n_full as f64 / n_out as f64).max(1.0)
}

/// The kernel, and how far it reaches.
fn kernel(filter: Filter) -> (fn(f64) -> f64, f64) {
    match filter {
        Filter::Bilinear => (bilinear, 1.0),
        Filter::Bicubic => (bicubic, 2.0),
    }
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
