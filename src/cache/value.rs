//! What is kept under a key, and how it is written where bytes are wanted.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use url::Url;

use super::CacheKey;
use crate::domain::{Embedding, ImageSource, MAX_ADDRESS_BYTES};

/// The longest address that is kept; of what comes from a longer one only the kind is known.
const MAX_SOURCE_BYTES: usize = 1024;
/// The version of the format. Values of others are not read, see [`CachedVector::from_bytes`].
pub(super) const FORMAT: u8 = 1;
/// Format, flags, bytes of the source (u16), tokens, components (u32), milliseconds (u64).
const HEAD_BYTES: usize = 20;
/// The checksum at the end.
const SUM_BYTES: usize = 8;

/// Where a vector comes from, for whoever reads an export. Texts themselves are never kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A text.
    Text,
    /// A picture that came with its request.
    Image,
    /// A picture from this address or path, which has neither credentials nor query nor fragment.
    Url(Arc<str>),
}

impl Source {
    /// The source of a picture, without whatever in its address may be secret.
    pub fn of_picture(picture: &ImageSource) -> Self {
        let ImageSource::Url(address) = picture else { return Self::Image };
        if address.len() > MAX_ADDRESS_BYTES {
            return Self::Image;
        }
        match Url::parse(address.trim()) {
            Ok(url) if url.scheme() == "data" => Self::Image,
            Ok(mut url) => {
                url.set_query(None);
                url.set_fragment(None);
                // Refused only by addresses that can have neither.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                Self::restored(url.as_str())
            }
            // A path, or an address that is none.
            Err(_) => match address.trim().split(['?', '#']).next() {
                None | Some("") => Self::Image,
                Some(path) => Self::restored(path),
            },
        }
    }

    /// As it stands in a table: `text`, `image`, or the address.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Url(url) => url,
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn restored(text: &str) -> Self {
        match text {
            "text" => Self::Text,
            "image" => Self::Image,
            url if url.len() <= MAX_SOURCE_BYTES => Self::Url(url.into()),
            _ => Self::Image,
        }
    }

    /// Bytes that it holds beside itself.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text | Self::Image => 0,
            Self::Url(url) => url.len(),
        }
    }
}

/// A vector, and what its input counts for in [`crate::domain::Usage`].
#[derive(Debug, Clone, PartialEq)]
pub struct CachedVector {
    /// The vector.
    pub embedding: Embedding,
    /// Tokens of a text, after truncation; 0 for a picture.
    pub text_tokens: u32,
    /// Whether a text lost its end.
    pub truncated: bool,
    /// Where it comes from.
    pub source: Source,
    /// When it was computed, in milliseconds since 1970.
    pub created_ms: u64,
}

impl CachedVector {
    /// The vector of a text, computed now.
    pub fn of_text(embedding: Embedding, text_tokens: u32, truncated: bool) -> Self {
        Self { embedding, text_tokens, truncated, source: Source::Text, created_ms: now_ms() }
    }

    /// The vector of a picture, computed now.
    pub fn of_image(embedding: Embedding, source: Source) -> Self {
        Self { embedding, text_tokens: 0, truncated: false, source, created_ms: now_ms() }
    }

    /// The value as bytes, little-endian: the head, the source, the components, and a checksum over these and the
    /// key.
    pub(super) fn to_bytes(&self, key: &CacheKey) -> Vec<u8> {
        let source = self.source.as_str().as_bytes();
        let components = self.embedding.as_slice();
        let mut out = Vec::with_capacity(HEAD_BYTES + source.len() + size_of_val(components) + SUM_BYTES);
        out.extend([FORMAT, u8::from(self.truncated)]);
        out.extend((source.len() as u16).to_le_bytes());
        out.extend(self.text_tokens.to_le_bytes());
        out.extend((components.len() as u32).to_le_bytes());
        out.extend(self.created_ms.to_le_bytes());
        out.extend(source);
        components.iter().for_each(|x| out.extend(x.to_le_bytes()));
        out.extend(checksum(key, &out));
        out
    }

