//! The facts of one checkpoint, read from its configuration files.

use serde::{Deserialize, Serialize};

use super::{InputType, Modality};

/// What the rest of the house needs to know of a loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The name shown to callers: the setting, the hub's name, the directory's, or `sidelens-demo`.
    pub name: String,
    /// The family: `clip`, ...; two, where the towers come from two checkpoints.
    pub family: String,
    /// Components of a vector.
    pub dimensions: usize,
    /// How pictures are prepared; `None` for a model without an image tower.
    pub image: Option<ImageSpec>,
    /// How texts are prepared; `None` for a model without a text tower.
    pub text: Option<TextSpec>,
    /// Which of its states each tower gives.
    pub pooling: Poolings,
}

impl ModelSpec {
    /// What it has a tower for.
    pub fn modalities(&self) -> Vec<Modality> {
        let towers = [(Modality::Text, self.text.is_some()), (Modality::Image, self.image.is_some())];
        towers.into_iter().filter_map(|(modality, is_there)| is_there.then_some(modality)).collect()
    }
}

/// How each tower's token states become one vector; `None` for a tower that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Poolings {
    /// Of the image tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Pooling>,
    /// Of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Pooling>,
}

/// How token states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean over all tokens, special ones included and padding left out.
    Mean,
    /// The model's own pooler on top of the first token.
    Pooler,
    /// A learned projection of one token into the space that both towers share.
    Projection,
    /// A learned query that attends to all tokens.
    Attention,
    /// BLIP-2 without a retrieval head: the mean over the Q-Former's query states.
    QformerMean,
    /// BLIP-2 with a retrieval head: the mean over the query states, each projected and normalised.
    ItcMean,
    /// The module's output as it is.
    None,
}

impl Pooling {
    /// The name in settings, `/info` and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Pooler => "pooler",
            Self::Projection => "projection",
            Self::Attention => "attention",
            Self::QformerMean => "qformer_mean",
            Self::ItcMean => "itc_mean",
            Self::None => "none",
        }
    }
}

impl std::fmt::Display for Pooling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an encoded picture becomes the image tower's input.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
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

impl ImageSpec {
    /// Of samples between -1 and 1, for tests of what comes before.
    #[cfg(test)]
    pub fn centred(resize: Resize, crop: Option<[u32; 2]>, filter: Filter) -> Self {
        Self { resize, crop, filter, rescale_factor: 1.0 / 255.0, mean: [0.5; 3], std: [0.5; 3] }
    }

    /// Rows and columns of the tower's input.
    pub fn size(&self) -> [u32; 2] {
        self.crop.unwrap_or(match self.resize {
            Resize::ShortestEdge(edge) => [edge, edge],
            Resize::Exact { height, width } => [height, width],
        })
    }
}

/// The size that a picture is resampled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
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

/// How closely decoding follows the Python reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is at least twice what the model's resize
    /// asks for; a smaller one that shrinks is resized before its chroma becomes RGB.
    Fast,
    /// To the pixel, as Pillow.
    Exact,
}

impl Decode {
    /// As it stands in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Exact => "exact",
        }
    }
}

/// What happens to the colour profile that a picture carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Icc {
    /// It is passed over, as the Python reference does.
    Ignore,
    /// Colours are converted to sRGB by it.
    Srgb,
}

impl Icc {
    /// As it stands in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Srgb => "srgb",
        }
    }
}

/// How a text becomes the text tower's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSpec {
    /// The most tokens, special ones included; longer texts lose their end.
    pub max_length: usize,
    /// What happens to a text before the tokenizer sees it.
    pub clean_up: CleanUp,
    /// The token that fills every text up to `max_length`, for a tower that attends to its padding. Without
    /// one, texts are padded only to the longest of a batch, and the padding changes nothing.
    pub padding: Option<String>,
    /// Put before a text by what it is for.
    pub prompts: Prompts,
}

impl TextSpec {
    /// Texts as they are, cut to `max_length` tokens.
    pub fn new(max_length: usize) -> Self {
        Self { max_length, clean_up: CleanUp::None, padding: None, prompts: Prompts::default() }
    }
}

/// What the Python tokenizer of a family does to a text before its `tokenizer.json` begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanUp {
    /// Nothing.
    None,
    /// Lower case, literal special tokens excepted: `do_lower_case` of `sentence_bert_config.json`.
    Lowercase,
    /// Lower case where `lowercase` is set, no ASCII punctuation, single spaces, none at the ends.
    Siglip {
        /// `do_lower_case`.
        lowercase: bool,
    },
}

/// A model's prompts; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompts {
    /// Before a query.
    pub query: String,
    /// Before a document.
    pub document: String,
    /// Before a text whose purpose is not said.
    pub default: String,
}

impl Prompts {
    /// What stands before a text of this type.
    pub fn of(&self, input_type: Option<InputType>) -> &str {
        match input_type {
            Some(InputType::Query) => &self.query,
            Some(InputType::Document) => &self.document,
            None => &self.default,
        }
    }
}

/// A tokenizer as a checkpoint holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerFile {
    /// `tokenizer.json`.
    Json(Vec<u8>),
    /// A SentencePiece model, such as `spiece.model`.
    SentencePiece(Vec<u8>),
    /// CLIP's two files.
    BytePair {
        /// `vocab.json`: the id of each piece.
        vocab: Vec<u8>,
        /// `merges.txt`: the pieces that become one, a pair a line.
        merges: Vec<u8>,
    },
    /// BERT's `vocab.txt`, and what `tokenizer_config.json` says of it.
    WordPiece {
        /// A token a line; its id is the line's number, from 0.
        vocab: Vec<u8>,
        /// `do_lower_case`.
        lowercase: bool,
        /// `strip_accents`; none for what `lowercase` is.
        strip_accents: Option<bool>,
        /// `tokenize_chinese_chars`: each such character is a word.
        split_chinese: bool,
    },
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
