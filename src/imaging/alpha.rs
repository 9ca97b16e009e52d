//! Puts a background behind transparent pixels, leaving RGB.

use image::{DynamicImage, RgbImage};

use crate::domain::Background;

/// Restores colours that were multiplied by their alpha. `image` has 8 bits per sample.
///
/// Source: Pillow 12 `src/libImaging/Unpack.c`, its mode `RGBa`, including how it rounds.
pub(super) fn divide(image: &mut DynamicImage) {
    let DynamicImage::ImageRgba8(image) = image else { return };
    for pixel in image.pixels_mut() {
        let [red, green, blue, alpha] = pixel.0;
        let divided = |colour: u8| (u32::from(colour) * 255).checked_div(alpha.into()).unwrap_or(0).min(255);
        pixel.0 = [divided(red) as u8, divided(green) as u8, divided(blue) as u8, alpha];
    }
}

/// Puts a colour in place of pixels that are wholly transparent.
pub(super) fn fill(image: &mut DynamicImage, [red, green, blue]: [u8; 3]) {
    let DynamicImage::ImageRgba8(image) = image else { return };
    for pixel in image.pixels_mut().filter(|pixel| pixel[3] == 0) {
        pixel.0 = [red, green, blue, 255];
    }
}

/// Repeats gray, and composites or drops alpha. `image` has 8 bits per sample.
pub(super) fn flatten(image: DynamicImage, background: Background) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let rgb = match image {
        DynamicImage::ImageRgb8(rgb) => return rgb,
        DynamicImage::ImageLuma8(gray) => gray.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(pixels) => {
            pixels.pixels().flat_map(|p| over(background, [p[0]; 3], p[1])).collect()
        }
        image => {
            image.into_rgba8().pixels().flat_map(|p| over(background, [p[0], p[1], p[2]], p[3])).collect()
        }
    };
    RgbImage::from_raw(width, height, rgb).expect("three samples per pixel")
}

/// Source: Pillow 12 `src/libImaging/AlphaComposite.c` over an opaque colour, including how it rounds.
fn over(background: Background, colour: [u8; 3], alpha: u8) -> [u8; 3] {
    let Background::Color(behind) = background else { return colour };
    let (front, back) = (u32::from(alpha) << 7, u32::from(255 - alpha) << 7);
    std::array::from_fn(|i| {
        let t = u32::from(colour[i]) * front + u32::from(behind[i]) * back + (0x80 << 7);
        ((((t >> 8) + t) >> 8) >> 7) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composites_or_uncovers() {
        let magenta = [255, 0, 255];
        for (background, alpha, expected) in [
            (Background::WHITE, 0, [255; 3]),
            (Background::WHITE, 255, magenta),
            (Background::Color([0; 3]), 51, [51, 0, 51]),
            (Background::None, 0, magenta),
        ] {
            assert_eq!(over(background, magenta, alpha), expected, "{background:?} {alpha}");
        }
    }

    #[test]
    fn multiplied_colours_are_divided() {
        let pixels = vec![10, 128, 200, 128, 10, 20, 30, 255, 10, 20, 30, 0];
        let mut image = image::RgbaImage::from_raw(3, 1, pixels).unwrap().into();
        divide(&mut image);
        assert_eq!(image.as_bytes(), [19, 255, 255, 128, 10, 20, 30, 255, 0, 0, 0, 0]);
    }
}
