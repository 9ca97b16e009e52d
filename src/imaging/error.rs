//! Why a picture has no pixels.

use crate::domain::ItemErrorKind;

/// Why a picture has no pixels. Messages never quote its bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImagingError {
    /// Zero bytes.
    #[error("the picture is empty")]
    Empty,
    /// Not one of the formats read here, told by its first bytes.
    #[error("this is {found}; JPEG, PNG, GIF, BMP, WebP and TIFF are read")]
    UnknownFormat {
        /// What it looks like, with its article.
        found: &'static str,
    },
    /// A known format in a flavour that is not read, such as a 12-bit JPEG.
    #[error("this flavour of {format} is not read: {detail}; save it as an 8-bit RGB file")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// The file breaks off or contradicts itself.
    #[error("the {format} file is corrupt: {detail}")]
    Corrupt {
        /// The format.
        format: &'static str,
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
    /// Decoding needs more memory than a picture of the allowed size can.
    #[error(
        "decoding the {format} file needs more memory than `image.max_pixels` {limit} allows; send a smaller picture"
    )]
    TooMuchMemory {
        /// The format.
        format: &'static str,
        /// `image.max_pixels`.
        limit: u64,
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

impl ImagingError {
    /// The stable name of the failure.
    pub fn kind(&self) -> ItemErrorKind {
        match self {
            Self::Empty => ItemErrorKind::EmptyImage,
            Self::UnknownFormat { .. } | Self::Unsupported { .. } => ItemErrorKind::NotAnImage,
            Self::Corrupt { .. } => ItemErrorKind::Corrupt,
            Self::TooManyPixels { .. } | Self::TooMuchMemory { .. } | Self::ResizedTooLarge { .. } => {
                ItemErrorKind::TooManyPixels
            }
        }
    }
}
