//! Why a picture has no pixels.

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::domain::ItemErrorKind;

/// A name that the program knows. Spelled as a reference, serde would want to borrow it from what is read.
pub type Name = &'static str;

/// Why a picture has no pixels. Messages never quote its bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ImagingError {
    /// Zero bytes.
    #[error("the picture is empty")]
    Empty,
    /// Not one of the formats read here, told by its first bytes.
    #[serde(skip)]
    #[error("this is {found}; JPEG, PNG, GIF, BMP, WebP, TIFF and, with `image.avif`, AVIF are read")]
    UnknownFormat {
        /// What it looks like, with its article.
        found: Name,
    },
    /// A known format in a flavour that is not read, such as a 12-bit JPEG.
    #[error("this flavour of {format} is not read: {detail}; save it as an 8-bit RGB file")]
    Unsupported {
        /// The format.
        #[serde(deserialize_with = "format")]
        format: Name,
        /// The decoder's words.
        detail: String,
    },
    /// AVIF, where the settings close it.
    #[error("it is an AVIF picture, which is read only with `image.avif`; send JPEG, PNG or WebP")]
    AvifOff,
    /// The file breaks off or contradicts itself.
    #[error("the {format} file is corrupt: {detail}")]
    Corrupt {
        /// The format.
        #[serde(deserialize_with = "format")]
        format: Name,
        /// The decoder's words.
        detail: String,
    },
    /// The header claims more pixels than allowed.
    #[error(
        "the picture is {width}x{height}, above `image.max_pixels` {limit}; raise it or send a smaller picture"
    )]
    TooManyPixels {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
        /// `image.max_pixels`.
        limit: u64,
    },
    /// Decoding or resizing needs more memory than allowed.
    #[error(
        "reading the {format} file takes {needed} bytes or more, above `image.max_memory_bytes` {limit}; \
         raise it or send a smaller picture"
    )]
    TooMuchMemory {
        /// The format.
        #[serde(deserialize_with = "format")]
        format: Name,
        /// What its header asks for, or the least that is too much.
        needed: u64,
        /// `image.max_memory_bytes`.
        limit: u64,
    },
    /// Decoding or resizing takes more time than allowed.
    #[error(
        "reading the {format} file takes more than `image.timeout_ms` {limit_ms} of CPU time; raise it or save the \
         picture anew"
    )]
    TooSlow {
        /// The format.
        #[serde(deserialize_with = "format")]
        format: Name,
        /// `image.timeout_ms`.
        limit_ms: u64,
    },
    /// The process that decodes was ended by the picture, or while it was at it.
    #[error("the {format} file ends its decoder ({how}); save it anew, and report it as a bug")]
    DecoderDied {
        /// The format.
        #[serde(deserialize_with = "format")]
        format: Name,
        /// The status or signal that it ended by.
        how: String,
    },
    /// No process to decode it in, or one that got nothing done or was killed by others than the picture.
    #[error("there is no decoder for {format} at the moment: {reason}; try again")]
    NoDecoder {
        /// The format.
        #[serde(deserialize_with = "format")]
        format: Name,
        /// What the system says.
        reason: String,
    },
    /// A JPEG of so many scans that it can only be meant to take time.
    #[error("the JPEG file has {scans} scans, above the {limit} that are read; save it anew")]
    TooManyScans {
        /// Scans counted, at least.
        scans: usize,
        /// The most.
        limit: usize,
    },
    /// The aspect ratio is so extreme that the model's resize, which does not crop, exceeds the limit.
    #[error(
        "resized for the model the picture is {width}x{height}, above `image.max_pixels` {limit}; send a less narrow one"
    )]
    ResizedTooLarge {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
        /// `image.max_pixels`.
        limit: u64,
    },
}

/// The most bytes of a decoder's words that are kept: some list every sample of a pixel.
const MAX_DETAIL_BYTES: usize = 200;

impl ImagingError {
    /// [`Corrupt`](Self::Corrupt), in a decoder's words.
    pub(super) fn corrupt(format: Name, words: impl ToString) -> Self {
        Self::Corrupt { format, detail: shortened(words) }
    }

    /// [`Unsupported`](Self::Unsupported), in a decoder's words.
    pub(super) fn unsupported(format: Name, words: impl ToString) -> Self {
        Self::Unsupported { format, detail: shortened(words) }
    }

    /// Whether the same bytes fail in the same way each time. A process may also be ended, and its memory taken, by
    /// others than the picture.
    pub fn comes_again(&self) -> bool {
        !matches!(self, Self::DecoderDied { .. } | Self::NoDecoder { .. } | Self::TooMuchMemory { .. })
    }

    /// The stable name of the failure.
    pub fn kind(&self) -> ItemErrorKind {
        match self {
            Self::Empty => ItemErrorKind::EmptyImage,
            Self::UnknownFormat { .. } | Self::Unsupported { .. } | Self::AvifOff => {
                ItemErrorKind::NotAnImage
            }
            // Final, unlike `timeout`: CPU time is the picture's own, so a second try takes as long.
            Self::Corrupt { .. }
            | Self::TooSlow { .. }
            | Self::TooManyScans { .. }
            | Self::DecoderDied { .. } => ItemErrorKind::Corrupt,
            Self::NoDecoder { .. } => ItemErrorKind::Internal,
            Self::TooManyPixels { .. } | Self::TooMuchMemory { .. } | Self::ResizedTooLarge { .. } => {
                ItemErrorKind::TooManyPixels
            }
        }
    }
}

fn shortened(words: impl ToString) -> String {
    let mut words = words.to_string();
    words.truncate(words.floor_char_boundary(MAX_DETAIL_BYTES));
    words.shrink_to_fit();
    words
}

/// The name of a format, which errors hold for as long as the program runs.
fn format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known =
        ["JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "AVIF"].into_iter().find(|known| *known == name);
    known.ok_or_else(|| de::Error::custom("no format that is read"))
}
