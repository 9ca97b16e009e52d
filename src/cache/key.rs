//! What makes two inputs the same.

use crate::domain::{Background, ContentDigest, Decode, Icc, Modality};

/// A digest over the model, the preprocessing and the content of one input. Equal keys mean equal vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// Bytes of a key.
    pub const BYTES: usize = 32;

    /// The key of a text, as the caller wrote it.
    pub fn text(fingerprint: &str, text: &str) -> Self {
        Self::digest(&[fingerprint.as_bytes(), Modality::Text.as_str().as_bytes()], text.as_bytes())
    }

    /// The key of an encoded picture.
    pub fn image(
        fingerprint: &str,
        decode: Decode,
        background: Background,
        icc: Icc,
        file: &ContentDigest,
    ) -> Self {
        let background = String::from(background);
        let circumstances =
            [fingerprint, Modality::Image.as_str(), decode.as_str(), &background, icc.as_str()];
        Self::digest(&circumstances.map(str::as_bytes), file.as_bytes())
    }

    /// Each part goes in with its length, so that no two lists run together.
    fn digest(circumstances: &[&[u8]], content: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in circumstances.iter().chain([&content]) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_changes_the_vector_changes_the_key() {
        let profiled = |fingerprint, decode, background, icc, file: &[u8]| {
            CacheKey::image(fingerprint, decode, background, icc, &ContentDigest::of(file))
        };
        let image = |fingerprint, decode, background, file| {
            profiled(fingerprint, decode, background, Icc::Ignore, file)
        };
        let keys = [
            CacheKey::text("a", "bc"),
            CacheKey::text("ab", "c"),
            image("a", Decode::Fast, Background::WHITE, b"bc"),
            image("a", Decode::Exact, Background::WHITE, b"bc"),
            image("a", Decode::Fast, Background::None, b"bc"),
            image("a", Decode::Fast, Background::WHITE, b"bd"),
            profiled("a", Decode::Fast, Background::WHITE, Icc::Srgb, b"bc"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(CacheKey::text("a", "bc"), keys[0]);
    }
}
