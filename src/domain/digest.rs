//! What a file is, whatever it is called.

/// The BLAKE3 digest of a picture's file. It does not depend on any model, so that an address can be
/// remembered by what it led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// The digest of a whole file.
    pub fn of(file: &[u8]) -> Self {
        Self(*blake3::hash(file).as_bytes())
    }

    /// The digest of a file that was hashed as it came, piece by piece.
    pub fn of_hasher(file: &blake3::Hasher) -> Self {
        Self(*file.finalize().as_bytes())
    }

    /// The digest's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
