//! What makes two inputs the same.

use crate::domain::{Background, ContentDigest, Decode, Fingerprint, Icc, Modality};

/// The model, and a digest over the content of one input and whatever about it the model does not decide. Equal keys
/// mean equal vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    fingerprint: Fingerprint,
    digest: [u8; 32],
}

impl CacheKey {
    /// The key of a text, as the caller wrote it.
    pub fn text(fingerprint: Fingerprint, text: &str) -> Self {
        Self::new(fingerprint, &[Modality::Text.as_str().as_bytes()], text.as_bytes())
    }

    /// The key of an encoded picture. Every setting that changes what a file looks like to the model belongs here.
    pub fn image(
        fingerprint: Fingerprint,
        decode: Decode,
        background: Background,
        icc: Icc,
        file: &ContentDigest,
    ) -> Self {
        let background = String::from(background);
        let circumstances = [Modality::Image.as_str(), decode.as_str(), &background, icc.as_str()];
        Self::new(fingerprint, &circumstances.map(str::as_bytes), file.as_bytes())
    }

    /// Each part goes in with its length, so that no two lists run together.
    fn new(fingerprint: Fingerprint, circumstances: &[&[u8]], content: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in circumstances.iter().chain([&content]) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Self { fingerprint, digest: *hasher.finalize().as_bytes() }
    }

    /// The key that was written as a fingerprint and [`Self::digest_hex`]; `None` if `digest` is not 64 hex digits.
    pub fn restored(fingerprint: Fingerprint, digest: &str) -> Option<Self> {
        Some(Self { fingerprint, digest: *blake3::Hash::from_hex(digest).ok()?.as_bytes() })
    }

    /// The model.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The digest of the content.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The digest of the content in 64 hex digits.
    pub fn digest_hex(&self) -> impl AsRef<str> + use<> {
        blake3::Hash::from_bytes(self.digest).to_hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_changes_the_vector_changes_the_key() {
        let model = |name: &str| Fingerprint::of(&[name.as_bytes()]);
        let profiled = |name, decode, background, icc, file: &[u8]| {
            CacheKey::image(model(name), decode, background, icc, &ContentDigest::of(file))
        };
        let image = |name, decode, background, file| profiled(name, decode, background, Icc::Ignore, file);
        let keys = [
            CacheKey::text(model("a"), "bc"),
            CacheKey::text(model("b"), "bc"),
            CacheKey::text(model("a"), "bd"),
            image("a", Decode::Fast, Background::WHITE, b"bc"),
            image("b", Decode::Fast, Background::WHITE, b"bc"),
            image("a", Decode::Exact, Background::WHITE, b"bc"),
            image("a", Decode::Fast, Background::None, b"bc"),
            image("a", Decode::Fast, Background::Color([0; 3]), b"bc"),
            image("a", Decode::Fast, Background::WHITE, b"bd"),
            profiled("a", Decode::Fast, Background::WHITE, Icc::Srgb, b"bc"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(CacheKey::text(model("a"), "bc"), keys[0]);
    }

    #[test]
    fn is_restored_from_what_is_written() {
        let key = CacheKey::text(Fingerprint::of(&[b"a"]), "text");
        assert_eq!(CacheKey::restored(key.fingerprint(), key.digest_hex().as_ref()), Some(key));
        for bad in ["", "zz", &"z".repeat(64)] {
            assert_eq!(CacheKey::restored(key.fingerprint(), bad), None);
        }
    }
}
