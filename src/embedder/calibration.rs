//! Inputs made up at start: they warm the model up and are the set that the placeholder is far from.

use crate::domain::{ImageSpec, Pixels};

/// Texts, and pictures, of the calibration set.
pub(super) const N_INPUTS: usize = 64;

/// The `i`-th text: phrases as people search and as titles and descriptions have them.
pub(super) fn text(i: usize) -> String {
    const FRAMES: [&str; 8] = [
        "{}",
        "a photo of a {}",
        "{}, close-up on a white background",
        "two people with a {} in the street at night",
        "buy a {} online, free delivery",
        "drawing of a {}",
        "the history of the {} and how it changed the world",
        "red and blue {}",
    ];
    const THINGS: [&str; 23] = [
        "dog", "house", "car", "tree", "woman", "shoe", "city", "mountain", "cup", "fish", "flower", "book",
        "film", "dress", "guitar", "sea", "cat", "table", "ship", "sun", "child", "bread", "phone",
    ];
    match i {
        0 => String::new(),
        1 => "test".into(),
        // 8 and 23 share no factor: all 184 pairs come before one comes again.
        _ => FRAMES[i % FRAMES.len()].replace("{}", THINGS[i % THINGS.len()]),
    }
}

/// The `i`-th picture, at the model's input size: plain grounds, gradients, stripes, checks, discs and noise
/// in changing colours.
pub(super) fn picture(i: usize, spec: &ImageSpec) -> Pixels {
    let [height, width] = spec.size();
    let mut noise = Noise(i as u64 + 1);
    let (ground, figure) = (noise.color(), noise.color());
    let size = height.min(width).max(1);
    let period = (size / (2 + i as u32 % 7)).max(1);
    let mut rgb8 = Vec::with_capacity(height as usize * width as usize * 3);
    for y in 0..height {
        for x in 0..width {
            let share = match i % 6 {
                0 => 0.0,
                1 => x as f32 / width as f32,
                2 => ((y / period) % 2) as f32,
                3 => ((x / period + y / period) % 2) as f32,
                4 => {
                    let (dx, dy) = (x as f32 - width as f32 / 2.0, y as f32 - height as f32 / 2.0);
                    f32::from(u8::from(dx.hypot(dy) < size as f32 / 3.0))
                }
                _ => f32::from(noise.byte()) / 255.0,
            };
            for (ground, figure) in ground.iter().zip(figure) {
                rgb8.push((f32::from(*ground) * (1.0 - share) + f32::from(figure) * share).round() as u8);
            }
        }
    }
    Pixels { rgb8, height, width }
}

/// Steele and Vigna's splitmix64: the same pictures on every machine.
struct Noise(u64);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 56) as u8
    }

    fn color(&mut self) -> [u8; 3] {
        [self.byte(), self.byte(), self.byte()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::runtime::stub::stub_model;

    #[test]
    fn inputs_differ_and_have_the_models_size() {
        let texts: HashSet<String> = (0..N_INPUTS).map(text).collect();
        assert_eq!(texts.len(), N_INPUTS);
        let spec = stub_model(4).spec.image.unwrap();
        let pictures: HashSet<Vec<u8>> = (0..N_INPUTS).map(|i| picture(i, &spec).rgb8).collect();
        assert_eq!(pictures.len(), N_INPUTS);
        assert!(pictures.iter().all(|rgb8| rgb8.len() == 8 * 8 * 3));
    }
}
