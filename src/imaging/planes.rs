//! JPEGs resampled as they are stored, luma and chroma apart, before they become RGB.
//!
//! Upsampling chroma, converting it to RGB and resampling are sums by weight, so their order makes no difference but for
//! rounding and clamping. Here upsampling is part of the weights and only pixels that stay are converted: half as
//! many samples are weighed, and there never is a whole picture in RGB. A band of output rows is made at a time, down the
//! columns and then along the rows, so that what lies between the passes stays in the processor's cache. Where libjpeg
//! gives RGB, as of a picture that it decodes at a fraction of its size, that is weighed in the same way.
//!
//! Sums are of 16 bits, 5 of them fraction: a value may come out one beside that of `resample.rs`, now and then more
//! where Pillow clamps between its passes. That is why [`Decode::Exact`](crate::domain::Decode::Exact) does without.
//!
//! Source: JFIF 1.02 for the matrix, libjpeg's "fancy" upsampling for where chroma lies.

mod weigh;

use std::{array, borrow::Cow, iter};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};

use self::weigh::{BITS, LANES, ROWS, WEIGHT_BITS};
use super::crop::{Size, Window};
use super::orient::{self, Axis, Grid};
use super::positions::{Positions, positions};
use crate::domain::Filter;

/// The most samples that may become one: with more, weights of 16 bits are too coarse.
const MOST_SHRINK: usize = 8;

/// Whether a picture of this size, whose samples stand for `step` columns and rows, may be resized to `target` here. Where
/// it grows, colours beyond what RGB can hold grow with it, which Pillow clamps before; and there is nothing to gain.
pub(super) fn may_become(target: Size, upright: Size, step: usize) -> bool {
    let shrinks = |from: usize, to: usize| from > to && from.div_ceil(step) <= to * MOST_SHRINK;
    shrinks(upright.width, target.width) && shrinks(upright.height, target.height)
}

/// A picture: one plane of gray or of RGB, or luma and then chroma of blue and of red, both of one [`Step`].
pub(super) struct Planes(pub Vec<Plane>);

/// One plane.
pub(super) struct Plane {
    /// Rows of `stride` samples, and [`LANES`] more, so that any lane can be read whole.
    samples: Vec<u8>,
    stride: usize,
    size: Size,
    /// Side by side: 3 in RGB, else 1.
    channels: usize,
    step: Step,
}

/// Where a sample stands among the columns and rows of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// For so many as their mean.
    Mean(Size),
    /// In the middle of so many, 1 or 2, which lie between it and its neighbours.
    Middle(Size),
}

impl Plane {
    /// A plane of rows of `stride` samples, of which the first `size.width` times `channels` count.
    pub fn new(mut samples: Vec<u8>, stride: usize, size: Size, channels: usize, step: Step) -> Self {
        samples.resize(stride * size.height + LANES, 0);
        Self { samples, stride, size, channels, step }
    }

    /// Rotated and mirrored; the step remains that of the file.
    fn upright(self, orientation: Orientation) -> Self {
        if orientation == Orientation::NoTransforms {
            return self;
        }
        let Self { samples, stride, size, channels, step } = self;
        let rows =
            samples.chunks_exact(stride).take(size.height).flat_map(|row| &row[..size.width * channels]);
        let samples = rows.copied().collect();
        let (width, height) = (size.width as u32, size.height as u32);
        let image = match channels {
            1 => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
            _ => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
        };
        let mut image = image.expect("as many samples as before");
        image.apply_orientation(orientation);
        let size = Size { width: image.width() as usize, height: image.height() as usize };
        Self::new(image.into_bytes(), size.width * channels, size, channels, step)
    }
}

impl Planes {
    /// Of pixels in 8 bits, gray or RGB, which stand for `step` columns and rows each.
    pub fn of_pixels(image: DynamicImage, step: usize) -> Self {
        let size = Size { width: image.width() as usize, height: image.height() as usize };
        let step = Step::Mean(Size { width: step, height: step });
        Self(vec![match image {
            DynamicImage::ImageLuma8(gray) => Plane::new(gray.into_raw(), size.width, size, 1, step),
            image => Plane::new(image.into_rgb8().into_raw(), size.width * 3, size, 3, step),
        }])
    }