    /// Reads what [`Self::to_bytes`] wrote for the same key; `None` for anything else, be it another version or
    /// damaged.
    pub(super) fn from_bytes(key: &CacheKey, bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<SUM_BYTES>()?;
        let (head, rest) = body.split_first_chunk::<HEAD_BYTES>()?;
        let (&[FORMAT, truncated], numbers) = head.split_first_chunk()? else { return None };
        if *sum != checksum(key, body) {
            return None;
        }
        let (source_bytes, numbers) = numbers.split_first_chunk()?;
        let (text_tokens, numbers) = numbers.split_first_chunk()?;
        let (dimensions, created_ms) = numbers.split_first_chunk()?;
        let (source, components) = rest.split_at_checked(u16::from_le_bytes(*source_bytes).into())?;
        let (components, []) = components.as_chunks::<4>() else { return None };
        if components.len() != u32::from_le_bytes(*dimensions) as usize {
            return None;
        }
        Some(Self {
            embedding: Embedding::restored(components.iter().map(|x| f32::from_le_bytes(*x)).collect())
                .ok()?,
            text_tokens: u32::from_le_bytes(*text_tokens),
            truncated: truncated != 0,
            source: Source::restored(str::from_utf8(source).ok()?),
            created_ms: u64::from_le_bytes(created_ms.try_into().ok()?),
        })
    }
}

/// The key counts too, so that no value passes for that of another key.
fn checksum(key: &CacheKey, body: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&key.fingerprint().to_bytes()).update(key.digest()).update(body);
    *hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes")
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Fingerprint;

    fn key(text: &str) -> CacheKey {
        CacheKey::text(Fingerprint::of(&[b"model"]), text)
    }

    #[test]
    fn bytes_give_the_value_back_to_the_bit() {
        let embedding = Embedding::normalized((1..=512).map(|n| 1.0 / n as f32).collect()).unwrap();
        for value in [
            CachedVector::of_text(embedding.clone(), 77, true),
            CachedVector::of_image(embedding.clone(), Source::Image),
            CachedVector::of_image(embedding, Source::Url("https://host/a.jpg".into())),
        ] {
            assert_eq!(CachedVector::from_bytes(&key("a"), &value.to_bytes(&key("a"))), Some(value));
        }
    }

    #[test]
    fn what_is_damaged_cut_or_of_another_key_is_not_read() {
        let value = CachedVector::of_text(Embedding::normalized(vec![3.0, 4.0]).unwrap(), 3, false);
        let bytes = value.to_bytes(&key("a"));
        assert_eq!(CachedVector::from_bytes(&key("b"), &bytes), None);
        for i in 0..bytes.len() {
            assert_eq!(CachedVector::from_bytes(&key("a"), &bytes[..i]), None, "cut at {i}");
            let mut damaged = bytes.clone();
            damaged[i] ^= 1;
            assert_eq!(CachedVector::from_bytes(&key("a"), &damaged), None, "changed at {i}");
        }
        let mut of_another_version = bytes[..bytes.len() - SUM_BYTES].to_vec();
        of_another_version[0] = FORMAT + 1;
        of_another_version.extend(checksum(&key("a"), &of_another_version));
        assert_eq!(CachedVector::from_bytes(&key("a"), &of_another_version), None);
    }

    #[test]
    fn an_address_loses_what_may_be_secret() {
        let check = |address: &str, expected: &str| {
            let source = Source::of_picture(&ImageSource::Url(address.into()));
            assert_eq!(source.as_str(), expected, "{address}");
        };
        check("https://me:secret@host:8443/a/b.jpg?sig=secret#secret", "https://host:8443/a/b.jpg");
        check("http://host", "http://host/");
        check(" http://cdn.example:8080/a.jpg ", "http://cdn.example:8080/a.jpg");
        check("s3://photos/2024/a.jpg?versionId=1", "s3://photos/2024/a.jpg");
        check("img/a.jpg?sig=secret", "img/a.jpg");
        check("DATA:image/png;base64,AAAA", "image");
        check("", "image");
        check(&format!("https://host/{}", "a".repeat(MAX_SOURCE_BYTES)), "image");
        check(&format!("https://host/a.jpg?{}", "a".repeat(MAX_SOURCE_BYTES)), "https://host/a.jpg");
        // Not worth reading.
        check(&format!("https://host/a.jpg?{}", "a".repeat(MAX_ADDRESS_BYTES)), "image");
    }
}
