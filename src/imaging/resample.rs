//! Pillow's 8-bit resize: a separable convolution, stretched when shrinking, in 22-bit fixed point.
//!
//! Horizontal pass first, rounded and clamped to 8 bits, then the vertical one; a pass that changes nothing is
//! skipped. Only the window that the crop keeps is computed, at values identical to cropping the whole.
//!
//! Both passes are one loop, [`weigh`]: a weighted sum of rows of `LANES` samples, which the compiler
//! vectorises. The horizontal pass gets there by transposing a few rows at a time.
//!
//! Source: Pillow 12 `src/libImaging/Resample.c`.

use image::RgbImage;

use super::crop::{Size, Span, Window};
use super::orient::{Axis, Grid};
use crate::domain::{Filter, Resize};

/// Fraction bits of the weights.
const BITS: u32 = 22;

/// Rows that the horizontal pass works on at once.
const ROWS: usize = 16;

/// Samples that [`weigh`] sums side by side.
const LANES: usize = ROWS * 3;

/// Source columns to transpose at once, so that they stay in the processor's cache.
const COLUMNS: usize = 1024;

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

/// The window of a picture resized to `size`: RGB8 `[rows.len, columns.len, 3]`. `rgb` has its pixels, on `grid`.
pub(super) fn resample(rgb: &RgbImage, grid: &Grid, size: Size, window: &Window, filter: Filter) -> Vec<u8> {
    let source = Size { width: rgb.width() as usize, height: rgb.height() as usize };
    let Window { columns, rows } = window;
    let changes = |axis: &Axis, n_out| *axis != Axis { full: n_out, step: 1, lead: 0 };
    let across = changes(&grid.columns, size.width).then(|| taps(&grid.columns, size.width, columns, filter));
    let down = changes(&grid.rows, size.height).then(|| taps(&grid.rows, size.height, rows, filter));

    // The source rows that the window's rows are made of.
    let (first, end) = match &down {
        Some(taps) => (taps[0].first, taps.iter().map(Taps::end).max().unwrap_or(0)),
        None => (rows.start, rows.start + rows.len),
    };
    // The picture between the passes; its rows are padded so that `weigh` needs no special end.
    let stride = (columns.len * 3).next_multiple_of(LANES);
    let mut between = vec![0; stride * (end - first)];
    let row_bytes = source.width * 3;
    let needed = &rgb.as_raw()[first * row_bytes..end * row_bytes];
    match &across {
        Some(taps) => horizontal(needed, row_bytes, taps, &mut between, stride),
        None => {
            for (target, source) in between.chunks_exact_mut(stride).zip(needed.chunks_exact(row_bytes)) {
                target[..columns.len * 3].copy_from_slice(&source[columns.start * 3..][..columns.len * 3]);
            }
        }
    }
    let mut result = Vec::with_capacity(columns.len * rows.len * 3);
    match &down {
        Some(taps) => vertical(&between, stride, first, taps, columns.len * 3, &mut result),
        None => between.chunks_exact(stride).for_each(|row| result.extend(&row[..columns.len * 3])),
    }
    result
}

/// What one output position is made of.
struct Taps {
    /// First input position.
    first: usize,
    /// Weights of the positions from there on, times 2^22.
    weights: Vec<i32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// The taps of the output positions in `span`, those of the full `axis` becoming `n_out`.
fn taps(axis: &Axis, n_out: usize, span: &Span, filter: Filter) -> Vec<Taps> {
    positions(axis.full, n_out, span, filter)
        .map(|taken| {
            let total: f64 = taken.weights.iter().sum();
            let total = if total == 0.0 { 1.0 } else { total };
            let Positions { first, weights } = taken.of_pixels(axis);
            // round() goes half away from zero, as Pillow does.
            let fixed = |w: f64| (w / total * f64::from(1 << BITS)).round() as i32;
            Taps { first, weights: weights.into_iter().map(fixed).collect() }
        })
        .collect()
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
    let (kernel, radius): (fn(f64) -> f64, f64) = match filter {
        Filter::Bilinear => (bilinear, 1.0),
        Filter::Bicubic => (bicubic, 2.0),
    };
    let scale = n_full as f64 / n_out as f64;
    // Shrinking widens the kernel: this is the antialiasing.
    let stretch = scale.max(1.0);
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

/// Fills the first `taps.len() * 3` samples of every row of `out`.
fn horizontal(source: &[u8], row_bytes: usize, taps: &[Taps], out: &mut [u8], stride: usize) {
    let mut transposed = Vec::new();
    for (source, out) in source.chunks(row_bytes * ROWS).zip(out.chunks_mut(stride * ROWS)) {
        let mut done = 0;
        while done < taps.len() {
            // As many output columns as a block of source columns serves, but at least one.
            let first = taps[done].first;
            let served = taps[done + 1..].iter().take_while(|taps| taps.end() - first <= COLUMNS).count();
            let block = &taps[done..=done + served];
            let end = block.iter().map(Taps::end).max().unwrap_or(first);
            transposed.resize((end - first) * LANES, 0);
            for (r, row) in source.chunks_exact(row_bytes).enumerate() {
                let pixels = row[first * 3..end * 3].chunks_exact(3);
                for (column, pixel) in transposed.chunks_exact_mut(LANES).zip(pixels) {
                    column[r * 3..r * 3 + 3].copy_from_slice(pixel);
                }
            }
            for (x, taps) in block.iter().enumerate() {
                let samples = weigh(&transposed[(taps.first - first) * LANES..], LANES, &taps.weights);
                let at = (done + x) * 3;
                for (row, pixel) in out.chunks_exact_mut(stride).zip(samples.chunks_exact(3)) {
                    row[at..at + 3].copy_from_slice(pixel);
                }
            }
            done += served + 1;
        }
    }
}

/// Appends `taps.len()` rows of `row_bytes` samples; `between` starts at input row `first`.
fn vertical(between: &[u8], stride: usize, first: usize, taps: &[Taps], row_bytes: usize, out: &mut Vec<u8>) {
    for taps in taps {
        let rows = &between[(taps.first - first) * stride..];
        for at in (0..row_bytes).step_by(LANES) {
            let samples = weigh(&rows[at..], stride, &taps.weights);
            out.extend_from_slice(&samples[..LANES.min(row_bytes - at)]);
        }
    }
}

/// The sum of `LANES` samples every `stride`, by weight, rounded and clamped to 8 bits.
#[inline]
fn weigh(source: &[u8], stride: usize, weights: &[i32]) -> [u8; LANES] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2; the function is otherwise safe code.
        return unsafe { weigh_avx2(source, stride, weights) };
    }
    weigh_with(source, stride, weights)
}

/// The same code, compiled for eight lanes: x86-64 without it cannot multiply four 32-bit integers at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn weigh_avx2(source: &[u8], stride: usize, weights: &[i32]) -> [u8; LANES] {
    weigh_with(source, stride, weights)
}

#[inline(always)]
fn weigh_with(source: &[u8], stride: usize, weights: &[i32]) -> [u8; LANES] {
    // Weights add up to 2^22 and the negative ones are few, so 255 times their sum stays within 32 bits.
    let mut sums = [1_i32 << (BITS - 1); LANES];
    for (k, &weight) in weights.iter().enumerate() {
        let samples = &source[k * stride..k * stride + LANES];
        for (sum, &sample) in sums.iter_mut().zip(samples) {
            *sum += i32::from(sample) * weight;
        }
    }
    sums.map(|sum| (sum >> BITS).clamp(0, 255) as u8)
}
