//! AVIF: the boxes by zenavif-parse, the AV1 inside by rav1d, the conversion of Pillow's libavif by `yuv.rs`.
//!
//! rav1d can be stopped only between the units of its bitstream, so it gets them one by one, and of several frames the
//! first that is a key frame counts. Its entry points are `extern "C"`: a broken file is an error there, but a panic
//! would not unwind through them, it would end the process; hence `workers.rs`.

mod boxes;
mod grid;

use std::borrow::Cow;

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage, RgbaImage};
use re_rav1d::{
    DecodeFrameType, Decoder, Picture, PixelLayout, PlanarImageComponent, Settings,
    pixel::MatrixCoefficients, pixel::YUVRange,
};
use zenavif_parse::{AV1Metadata, AvifParser, ColorInformation, DecodeConfig};

use super::crop::Size;
use super::decode::Decoded;
use super::limits::Limits;
use super::yuv::{self, Matrix, Plane, Planes};
use super::{ImagingError, icc, orient};
use crate::domain::Icc;
use boxes::Mended;
use grid::Grid;

pub(super) const FORMAT: &str = "AVIF";

/// Decodes the primary picture, of a sequence the first.
///
/// # Errors
/// Any [`ImagingError`] but `ResizedTooLarge`; size and memory are checked in the bitstream's header, before anything
/// of the picture's size is allocated.
pub(super) fn decode(encoded: &[u8], limits: Limits, icc: Icc) -> Result<Decoded, ImagingError> {
    // Copies of the file, at the most, and of its profile.
    limits.check_memory(FORMAT, 3 * encoded.len() as u64)?;
    let Mended { file: mended, is_alpha_depth } = boxes::mended(encoded);
    let file = parse(&mended, &limits)?;
    let (nclx, profile) = described(&file, &mended, &limits, icc)?;
    let (bitstreams, alpha, grid) = contents(&file, is_alpha_depth)?;
    let Colours { planes, matrix, is_full_range } = match grid {
        None => colours(&bitstreams[0], nclx, &limits)?,
        Some(grid) => colours_of_tiles(&bitstreams, grid, nclx, &limits)?,
    };
    let (width, height) = (planes.luma.width as u32, planes.luma.height as u32);
    let rgb = yuv::to_rgb(planes, matrix, is_full_range);
    limits.check_time(FORMAT)?;
    let mut image: DynamicImage = match alpha {
        None => RgbImage::from_raw(width, height, rgb).expect("three samples per pixel").into(),
        Some(alpha) => {
            let alpha = picture(&alpha, &limits)?;
            if (alpha.width(), alpha.height()) != (width, height) {
                return Err(corrupt("its transparency has another size"));
            }
            let depth = depth(&alpha)?;
            let alpha = plane(&alpha, PlanarImageComponent::Y, width as usize, height as usize)?;
            let alpha = alpha.samples.iter().map(|&sample| yuv::to_8_bits(sample, depth));
            let is_premultiplied =
                file.premultiplied_alpha() || is_alpha_depth && boxes::is_premultiplied(&mended);
            let pixels = with_alpha(&rgb, alpha, is_premultiplied);
            RgbaImage::from_raw(width, height, pixels).expect("four samples per pixel").into()
        }
    };
    if let Some(profile) = profile {
        image = icc::to_srgb(image, &profile);
    }
    let full = Size { width: width as usize, height: height as usize };
    Ok(Decoded { picture: image.into(), orientation: orientation(&file), full })
}

fn parse<'a>(file: &'a [u8], limits: &Limits) -> Result<AvifParser<'a>, ImagingError> {
    let mut config = DecodeConfig::default().with_peak_memory_limit(limits.max_memory_bytes).lenient(true);
    // Of which the first is read.
    config.max_animation_frames = None;
    AvifParser::from_bytes_with_config(file, &config, &zenavif_parse::Unstoppable)
        .map_err(|error| failure(error, limits))
}

fn failure(error: zenavif_parse::Error, limits: &Limits) -> ImagingError {
    use zenavif_parse::Error::{OutOfMemory, ResourceLimitExceeded, Unsupported};
    match error {
        OutOfMemory => limits.too_much_memory(FORMAT),
        Unsupported(what) | ResourceLimitExceeded(what) => unsupported(what),
        error => corrupt(error),
    }
}

fn corrupt(detail: impl ToString) -> ImagingError {
    ImagingError::corrupt(FORMAT, detail)
}

fn unsupported(detail: impl ToString) -> ImagingError {
    ImagingError::unsupported(FORMAT, detail)
}

