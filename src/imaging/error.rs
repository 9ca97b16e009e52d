//! Why a picture has no pixels.

use crate::domain::ItemErrorKind;

/// Why a picture has no pixels. Messages never quote its bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImagingError {
    /// Zero bytes.
    #[error("the picture is empty")]
    Empty,
    /// Not one of the formats read here, told by its first bytes.
    #[error("this is {found}; JPEG, PNG, GIF, BMP, WebP, TIFF and AVIF are read")]
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
    /// AVIF, where the settings close it.
    #[error("it is an AVIF picture, which is read only with `image.avif`; send JPEG, PNG or WebP")]
    AvifOff,
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
    /// Decoding needs more memory than allowed.
    #[error(
        "decoding the {format} file takes {needed} bytes or more, above `image.max_memory_bytes` {limit}; \
         raise it or send a smaller picture"
    )]
    TooMuchMemory {
        /// The format.
        format: &'static str,
        /// What its header asks for, or the least that is too much.
        needed: u64,
        /// `image.max_memory_bytes`.
        limit: u64,
    },
    /// Decoding takes more time than allowed.
    #[error(
        "decoding the {format} file takes more than `image.timeout_ms` {limit_ms} of CPU time; raise it or save the \
         picture anew"
    )]
    TooSlow {
        /// The format.
        format: &'static str,
        /// `image.timeout_ms`.
        limit_ms: u64,
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

impl ImagingError {
    /// The stable name of the failure.
    pub fn kind(&self) -> ItemErrorKind {
        match self {
            Self::Empty => ItemErrorKind::EmptyImage,
            Self::UnknownFormat { .. } | Self::Unsupported { .. } | Self::AvifOff => {
                ItemErrorKind::NotAnImage
            }
            // Final, unlike `timeout`: CPU time is the picture's own, so a second try takes as long.
            Self::Corrupt { .. } | Self::TooSlow { .. } | Self::TooManyScans { .. } => ItemErrorKind::Corrupt,
            Self::TooManyPixels { .. } | Self::TooMuchMemory { .. } | Self::ResizedTooLarge { .. } => {
                ItemErrorKind::TooManyPixels
            }
        }
    }
}
