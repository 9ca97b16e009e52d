//! Pillow's 8-bit resize: a separable convolution, stretched when shrinking, in 22-bit fixed point.
//!
//! Horizontal pass first, rounded and clamped to 8 bits, then the vertical one, or the other way round where a very tall
//! picture becomes less tall; a pass that changes nothing is skipped. Only the window that the crop keeps is computed, at
//! values identical to cropping the whole.
//!
//! What lies between the passes is made and used up in bands of a few rows, so that it stays in the processor's cache, and
//! a picture of one column and millions of rows does not become one of hundreds of columns.
//!
//! Both passes are one loop, [`weigh`]: a weighted sum of rows of `LANES` samples, which the compiler
//! vectorises. The horizontal pass gets there by transposing a few rows at a time.
//!
//! Source: Pillow 12 `src/libImaging/Resample.c`, and `src/PIL/Image.py` for the order of passes.

use std::collections::VecDeque;

use image::RgbImage;

use super::ImagingError;
use super::crop::{Size, Span, Window};
use super::orient::{Axis, Grid};
use super::positions::{Positions, most_weights, positions};
use crate::domain::Filter;

/// Fraction bits of the weights.
const BITS: u32 = 22;

/// Rows that the horizontal pass works on at once.
const ROWS: usize = 16;

/// Samples that [`weigh`] sums side by side.
const LANES: usize = ROWS * 3;

/// Source columns to transpose at once, so that they stay in the processor's cache.
const COLUMNS: usize = 1024;

/// Bytes of a band between the passes, unless that is less than `ROWS` rows.
const BAND_BYTES: usize = 256 << 10;

/// The most bytes that [`resample`] takes beside the picture and the window, if the upright picture has `full` columns and
/// rows. They are for the taps, of which each position of a side has some, and grow with the longest side.
pub(super) fn bytes(full: Size, resized: Size, window: &Window, filter: Filter) -> u64 {
    let taps = |weights: u64, span: &Span| {
        // Those of the position at hand are reckoned in other numbers before.
        let (own, at_hand) = (size_of::<Taps>() as u64, 2 * size_of::<f64>() as u64);
        (span.len as u64).saturating_mul(own + size_of::<i32>() as u64 * weights) + at_hand * weights
    };
    let across = most_weights(full.width, resized.width, filter) as u64;
    let down = most_weights(full.height, resized.height, filter) as u64;
    let transposed = LANES as u64 * across.max(COLUMNS as u64);
    let flattened = if is_flattened(full, resized) { 3 * full.width * window.rows.len } else { 0 };
    taps(across, &window.columns)
        .saturating_add(taps(down, &window.rows))
        .saturating_add(transposed)
        .saturating_add(flattened as u64)
}

/// Whether the vertical pass comes first.
fn is_flattened(full: Size, resized: Size) -> bool {
    full.height > full.width.saturating_mul(100) && resized.height < full.height
}

/// The window of a picture resized to `size`: RGB8 `[rows.len, columns.len, 3]`. `rgb` has its pixels, on `grid`.
/// `check_time` is asked before each band, and before each output column that takes long.
///
/// # Errors
/// That of `check_time`.
pub(super) fn resample(
    rgb: &RgbImage,
    grid: &Grid,
    size: Size,
    window: &Window,
    filter: Filter,
    check_time: impl Fn() -> Result<(), ImagingError>,
) -> Result<Vec<u8>, ImagingError> {
    let in_bands = |rgb: &RgbImage, grid: &Grid, size, window: &Window| {
        let n_rows = BAND_BYTES / stride(&window.columns) / ROWS * ROWS;
        in_bands(n_rows.max(ROWS), rgb, grid, size, window, filter, &check_time)
    };
    if !is_flattened(Size { width: grid.columns.full, height: grid.rows.full }, size) {
        return in_bands(rgb, grid, size, window);
    }
    let (all, whole) =
        (|full| Axis { full, step: 1, lead: 0 }, |len| Span { start: 0, len, before: 0, total: len });
    let (n_columns, n_rows) = (rgb.width() as usize, window.rows.len);
    let flat = in_bands(
        rgb,
        &Grid { columns: all(n_columns), rows: grid.rows },
        Size { width: n_columns, height: size.height },
        &Window { columns: whole(n_columns), rows: window.rows },
    )?;
    let flat = RgbImage::from_raw(n_columns as u32, n_rows as u32, flat).expect("all rows of the window");
    in_bands(
        &flat,
        &Grid { columns: grid.columns, rows: all(n_rows) },
        Size { width: size.width, height: n_rows },
        &Window { columns: window.columns, rows: whole(n_rows) },
    )
}

/// Samples of a row between the passes, padded so that `weigh` needs no special end.
fn stride(columns: &Span) -> usize {
    (columns.len * 3).next_multiple_of(LANES)
}