    /// The window of the picture, once it is upright and resized to `size`: RGB8 `[rows.len, columns.len, 3]`. The file
    /// has `full` columns and rows.
    pub fn resample(
        self,
        full: Size,
        orientation: Orientation,
        size: Size,
        window: &Window,
        filter: Filter,
    ) -> Vec<u8> {
        let upright = orient::upright_size(full, orientation);
        let across: Vec<Positions> = positions(upright.width, size.width, &window.columns, filter).collect();
        let down: Vec<Positions> = positions(upright.height, size.height, &window.rows, filter).collect();
        let ways = |plane: &Plane| {
            let (Step::Mean(size) | Step::Middle(size)) = plane.step;
            let grid = Grid::upright(full, size, orientation);
            let taps = |taken, axis| Taps::new(taken, axis, matches!(plane.step, Step::Middle(_)));
            Ways { across: taps(&across, &grid.columns), down: taps(&down, &grid.rows) }
        };
        // Of luma and of both planes of chroma.
        let ways: Vec<Ways> = self.0.iter().take(2).map(ways).collect();
        let planes = self.0.into_iter().enumerate();
        let mut planes: Vec<Bands> =
            planes.map(|(i, plane)| Bands::new(plane.upright(orientation), &ways[i.min(1)])).collect();
        let row_bytes = window.columns.len * 3;
        let mut rgb = vec![0; row_bytes * window.rows.len];
        for (i, out) in rgb.chunks_mut(row_bytes * ROWS).enumerate() {
            planes.iter_mut().for_each(|plane| plane.compute(i * ROWS));
            for x in 0..window.columns.len {
                let [red, green, blue] = match &planes[..] {
                    [luma, blue, red] => to_rgb(&luma.band[x], &blue.band[x], &red.band[x]),
                    [rgb] if rgb.plane.channels == 3 => {
                        array::from_fn(|i| rgb.band[x * 3 + i].map(to_8_bits))
                    }
                    gray => [gray[0].band[x].map(to_8_bits); 3],
                };
                for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                    out[x * 3..][..3].copy_from_slice(&[red[i], green[i], blue[i]]);
                }
            }
        }
        rgb
    }
}

/// How a plane becomes the window, both ways.
struct Ways {
    across: Taps,
    down: Taps,
}

/// What the output positions are made of.
struct Taps {
    /// For each the first sample, and where its weights end.
    places: Vec<(usize, usize)>,
    /// Weights times 2^15, of all positions.
    weights: Vec<i16>,
}

impl Taps {
    /// What `taken` of a picture is of a plane on this axis of it.
    fn new(taken: &[Positions], axis: &Axis, is_middle: bool) -> Self {
        let mut taps = Self { places: Vec::with_capacity(taken.len()), weights: Vec::new() };
        for taken in taken {
            let taken = match axis.step {
                1 => Cow::Borrowed(taken),
                _ if is_middle => Cow::Owned(of_neighbours(taken, axis)),
                _ => Cow::Owned(taken.of_pixels(axis)),
            };
            push_fixed(&taken.weights, &mut taps.weights);
            taps.places.push((taken.first, taps.weights.len()));
        }
        taps
    }

    /// The first sample of each position, and the weights from there on.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i16])> {
        let starts = iter::once(0).chain(self.places.iter().map(|(_, end)| *end));
        self.places.iter().zip(starts).map(|((first, end), start)| (*first, &self.weights[start..*end]))
    }

    /// The first sample that is needed, and how many.
    fn samples(&self) -> (usize, usize) {
        let first = self.iter().map(|(first, _)| first).min().unwrap_or(0);
        let end = self.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(first);
        (first, end - first)
    }
}

