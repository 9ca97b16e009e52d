//! What a model eats.

/// An input made ready for one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// A tokenised text.
    Tokens(Tokens),
    /// A decoded, resized and cropped picture.
    Pixels(Pixels),
}

impl Prepared {
    /// The tower that this input goes through.
    pub fn modality(&self) -> Modality {
        match self {
            Self::Tokens(_) => Modality::Text,
            Self::Pixels(_) => Modality::Image,
        }
    }

    /// What others of its batch are padded to: a text's tokens, and 1 for a picture.
    pub fn length(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.ids.len(),
            Self::Pixels(_) => 1,
        }
    }
}

/// Text or image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Modality {
    /// Goes through the text tower.
    Text,
    /// Goes through the image tower.
    Image,
}

impl Modality {
    /// Every modality, in the order of the metrics' label values.
    pub const ALL: [Self; 2] = [Self::Text, Self::Image];

    /// The name used in metrics, logs and `/info`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
        }
    }
}

/// A tokenised text, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Ids, 1 to the model's context length of them; padding only where the model looks at it.
    pub ids: Vec<u32>,
    /// How many of them, from the first on, are no padding.
    pub n_tokens: usize,
    /// Whether the text was longer than the context and lost its end.
    pub truncated: bool,
}

/// A picture at the model's input size: RGB8 `[height, width, 3]`, rows top to bottom, values 0..=255.
/// Rescaling and normalisation run on the device, so that a quarter of the bytes travel.
#[derive(Clone, PartialEq, Eq)]
pub struct Pixels {
    /// `height * width * 3` bytes.
    pub rgb8: Vec<u8>,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pixels({}x{})", self.width, self.height)
    }
}