/// A bitstream, mostly where it lies in the file.
type Bitstream<'a> = Cow<'a, [u8]>;

/// The bitstreams of colours, one or those of a grid, and that of transparency if there is any.
type Contents<'a> = (Vec<Bitstream<'a>>, Option<Bitstream<'a>>, Option<Grid>);

fn contents<'a>(file: &'a AvifParser<'_>, is_alpha_depth: bool) -> Result<Contents<'a>, ImagingError> {
    if file.animation_info().is_some() {
        let frame = file.frame(0).map_err(corrupt)?;
        return Ok((vec![frame.data], frame.alpha_data, None));
    }
    let alpha = file.alpha_data().or_else(|| file.depth_map_data().filter(|_| is_alpha_depth));
    let alpha = alpha.transpose().map_err(corrupt)?;
    let primary = file.primary_data().map_err(corrupt)?;
    if file.grid_config().is_none() {
        return Ok((vec![primary], alpha, None));
    }
    if alpha.is_some() {
        return Err(unsupported("it is a grid of pictures with transparency"));
    }
    let grid = Grid::parse(&primary)?;
    if file.grid_tile_count() != grid.rows * grid.columns {
        return Err(corrupt("its grid lacks tiles"));
    }
    let tiles = (0..file.grid_tile_count()).map(|index| file.tile_data(index).map_err(corrupt));
    Ok((tiles.collect::<Result<_, _>>()?, None, Some(grid)))
}

/// Planes, and how they were made from RGB.
struct Colours {
    planes: Planes,
    matrix: Matrix,
    is_full_range: bool,
}

/// The matrix, by its number in H.273, and whether all values are used.
type Nclx = (u16, bool);

/// What the container says of colours: how they are coded, and where it is asked for the profile. Of two descriptions the
/// crate tells the first.
fn described(
    file: &AvifParser<'_>,
    mended: &[u8],
    limits: &Limits,
    icc: Icc,
) -> Result<(Option<Nclx>, Option<Vec<u8>>), ImagingError> {
    let behind = |kinds: &[&[u8; 4]]| {
        let copy = boxes::without_colours(mended, kinds);
        parse(&copy, limits).map(|file| file.color_info().cloned())
    };
    let first = file.color_info().cloned();
    let second = match first {
        Some(ColorInformation::IccProfile(_)) => behind(&[b"prof", b"rICC"])?,
        Some(ColorInformation::Nclx { .. }) if icc == Icc::Srgb => behind(&[b"nclx"])?,
        _ => None,
    };
    let (mut nclx, mut profile) = (None, None);
    for description in [first, second].into_iter().flatten() {
        match description {
            ColorInformation::Nclx { matrix_coefficients, full_range, .. } => {
                nclx = Some((matrix_coefficients, full_range));
            }
            ColorInformation::IccProfile(bytes) => profile = Some(bytes).filter(|_| icc == Icc::Srgb),
        }
    }
    Ok((nclx, profile))
}

fn colours(bitstream: &[u8], nclx: Option<Nclx>, limits: &Limits) -> Result<Colours, ImagingError> {
    let picture = picture(bitstream, limits)?;
    let (matrix, is_full_range) = coding(nclx, &picture)?;
    Ok(Colours { planes: planes(&picture)?, matrix, is_full_range })
}