/// What is taken of samples that lie in the middle of two positions each: of a position three parts are that one and one
/// part the next on its side, which at the edge is the same.
fn of_neighbours(taken: &Positions, axis: &Axis) -> Positions {
    let last = axis.pixel(axis.full - 1);
    let beside = |position: usize| match (position + axis.lead) % 2 {
        0 => axis.pixel(position).saturating_sub(1),
        _ => (axis.pixel(position) + 1).min(last),
    };
    let end = taken.first + taken.weights.len();
    let first = beside(taken.first).min(axis.pixel(taken.first));
    let mut weights = vec![0.0; beside(end - 1).max(axis.pixel(end - 1)) + 1 - first];
    for (position, weight) in (taken.first..end).zip(&taken.weights) {
        weights[axis.pixel(position) - first] += weight * 0.75;
        weights[beside(position) - first] += weight * 0.25;
    }
    Positions { first, weights }
}

/// Appends the weights in fixed point, adding up to 1: what rounding took or gave goes to the heaviest.
fn push_fixed(weights: &[f64], fixed: &mut Vec<i16>) {
    const ONE: i32 = 1 << WEIGHT_BITS;
    let total: f64 = weights.iter().sum();
    let scale = f64::from(ONE) / if total == 0.0 { 1.0 } else { total };
    let start = fixed.len();
    // Casts truncate, so that what is shifted up by a whole number is rounded.
    let rounded = |weight: f64| (weight * scale + f64::from(ONE) + 0.5) as i32 - ONE;
    fixed.extend(weights.iter().map(|&weight| rounded(weight).min(i16::MAX.into()) as i16));
    let fixed = &mut fixed[start..];
    let rest = ONE - fixed.iter().map(|&weight| i32::from(weight)).sum::<i32>();
    if let Some(heaviest) = fixed.iter_mut().max() {
        *heaviest = (i32::from(*heaviest) + rest).min(i16::MAX.into()) as i16;
    }
}

/// The rows of a plane's window, some at a time.
struct Bands<'a> {
    plane: Plane,
    ways: &'a Ways,
    /// The first column that is needed.
    first: usize,
    /// Rows between the passes, from that column on, each of this length.
    rows: Vec<i16>,
    stride: usize,
    /// The same by column.
    columns: Vec<[i16; ROWS]>,
    /// The window's rows, by column, their samples times 2^5.
    band: Vec<[i16; ROWS]>,
}

impl<'a> Bands<'a> {
    fn new(plane: Plane, ways: &'a Ways) -> Self {
        let (first, n_columns) = ways.across.samples();
        let n_samples = n_columns * plane.channels;
        let stride = n_samples.next_multiple_of(LANES);
        Self {
            first,
            rows: vec![0; stride * ROWS],
            stride,
            columns: vec![[0; ROWS]; n_samples],
            band: vec![[0; ROWS]; ways.across.places.len() * plane.channels],
            plane,
            ways,
        }
    }

    /// Computes the band of the window from row `y` on. Below the last row there may be anything.
    fn compute(&mut self, y: usize) {
        let Plane { samples, stride, channels, .. } = &self.plane;
        let rows = self.rows.chunks_exact_mut(self.stride);
        for (row, (top, weights)) in rows.zip(self.ways.down.iter().skip(y)) {
            weigh::rows(&samples[top * stride + self.first * channels..], *stride, weights, row);
        }
        weigh::turn(&self.rows, self.stride, &mut self.columns);
        let first = |left: usize, part: usize| (left - self.first) * channels + part;
        let taps = self.ways.across.iter();
        let taps =
            taps.flat_map(|(left, weights)| (0..*channels).map(move |part| (first(left, part), weights)));
        weigh::columns(&self.columns, *channels, taps, &mut self.band);
    }
}

/// Red, green and blue.
fn to_rgb(luma: &[i16; ROWS], blue: &[i16; ROWS], red: &[i16; ROWS]) -> [[u8; ROWS]; 3] {
    const MIDDLE: i16 = 128 << BITS;
    // The high half of a product of what is times 4 with what is times 2^14.
    let times = |chroma: i16, weight: f64| {
        let weight = (weight * f64::from(1 << 14)) as i16;
        ((i32::from((chroma - MIDDLE) << 2) * i32::from(weight)) >> 16) as i16
    };
    [
        array::from_fn(|i| to_8_bits(luma[i] + times(red[i], 1.402))),
        array::from_fn(|i| to_8_bits(luma[i] - times(blue[i], 0.344_136) - times(red[i], 0.714_136))),
        array::from_fn(|i| to_8_bits(luma[i] + times(blue[i], 1.772))),
    ]
}

