//! The facts of one checkpoint, read from its configuration files.

use serde::{Deserialize, Serialize};

/// What the rest of the house needs to know of a loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The name shown to callers: the directory's name, or `sidelens-demo`.
    pub name: String,
    /// The family: `clip`, ...
    pub family: &'static str,
    /// Components of a vector.
    pub dimensions: usize,
    /// How pictures are prepared; `None` for a model without an image tower.
    pub image: Option<ImageSpec>,
    /// How texts are prepared; `None` for a model without a text tower.
    pub text: Option<TextSpec>,
}

/// How an encoded picture becomes the image tower's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSpec {
    /// The size before the crop.
    pub resize: Resize,
    /// Centre crop `[height, width]` after the resize.
    pub crop: Option<[u32; 2]>,
    /// The resampling filter.
    pub filter: Filter,
    /// Multiplied with every 0..=255 sample, usually 1/255.
    pub rescale_factor: f64,
    /// Subtracted per channel (R, G, B) after rescaling.
    pub mean: [f32; 3],
    /// Divided by, per channel, after subtracting `mean`.
    pub std: [f32; 3],
}

/// The size that a picture is resampled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The short side becomes this; the long side keeps the aspect ratio, truncated.
    ShortestEdge(u32),
    /// Exactly this, whatever the aspect ratio.
    Exact {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
}

/// A resampling filter, stretched when shrinking (antialiased), as Pillow applies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, radius 1.
    Bilinear,
    /// Cubic convolution with a = -0.5, radius 2.
    Bicubic,
}

/// What shows through transparent pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Background {
    /// Alpha is dropped, uncovering whatever colour the transparent pixels hide (Pillow's `convert("RGB")`).
    None,
    /// Alpha is composited over this RGB colour.
    Color([u8; 3]),
}

impl Background {
    /// White, the default, as transformers does from 5.21 on.
    pub const WHITE: Self = Self::Color([255; 3]);
}

impl TryFrom<String> for Background {
    type Error = String;

    fn try_from(value: String) -> Result<Self, String> {
        let hex = |digits: &str| {
            let n = u32::from_str_radix(digits, 16).ok()?;
            (digits.len() == 6 && !digits.starts_with('+')).then(|| {
                let [_, r, g, b] = n.to_be_bytes();
                Self::Color([r, g, b])
            })
        };
        match value.as_str() {
            "none" => Ok(Self::None),
            "white" => Ok(Self::WHITE),
            "black" => Ok(Self::Color([0; 3])),
            other => other.strip_prefix('#').and_then(hex).ok_or_else(|| {
                format!("unknown background `{other}`: use `white`, `black`, `#rrggbb` or `none`")
            }),
        }
    }
}

impl From<Background> for String {
    fn from(value: Background) -> Self {
        match value {
            Background::None => "none".into(),
            Background::Color([r, g, b]) => format!("#{r:02x}{g:02x}{b:02x}"),
        }
    }
}

/// How a text becomes the text tower's input.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSpec {
    /// The most tokens, special ones included; longer texts lose their end.
    pub max_length: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_round_trips() {
        for (text, expected) in [
            ("white", Background::WHITE),
            ("none", Background::None),
            ("#102030", Background::Color([16, 32, 48])),
        ] {
            let background = Background::try_from(text.to_string()).unwrap();
            assert_eq!(background, expected);
            assert_eq!(Background::try_from(String::from(background)), Ok(expected));
        }
        for bad in ["", "#12345", "#+12345", "pink", "#1234567"] {
            assert!(Background::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }
}
