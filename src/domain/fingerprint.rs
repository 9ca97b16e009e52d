//! What decides a vector, the input aside.

use std::{fmt, str::FromStr};

/// 128 bits of digest over everything about a model that decides what its vectors are: two models with the same
/// fingerprint give the same vectors. Written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

/// A text is not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is {} hex digits, in lower case", Fingerprint::DIGITS)]
pub struct NoFingerprint;

impl Fingerprint {
    /// Hex digits of a fingerprint.
    const DIGITS: usize = 32;

    /// The fingerprint over `parts`, in their order. Each goes in with its length, so that no two lists run together.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let digest = hasher.finalize();
        let first = digest.as_bytes().first_chunk().expect("a digest has 32 bytes");
        Self(u128::from_be_bytes(*first))
    }

    /// The fingerprint's 16 bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != Self::DIGITS || !is_hex {
            return Err(NoFingerprint);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NoFingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_is_written() {
        for fingerprint in [Fingerprint::of(&[b"a"]), Fingerprint(0), Fingerprint(u128::MAX)] {
            assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        }
        let good = Fingerprint::of(&[b"a"]).to_string();
        for bad in ["", "a", &good.replacen(|_: char| true, "+", 1), &format!("{good}0"), &"A".repeat(32)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(NoFingerprint), "{bad}");
        }
    }

    #[test]
    fn no_two_lists_run_together() {
        let lists: [&[&[u8]]; 4] = [&[b"ab", b"c"], &[b"a", b"bc"], &[b"abc"], &[b"ab", b"c", b""]];
        let distinct: std::collections::BTreeSet<_> = lists.map(Fingerprint::of).into();
        assert_eq!(distinct.len(), lists.len());
    }
}