fn colours_of_tiles(
    tiles: &[Bitstream<'_>],
    grid: Grid,
    nclx: Option<Nclx>,
    limits: &Limits,
) -> Result<Colours, ImagingError> {
    let (width, height) = (grid.width as u64, grid.height as u64);
    limits.check_size(FORMAT, width, height)?;
    // The planes as 16 bits, RGB; a tile on its way, with room to spare.
    limits.check_memory(FORMAT, (width * height).saturating_mul(3 * 2 + 3 + 3))?;
    let mut coding = None;
    let planes = grid.compose(tiles.iter().map(|tile| {
        let Colours { planes, matrix, is_full_range } = colours(tile, nclx, limits)?;
        coding.get_or_insert((matrix, is_full_range));
        Ok(planes)
    }))?;
    let (matrix, is_full_range) = coding.expect("a grid that was composed has a tile");
    Ok(Colours { planes, matrix, is_full_range })
}

/// Decodes the first picture of a bitstream.
fn picture(bitstream: &[u8], limits: &Limits) -> Result<Picture, ImagingError> {
    let header = AV1Metadata::parse_av1_bitstream(bitstream).map_err(corrupt)?;
    let (width, height) = (header.max_frame_width.get(), header.max_frame_height.get());
    limits.check_size(FORMAT, width.into(), height.into())?;
    let pixels = u64::from(width) * u64::from(height);
    // Three planes in the decoder (two of them without film grain and scaling, which a copy is made for), the same as
    // 16 bits here, RGB with transparency.
    let sample_bytes = if header.bit_depth > 8 { 2 } else { 1 };
    limits.check_memory(FORMAT, pixels.saturating_mul(2 * 3 * sample_bytes + 3 * 2 + 4))?;
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_decode_frame_type(DecodeFrameType::Key);
    settings.set_all_layers(false);
    settings.set_frame_size_limit(u32::try_from(pixels).unwrap_or(u32::MAX));
    let mut decoder = Decoder::with_settings(&settings).map_err(corrupt)?;
    for unit in Units(bitstream) {
        limits.check_time(FORMAT)?;
        match decoder.send_data(unit.to_vec(), None, None, None) {
            Ok(()) | Err(re_rav1d::dav1d::Error::Again) => {}
            Err(error) => return Err(corrupt(error)),
        }
        // Only where there may be one: each question in vain costs a few bytes that rav1d never gives back.
        if !may_show_a_picture(unit) {
            continue;
        }
        match decoder.get_picture() {
            Ok(picture) => return Ok(picture),
            Err(error) if error.is_again() => {}
            Err(error) => return Err(corrupt(error)),
        }
    }
    Err(corrupt("it breaks off before its end"))
}

/// The units of a bitstream (OBUs), each with its header.
///
/// Source: AV1 bitstream specification, 5.3.
struct Units<'a>(&'a [u8]);

impl<'a> Iterator for Units<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        const HAS_EXTENSION: u8 = 4;
        const HAS_SIZE: u8 = 2;
        let flags = *self.0.first()?;
        let mut length = 1 + usize::from(flags & HAS_EXTENSION != 0);
        if flags & HAS_SIZE == 0 {
            return Some(std::mem::take(&mut self.0));
        }
        // Seven bits a byte, the least first.
        let mut payload = 0;
        for i in 0..8 {
            let byte = *self.0.get(length)?;
            length += 1;
            payload |= usize::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                break;
            }
        }
        let (unit, rest) = self.0.split_at(length.saturating_add(payload).min(self.0.len()));
        self.0 = rest;
        Some(unit)
    }
}

/// Whether a unit is, or ends, a frame: a header that shows an earlier one, a group of tiles, or both in one.
fn may_show_a_picture(unit: &[u8]) -> bool {
    const FRAME_HEADER: u8 = 3;
    const TILE_GROUP: u8 = 4;
    const FRAME: u8 = 6;
    unit.first().is_some_and(|flags| matches!(flags >> 3 & 15, FRAME_HEADER | TILE_GROUP | FRAME))
}

fn depth(picture: &Picture) -> Result<u32, ImagingError> {
    match picture.bit_depth() {
        depth @ (8 | 10 | 12) => Ok(depth as u32),
        depth => Err(unsupported(format!("it has {depth} bits per sample"))),
    }
}

fn planes(picture: &Picture) -> Result<Planes, ImagingError> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let luma = plane(picture, PlanarImageComponent::Y, width, height)?;
    let halved = match picture.pixel_layout() {
        PixelLayout::I400 => None,
        PixelLayout::I420 => Some((width.div_ceil(2), height.div_ceil(2))),
        PixelLayout::I422 => Some((width.div_ceil(2), height)),
        PixelLayout::I444 => Some((width, height)),
    };
    let chroma = match halved {
        None => None,
        Some((width, height)) => Some([
            plane(picture, PlanarImageComponent::U, width, height)?,
            plane(picture, PlanarImageComponent::V, width, height)?,
        ]),
    };
    Ok(Planes { luma, chroma, depth: depth(picture)? })
}

/// Copies a plane without what stands beyond its rows.
fn plane(
    picture: &Picture,
    component: PlanarImageComponent,
    width: usize,
    height: usize,
) -> Result<Plane, ImagingError> {
    let bytes = picture.plane(component);
    let stride = picture.stride(component) as usize;
    let mut samples = Vec::with_capacity(width * height);
    for row in bytes.chunks(stride).take(height) {
        if picture.bit_depth() == 8 {
            samples.extend(row.iter().take(width).map(|&sample| u16::from(sample)));
        } else {
            let pairs = row.as_chunks::<2>().0;
            samples.extend(pairs.iter().take(width).map(|&pair| u16::from_ne_bytes(pair)));
        }
    }
    if samples.len() != width * height {
        return Err(corrupt("a plane is too small"));
    }
    Ok(Plane { samples, width, height })
}