/// The same, in bands of `n_rows`, a multiple of `ROWS`.
fn in_bands(
    n_rows: usize,
    rgb: &RgbImage,
    grid: &Grid,
    size: Size,
    window: &Window,
    filter: Filter,
    check_time: impl Fn() -> Result<(), ImagingError>,
) -> Result<Vec<u8>, ImagingError> {
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
    let (row_bytes, out_bytes, stride) = (source.width * 3, columns.len * 3, stride(columns));
    let mut between = vec![0; stride * n_rows.min(end - first)];
    let mut down = down.map(|taps| Vertical::new(taps, stride, out_bytes));
    let mut result = Vec::with_capacity(out_bytes * rows.len);
    for start in (first..end).step_by(n_rows) {
        check_time()?;
        let end = end.min(start + n_rows);
        let band = &mut between[..stride * (end - start)];
        let needed = &rgb.as_raw()[start * row_bytes..end * row_bytes];
        match &across {
            Some(taps) => horizontal(needed, row_bytes, taps, band, stride, &check_time)?,
            None => {
                for (target, source) in band.chunks_exact_mut(stride).zip(needed.chunks_exact(row_bytes)) {
                    target[..out_bytes].copy_from_slice(&source[columns.start * 3..][..out_bytes]);
                }
            }
        }
        match &mut down {
            Some(vertical) => vertical.take(band, start, &mut result),
            None => band.chunks_exact(stride).for_each(|row| result.extend(&row[..out_bytes])),
        }
    }
    Ok(result)
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

/// Fills the first `taps.len() * 3` samples of every row of `out`.
fn horizontal(
    source: &[u8],
    row_bytes: usize,
    taps: &[Taps],
    out: &mut [u8],
    stride: usize,
    check_time: impl Fn() -> Result<(), ImagingError>,
) -> Result<(), ImagingError> {
    let mut transposed = Vec::new();
    for (source, out) in source.chunks(row_bytes * ROWS).zip(out.chunks_mut(stride * ROWS)) {
        let mut done = 0;
        while done < taps.len() {
            // As many output columns as a block of source columns serves, but at least one.
            let first = taps[done].first;
            let served = taps[done + 1..].iter().take_while(|taps| taps.end() - first <= COLUMNS).count();
            let block = &taps[done..=done + served];
            let end = block.iter().map(Taps::end).max().unwrap_or(first);
            if end - first > COLUMNS {
                check_time()?;
            }
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
    Ok(())
}

/// The vertical pass, which is given its input in bands.
struct Vertical {
    /// Of all rows of the output. Neither their first input rows nor their last ones ever go back.
    taps: Vec<Taps>,
    stride: usize,
    /// Samples of a row of the output.
    row_bytes: usize,
    /// Rows of the output that are complete.
    done: usize,
    /// The sums of those after them of which bands so far have had only a part.
    open: VecDeque<Vec<i32>>,
}

impl Vertical {
    fn new(taps: Vec<Taps>, stride: usize, row_bytes: usize) -> Self {
        Self { taps, stride, row_bytes, done: 0, open: VecDeque::new() }
    }

    /// Takes the input rows from `start` on, and appends the output rows that they complete.
    fn take(&mut self, band: &[u8], start: usize, out: &mut Vec<u8>) {
        let Self { taps, stride, row_bytes, done, open } = self;
        let end = start + band.len() / *stride;
        for y in *done..taps.len() {
            let taps = &taps[y];
            if taps.first >= end {
                break;
            }
            let (from, to) = (taps.first.max(start), taps.end().min(end));
            let rows = &band[(from - start) * *stride..];
            let weights = &taps.weights[from - taps.first..to - taps.first];
            let is_complete = taps.end() <= end;
            if is_complete && open.is_empty() {
                for at in (0..*row_bytes).step_by(LANES) {
                    let samples = weigh(&rows[at..], *stride, weights);
                    out.extend_from_slice(&samples[..LANES.min(*row_bytes - at)]);
                }
                *done += 1;
                continue;
            }
            if y - *done == open.len() {
                open.push_back(vec![HALF; *stride]);
            }
            for (i, sums) in open[y - *done].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                add(&rows[i * LANES..], *stride, weights, sums);
            }
            if is_complete {
                let sums = open.pop_front().expect("the row is the first that is open");
                out.extend(sums[..*row_bytes].iter().map(|&sum| to_8_bits(sum)));
                *done += 1;
            }
        }
    }
}

/// What sums begin with: a half, to be rounded.
const HALF: i32 = 1 << (BITS - 1);

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
    let mut sums = [HALF; LANES];
    add_with(source, stride, weights, &mut sums);
    sums.map(to_8_bits)
}

/// Adds to `sums` what [`weigh`] sums.
fn add(source: &[u8], stride: usize, weights: &[i32], sums: &mut [i32; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2; the function is otherwise safe code.
        return unsafe { add_avx2(source, stride, weights, sums) };
    }
    add_with(source, stride, weights, sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(source: &[u8], stride: usize, weights: &[i32], sums: &mut [i32; LANES]) {
    add_with(source, stride, weights, sums);
}

#[inline(always)]
fn add_with(source: &[u8], stride: usize, weights: &[i32], sums: &mut [i32; LANES]) {
    // A copy stays in registers.
    let mut own = *sums;
    // Weights add up to 2^22 and the negative ones are few, so 255 times their sum stays within 32 bits.
    for (k, &weight) in weights.iter().enumerate() {
        let samples = &source[k * stride..k * stride + LANES];
        for (sum, &sample) in own.iter_mut().zip(samples) {
            *sum += i32::from(sample) * weight;
        }
    }
    *sums = own;
}

#[inline(always)]
fn to_8_bits(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use image::metadata::Orientation;

    use super::super::crop;
    use super::*;

    /// A picture of noise, whose sums are clamped now and then.
    fn noise(Size { width, height }: Size) -> RgbImage {
        let mut state = 0x5eed_u32;
        RgbImage::from_fn(width as u32, height as u32, |_, _| {
            // Source: George Marsaglia, "Xorshift RNGs".
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            image::Rgb(
                [0, 8, 16].map(|shift| if state >> shift & 1 == 0 { (state >> 24) as u8 } else { 255 }),
            )
        })
    }

    #[test]
    fn bands_make_no_difference() {
        let size = |width, height| Size { width, height };
        for (pixels, step, full, resized) in [
            (size(40, 300), 1, size(40, 300), size(24, 17)),
            (size(40, 300), 1, size(40, 300), size(40, 17)),
            (size(40, 300), 1, size(40, 300), size(24, 300)),
            (size(30, 40), 1, size(30, 40), size(60, 333)),
            (size(3, 1000), 1, size(3, 1000), size(70, 2)),
            (size(20, 150), 2, size(39, 299), size(24, 17)),
        ] {
            let rgb = noise(pixels);
            let grid = Grid::upright(full, size(step, step), Orientation::Rotate180);
            for crop in [None, Some([11, 13])] {
                let window = crop::window(resized, crop);
                for filter in [Filter::Bilinear, Filter::Bicubic] {
                    let of =
                        |n_rows| in_bands(n_rows, &rgb, &grid, resized, &window, filter, || Ok(())).unwrap();
                    let whole = of(1008);
                    assert_eq!(whole.len(), window.columns.len * window.rows.len * 3);
                    for n_rows in [ROWS, 2 * ROWS, 9 * ROWS] {
                        assert_eq!(of(n_rows), whole, "{pixels:?} {resized:?} {crop:?} {filter:?} {n_rows}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_time_may_be_over_between_bands_and_within_long_rows() {
        for (width, height) in [(40, 300), (10_000, 1)] {
            let pixels = Size { width, height };
            let resized = Size { width: 7, height: 7 };
            let window = crop::window(resized, None);
            let grid = Grid::upright(pixels, Size { width: 1, height: 1 }, Orientation::NoTransforms);
            let n_asked = std::cell::Cell::new(0);
            let over = ImagingError::TooSlow { format: "PNG", limit_ms: 0 };
            let check_time = || match n_asked.replace(n_asked.get() + 1) {
                0..3 => Ok(()),
                _ => Err(over.clone()),
            };
            let result = in_bands(ROWS, &noise(pixels), &grid, resized, &window, Filter::Bicubic, check_time);
            assert_eq!((result, n_asked.get()), (Err(over.clone()), 4), "{width}x{height}");
        }
    }

    #[test]
    fn no_taps_are_left_out_of_the_reckoning() {
        let size = |width, height| Size { width, height };
        for (full, resized) in [
            (size(100_000, 1), size(384, 384)),
            (size(1, 100_000), size(224, 224)),
            (size(640, 480), size(299, 224)),
            (size(5, 7), size(50, 70)),
        ] {
            let window = crop::window(resized, None);
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let axis = |full| Axis { full, step: 1, lead: 0 };
                let held = |taps: Vec<Taps>| -> usize {
                    taps.iter().map(|taps| size_of::<Taps>() + size_of_val(&taps.weights[..])).sum()
                };
                let held = held(taps(&axis(full.width), resized.width, &window.columns, filter))
                    + held(taps(&axis(full.height), resized.height, &window.rows, filter));
                let reckoned = bytes(full, resized, &window, filter);
                assert!(held as u64 <= reckoned, "{full:?} {resized:?} {filter:?}: {held} {reckoned}");
                assert!(reckoned <= 2 * held as u64 + (1 << 17), "{full:?} {resized:?}: {held} {reckoned}");
            }
        }
    }
}
