//! Decoding.

use serde::{Deserialize, Serialize};

use crate::domain::{Background, Decode, Icc};

/// How pictures are decoded, and how large they may be.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// How closely decoding follows the Python reference.
    pub decode: Decode,
    /// What shows through transparent pixels.
    pub background: Background,
    /// What happens to embedded colour profiles.
    pub icc: Icc,
    /// Whether AVIF is read, in processes of its own.
    pub avif: bool,
    /// Most pixels of a picture, checked in its header.
    pub max_pixels: u64,
    /// Most bytes of memory that decoding one picture may take, reckoned from its header, and resizing it.
    pub max_memory_bytes: u64,
    /// Milliseconds of CPU time that decoding and resizing one picture may take.
    pub timeout_ms: u64,
    /// Pictures decoded and texts tokenised at once; 0 means one per core.
    pub threads: usize,
}

impl ImageConfig {
    /// The formats that are read.
    pub fn formats(&self) -> Vec<&'static str> {
        let formats = ["jpeg", "png", "gif", "bmp", "webp", "tiff"];
        formats.into_iter().chain(self.avif.then_some("avif")).collect()
    }
}