/// The matrix and whether all values are used: the container's word counts before the bitstream's.
fn coding(nclx: Option<Nclx>, picture: &Picture) -> Result<(Matrix, bool), ImagingError> {
    const BT601: Matrix = luma(0.299, 0.114);
    const BT709: Matrix = luma(0.2126, 0.0722);
    let (code, is_full_range) = nclx
        .unwrap_or_else(|| (code(picture.matrix_coefficients()), picture.color_range() == YUVRange::Full));
    let matrix = match code {
        0 if picture.pixel_layout() != PixelLayout::I444 => {
            return Err(corrupt("its colours have no matrix"));
        }
        0 => Matrix::Identity,
        1 => BT709,
        // Unspecified is read as the matrix of JPEG.
        2 | 5 | 6 => BT601,
        4 => luma(0.30, 0.11),
        7 => luma(0.212, 0.087),
        9 => Matrix::BT2020,
        other => return Err(unsupported(format!("its colours are coded by matrix {other} of H.273"))),
    };
    Ok((matrix, is_full_range))
}

const fn luma(red: f64, blue: f64) -> Matrix {
    Matrix::Luma { red, blue }
}

fn code(matrix: MatrixCoefficients) -> u16 {
    match matrix {
        MatrixCoefficients::Identity => 0,
        MatrixCoefficients::BT709 => 1,
        MatrixCoefficients::BT470M => 4,
        MatrixCoefficients::BT470BG | MatrixCoefficients::ST170M => 6,
        MatrixCoefficients::ST240M => 7,
        MatrixCoefficients::YCgCo => 8,
        MatrixCoefficients::BT2020NonConstantLuminance => 9,
        MatrixCoefficients::Unspecified => 2,
        _ => 10,
    }
}

/// RGBA, with colours that were multiplied by their alpha divided by it again.
fn with_alpha(rgb: &[u8], alpha: impl Iterator<Item = u8>, is_premultiplied: bool) -> Vec<u8> {
    let restored = |colour: u8, alpha: u8| match (is_premultiplied, u32::from(alpha)) {
        (false, _) => colour,
        (true, 0) => 0,
        (true, alpha) => ((u32::from(colour) * 255 + alpha / 2) / alpha).min(255) as u8,
    };
    let pixels = rgb.as_chunks::<3>().0.iter().zip(alpha);
    pixels.flat_map(|(&[r, g, b], a)| [restored(r, a), restored(g, a), restored(b, a), a]).collect()
}

/// The rotation and mirroring that the container asks for, beside which EXIF has no say; without them and it, what XMP does.
///
/// Source: Pillow 12 `src/PIL/AvifImagePlugin.py` and `src/_avif.c`.
fn orientation(file: &AvifParser<'_>) -> Orientation {
    let mirrors_columns = file.mirror().map(|mirror| mirror.axis == 1);
    let exif = match (file.rotation().map_or(0, |rotation| rotation.angle), mirrors_columns) {
        (90, None) => 8,
        (180, None) => 3,
        (270, None) => 6,
        (_, None) => 1,
        (180, Some(true)) => 4,
        (90, Some(true)) | (270, Some(false)) => 7,
        (90, Some(false)) | (270, Some(true)) => 5,
        (180, Some(false)) | (_, Some(true)) => 2,
        (_, Some(false)) => 4,
    };
    if let Some(turned) = Orientation::from_exif(exif).filter(|&turned| turned != Orientation::NoTransforms) {
        return turned;
    }
    let [exif, xmp] = [file.exif(), file.xmp()].map(|item| item.and_then(Result::ok));
    match exif.as_deref().and_then(orient::from_exif) {
        Some(_overruled) => Orientation::NoTransforms,
        None => orient::of(None, xmp.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use zenavif_parse::Error;

    use super::*;
    use crate::imaging::ImagingOptions;

    #[test]
    fn a_lack_of_memory_is_not_remembered() {
        let limits = Limits::begin(&ImagingOptions::REFERENCE);
        assert!(!failure(Error::OutOfMemory, &limits).comes_again());
        let too_many = failure(Error::ResourceLimitExceeded("too many"), &limits);
        assert!(matches!(too_many, ImagingError::Unsupported { .. }), "{too_many}");
    }
}
