//! Luma and chroma as libjpeg has them before it upsamples and converts.

use std::io::BufRead;

use mozjpeg::decompress::DecompressStarted;
use mozjpeg::{ColorSpace, CompInfo};

use super::super::crop::Size;
use super::super::planes::{Plane, Planes, Step};

/// The largest sampling factor of which the mozjpeg crate reads planes.
const MOST_SAMPLING: i32 = 2;

/// How many columns and rows of the picture a sample stands for, for each plane of a file of that many columns.
/// None unless it is the usual: gray, or luma at full size and chroma at that or half.
pub(super) fn steps(space: ColorSpace, components: &[CompInfo], columns: usize) -> Option<Vec<Size>> {
    let n_planes = match space {
        ColorSpace::JCS_GRAYSCALE => 1,
        ColorSpace::JCS_YCbCr => 3,
        _ => return None,
    };
    let most = |factor: fn(&CompInfo) -> i32| components.iter().map(factor).max();
    let (across, down) = (most(|plane| plane.h_samp_factor)?, most(|plane| plane.v_samp_factor)?);
    let step = |plane: &CompInfo| Size {
        width: (across / plane.h_samp_factor) as usize,
        height: (down / plane.v_samp_factor) as usize,
    };
    let steps: Vec<Size> = components.iter().map(step).collect();
    // libjpeg interpolates no plane of a column or two.
    let is_usual = steps.len() == n_planes
        && across.max(down) <= MOST_SAMPLING
        && steps[0] == Size { width: 1, height: 1 }
        && steps[1..].windows(2).all(|pair| pair[0] == pair[1])
        && steps[1..].iter().all(|step| step.width == 1 || columns.div_ceil(2) > 2);
    is_usual.then_some(steps)
}

/// Reads a picture of the `full` size.
pub(super) fn read<R: BufRead>(started: &mut DecompressStarted<R>, full: Size, steps: &[Size]) -> Planes {
    // Whole blocks, as many rows of them as are read at a time, and room for what a plane adds.
    let room = |plane: &CompInfo| {
        let rows = plane.height_in_blocks.next_multiple_of(plane.v_samp_factor as u32);
        ((rows + 1) * plane.width_in_blocks) as usize * 64
    };
    let mut samples: Vec<Vec<u8>> =
        started.components().iter().map(|plane| Vec::with_capacity(room(plane))).collect();
    started.read_raw_data(&mut samples.iter_mut().collect::<Vec<_>>());
    let planes = samples.into_iter().zip(started.components()).zip(steps).map(|((samples, plane), &step)| {
        let size = Size { width: full.width.div_ceil(step.width), height: full.height.div_ceil(step.height) };
        Plane::new(samples, plane.width_in_blocks as usize * 8, size, 1, Step::Middle(step))
    });
    Planes(planes.collect())
}
