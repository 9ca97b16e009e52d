//! Colours to sRGB by the profile that a picture carries.
//!
//! A profile is a hint: one that is broken, hostile or for another kind of picture leaves the picture as it is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, RgbImage, RgbaImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Profiles of presses hold up to 3 MB.
const MAX_BYTES: usize = 4 << 20;

/// Converts 8-bit gray or RGB; alpha stays.
pub(super) fn to_srgb(image: DynamicImage, profile: &[u8]) -> DynamicImage {
    let (width, height) = (image.width(), image.height());
    let rgb = |samples| RgbImage::from_raw(width, height, samples).map(DynamicImage::from);
    let rgba = |samples| RgbaImage::from_raw(width, height, samples).map(DynamicImage::from);
    let converted = match &image {
        DynamicImage::ImageLuma8(gray) => convert(gray, &GRAY, profile).and_then(rgb),
        DynamicImage::ImageLumaA8(gray) => convert(gray, &GRAY_ALPHA, profile).and_then(rgba),
        DynamicImage::ImageRgb8(colour) => convert(colour, &RGB, profile).and_then(rgb),
        DynamicImage::ImageRgba8(colour) => convert(colour, &RGBA, profile).and_then(rgba),
        _ => None,
    };
    converted.unwrap_or(image)
}

/// Converts ink (C, M, Y, K; 0 is none) to RGB.
pub(super) fn cmyk_to_srgb(inks: &[u8], profile: &[u8]) -> Option<Vec<u8>> {
    convert(inks, &CMYK, profile)
}

/// A layout of samples, and the one it has in sRGB.
struct Conversion {
    space: DataColorSpace,
    from: Layout,
    to: Layout,
    /// Samples per pixel before and after.
    samples: [usize; 2],
}

const fn conversion(space: DataColorSpace, from: Layout, to: Layout, samples: [usize; 2]) -> Conversion {
    Conversion { space, from, to, samples }
}

const GRAY: Conversion = conversion(DataColorSpace::Gray, Layout::Gray, Layout::Rgb, [1, 3]);
const GRAY_ALPHA: Conversion = conversion(DataColorSpace::Gray, Layout::GrayAlpha, Layout::Rgba, [2, 4]);
const RGB: Conversion = conversion(DataColorSpace::Rgb, Layout::Rgb, Layout::Rgb, [3, 3]);
const RGBA: Conversion = conversion(DataColorSpace::Rgb, Layout::Rgba, Layout::Rgba, [4, 4]);
// The crate has no layout of its own for four inks.
const CMYK: Conversion = conversion(DataColorSpace::Cmyk, Layout::Rgba, Layout::Rgb, [4, 3]);

fn convert(samples: &[u8], conversion: &Conversion, profile: &[u8]) -> Option<Vec<u8>> {
    if profile.len() > MAX_BYTES {
        return None;
    }
    let work = || {
        let mut profile = ColorProfile::new_from_slice(profile).ok()?;
        // Its curves count, as in Little CMS, and no other word for them.
        profile.cicp = None;
        if profile.color_space != conversion.space {
            return None;
        }
        let (srgb, options) = (ColorProfile::new_srgb(), TransformOptions::default());
        let transform = profile.create_transform_8bit(conversion.from, &srgb, conversion.to, options).ok()?;
        let [before, after] = conversion.samples;
        let mut converted = vec![0; samples.len() / before * after];
        transform.transform(samples, &mut converted).ok()?;
        Some(converted)
    };
    // Nothing outlives the closure that a panic could leave half done.
    catch_unwind(AssertUnwindSafe(work)).ok().flatten()
}

/// The profile that a JPEG file spreads over its APP2 markers; each has its number, from 1, and their count.
///
/// Source: ICC.1, annex B.4.
pub(super) fn from_jpeg<'a>(markers: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut parts: Vec<_> = markers.filter_map(|data| data.strip_prefix(b"ICC_PROFILE\0")).collect();
    parts.sort_by_key(|part| part.first().copied());
    let count = parts.len();
    let mut profile = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        let [number, total, bytes @ ..] = part else { return None };
        if usize::from(*number) != i + 1 || usize::from(*total) != count {
            return None;
        }
        profile.extend_from_slice(bytes);
    }
    (!profile.is_empty()).then_some(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_in_parts_is_put_together() {
        let part = |number: u8, total: u8, byte: u8| [b"ICC_PROFILE\0", &[number, total, byte][..]].concat();
        let join = |parts: &[Vec<u8>]| from_jpeg(parts.iter().map(Vec::as_slice));
        let other = b"MPF\0".to_vec();
        assert_eq!(join(&[part(2, 2, 8), other, part(1, 2, 7)]), Some(vec![7, 8]));
        for wrong in [&[part(1, 2, 7)][..], &[part(1, 2, 7), part(1, 2, 8)], &[part(0, 1, 7)], &[]] {
            assert_eq!(join(wrong), None, "{wrong:?}");
        }
        assert_eq!(join(&[b"ICC_PROFILE\0".to_vec()]), None);
    }

    #[test]
    fn a_useless_profile_changes_nothing() {
        let image = DynamicImage::from(RgbImage::from_pixel(2, 2, image::Rgb([10, 200, 30])));
        let srgb = ColorProfile::new_srgb().encode().unwrap();
        let gray = ColorProfile::new_gray_with_gamma(2.2).encode().unwrap();
        let too_large = [&srgb[..], &vec![0; MAX_BYTES]].concat();
        for profile in [&b""[..], b"nonsense", &srgb[..200], &gray, &too_large] {
            assert_eq!(to_srgb(image.clone(), profile), image);
        }
        assert_eq!(cmyk_to_srgb(&[0; 4], &srgb), None);
    }
}
