//! Planes of luma and chroma to RGB, as libavif does it by way of libyuv: chroma upsampled bilinearly, and a conversion
//! in 6-bit fixed point.
//!
//! Source: ITU-T H.273 for the matrices, libyuv 1.9 for how it rounds.

/// One plane of samples of up to 16 bits.
pub(super) struct Plane {
    pub samples: Vec<u16>,
    pub width: usize,
    pub height: usize,
}

/// Luma, and chroma that has half as many columns or rows where it is subsampled.
pub(super) struct Planes {
    pub luma: Plane,
    /// Blue, red; none in a gray picture.
    pub chroma: Option<[Plane; 2]>,
    /// Bits per sample: 8, 10 or 12.
    pub depth: u32,
}

impl Planes {
    /// Drops the low bits, which libavif does before anything else.
    fn cut_to_8_bits(&mut self) {
        let shift = self.depth - 8;
        for plane in self.chroma.iter_mut().flatten().chain([&mut self.luma]) {
            plane.samples.iter_mut().for_each(|sample| *sample = (*sample >> shift).min(255));
        }
        self.depth = 8;
    }
}

/// How the planes were made from RGB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Matrix {
    /// Green, blue and red, as they are.
    Identity,
    /// The share of red and blue in luma.
    Luma { red: f64, blue: f64 },
}

impl Matrix {
    /// Of BT.2020.
    pub const BT2020: Self = Self::Luma { red: 0.2627, blue: 0.0593 };
}

/// Interleaved RGB8.
pub(super) fn to_rgb(mut planes: Planes, matrix: Matrix, is_full_range: bool) -> Vec<u8> {
    if matrix != Matrix::Identity {
        planes.cut_to_8_bits();
    }
    let Plane { samples, width, height } = &planes.luma;
    let mut rgb = Vec::with_capacity(width * height * 3);
    let middle = vec![1 << (planes.depth - 1); *width];
    let (mut blues, mut reds) = (middle.clone(), middle);
    let weights = Weights::new(matrix, is_full_range, planes.chroma.is_none());
    for (y, luma) in samples.chunks_exact(*width).enumerate() {
        if let Some([blue, red]) = &planes.chroma {
            upsample_row(blue, &planes.luma, y, &mut blues);
            upsample_row(red, &planes.luma, y, &mut reds);
        }
        for ((&luma, &blue), &red) in luma.iter().zip(&blues).zip(&reds) {
            rgb.extend(match matrix {
                Matrix::Identity if is_full_range => {
                    [red, luma, blue].map(|sample| to_8_bits(sample, planes.depth))
                }
                Matrix::Identity => [red, luma, blue].map(|sample| stretched(sample, planes.depth)),
                Matrix::Luma { .. } => weights.rgb(luma, blue, red),
            });
        }
    }
    rgb
}

/// Rounds to 8 bits.
pub(super) fn to_8_bits(sample: u16, depth: u32) -> u8 {
    let most = (1u32 << depth) - 1;
    ((u32::from(sample).min(most) * 255 + most / 2) / most) as u8
}

/// Rounds to 8 bits what has the limited range, 219 steps above 16.
fn stretched(sample: u16, depth: u32) -> u8 {
    let step = 1 << (depth - 8);
    let above = u32::from(sample).saturating_sub(16 * step);
    ((above * 255 + 219 * step / 2) / (219 * step)).min(255) as u8
}

/// One row of chroma at the columns of luma. A sample lies between two of luma, so each of those is three parts of the
/// nearer and one of the farther; in the first and the last column it is the nearer alone.
fn upsample_row(plane: &Plane, luma: &Plane, y: usize, row: &mut [u16]) {
    let is_narrow = plane.width < luma.width;
    let is_low = plane.height < luma.height;
    let line = |y: usize| &plane.samples[y * plane.width..][..plane.width];
    // The nearer position, and the farther one, which at the edge is the same.
    let pair = |position: usize, n: usize| {
        let near = (position / 2).min(n - 1);
        let far = if position % 2 == 1 { (near + 1).min(n - 1) } else { near.saturating_sub(1) };
        (near, far)
    };
    let (near, far) = if is_low { pair(y, plane.height) } else { (y, y) };
    let (near, far) = (line(near), line(far));
    for (x, out) in row.iter_mut().enumerate() {
        let across = |line: &[u16]| {
            let (near, far) = if is_narrow { pair(x, plane.width) } else { (x, x) };
            let far = if x + 1 == luma.width { near } else { far };
            3 * u32::from(line[near]) + u32::from(line[far])
        };
        *out = ((3 * across(near) + across(far) + 8) >> 4) as u16;
    }
}

/// A matrix in 64ths.
struct Weights {
    luma: u32,
    offset: i32,
    red: i32,
    green: [i32; 2],
    blue: i32,
}

impl Weights {
    fn new(matrix: Matrix, is_full_range: bool, is_gray: bool) -> Self {
        let Matrix::Luma { red, blue } = matrix else {
            return Self { luma: 0, offset: 0, red: 0, green: [0; 2], blue: 0 };
        };
        // The limited range has 219 steps of luma above 16, and 224 of chroma. libyuv has three decimals of the former,
        // but for the youngest matrix; gray does not go through it.
        let stretch = if is_gray || matrix == Matrix::BT2020 { 255.0 / 219.0 } else { 1.164 };
        let (luma, black, chroma): (f64, f64, f64) =
            if is_full_range { (1.0, 0.0, 1.0) } else { (stretch, 16.0, 255.0 / 224.0) };
        let green = 1.0 - red - blue;
        let in_64ths = |weight: f64| ((weight * chroma * 64.0).round() as i32).min(128);
        Self {
            luma: (luma * 64.0 * 256.0 * 256.0 / 257.0).round() as u32,
            offset: 32 - (black * luma * 64.0).round() as i32,
            red: in_64ths(2.0 * (1.0 - red)),
            green: [in_64ths(2.0 * (1.0 - blue) * blue / green), in_64ths(2.0 * (1.0 - red) * red / green)],
            blue: in_64ths(2.0 * (1.0 - blue)),
        }
    }

    /// Of samples of 8 bits.
    fn rgb(&self, luma: u16, blue: u16, red: u16) -> [u8; 3] {
        // Luma counts with 16 bits, its high ones repeated below.
        let luma = ((u32::from(luma) * 0x101 * self.luma) >> 16) as i32 + self.offset;
        let centred = |chroma: u16| i32::from(chroma) - 128;
        let (blue, red) = (centred(blue), centred(red));
        [luma + red * self.red, luma - blue * self.green[0] - red * self.green[1], luma + blue * self.blue]
            .map(|sum| (sum >> 6).clamp(0, 255) as u8)
    }
}