/// Rounds and clamps.
fn to_8_bits(sample: i16) -> u8 {
    ((sample + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::super::{ImagingOptions, prepare};
    use super::*;
    use crate::domain::{Decode, ImageSpec, Pixels, Resize};

    /// A picture without much detail, whose chroma can be halved, and without colours that have to be clamped.
    fn drawn(width: usize, height: usize, sampling: (u8, u8), orientation: u8) -> Vec<u8> {
        let wave = |x: usize, y: usize, turn: f64| {
            let phase = x as f64 / 9.0 + y as f64 / 13.0 + turn;
            (128.0 + 70.0 * phase.sin() + 20.0 * (x as f64 / width as f64 - 0.5)) as u8
        };
        let pixel = |i: usize| [0.0, 1.0, 2.5].map(|turn| wave(i % width, i / width, turn));
        let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
        let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        encoder.set_fastest_defaults();
        encoder.set_size(width, height);
        encoder.set_quality(95.0);
        encoder.set_chroma_sampling_pixel_sizes(sampling, sampling);
        let mut encoder = encoder.start_compress(Vec::new()).unwrap();
        let exif =
            [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0][..], &[0; 4]];
        encoder.write_marker(mozjpeg::Marker::APP(1), &exif.concat());
        encoder.write_scanlines(&rgb).unwrap();
        encoder.finish().unwrap()
    }

    fn prepared(encoded: &[u8], spec: &ImageSpec, decode: Decode) -> Pixels {
        prepare(encoded, spec, &ImagingOptions { decode, ..ImagingOptions::REFERENCE }).unwrap()
    }

    #[test]
    fn planes_give_the_pixels_of_a_picture() {
        let spec = ImageSpec::centred;
        let specs = [
            spec(Resize::ShortestEdge(64), Some([48, 40]), Filter::Bicubic),
            spec(Resize::Exact { height: 47, width: 33 }, None, Filter::Bilinear),
        ];
        for sampling in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            // Even and odd: the last samples of chroma may stand for one position only.
            for (width, height) in [(150, 120), (101, 133)] {
                for orientation in 1..=8 {
                    let encoded = drawn(width, height, sampling, orientation);
                    for spec in &specs {
                        let [exact, fast] =
                            [Decode::Exact, Decode::Fast].map(|d| prepared(&encoded, spec, d));
                        assert_eq!((fast.width, fast.height), (exact.width, exact.height));
                        let apart = || exact.rgb8.iter().zip(&fast.rgb8).map(|(&a, &b)| a.abs_diff(b));
                        let mean = apart().map(u64::from).sum::<u64>() as f64 / exact.rgb8.len() as f64;
                        let case = format!("{sampling:?} {width}x{height} {orientation} {:?}", spec.resize);
                        assert!(mean > 0.0, "{case}: not in planes");
                        assert!(mean < 0.5 && apart().max() <= Some(2), "{case}: {mean} {:?}", apart().max());
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_shrink_or_by_too_much_is_left_exact() {
        let size = |width, height| Size { width, height };
        for (picture, step, expected) in [
            (size(640, 480), 1, true),
            (size(299, 480), 1, false),
            (size(640, 224), 1, false),
            (size(299 * 8, 224 * 8), 1, true),
            (size(299 * 8 + 1, 480), 1, false),
            (size(299 * 8 + 1, 480), 2, true),
        ] {
            assert_eq!(may_become(size(299, 224), picture, step), expected, "{picture:?} {step}");
        }
    }

    #[test]
    fn weights_add_up_to_one() {
        for weights in [&[1.0; 3][..], &[-0.07, 0.3, 1.0, 0.3, -0.07], &[0.1; 31]] {
            let mut fixed = vec![7];
            push_fixed(weights, &mut fixed);
            assert_eq!(fixed.len(), weights.len() + 1);
            assert_eq!(fixed[1..].iter().map(|&weight| i32::from(weight)).sum::<i32>(), 1 << WEIGHT_BITS);
        }
        let mut fixed = Vec::new();
        push_fixed(&[2.0], &mut fixed);
        assert_eq!(fixed, [i16::MAX], "as near as it gets");
    }
}
