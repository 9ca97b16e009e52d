//! The rewriting rules inside a SentencePiece model: NFKC and more, as one table from strings to strings.
//!
//! The `tokenizers` crate reads the table too, but looks up grapheme by grapheme where SentencePiece takes the
//! longest match at every place: stacked combining marks come out differently.

/// A table of rules.
#[derive(Debug, Clone, Default)]
pub struct Charsmap {
    /// Units of a double array (Darts-clone) over the bytes of what is replaced.
    trie: Vec<u32>,
    /// What it is replaced with, each ended by a NUL. Leaves of the trie are offsets into it.
    replacements: String,
}

impl Charsmap {
    /// Reads `precompiled_charsmap`: the trie's size in bytes, the trie, the replacements; little endian.
    /// Empty for no rules. `None` when it is something else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let (size, rest) = bytes.split_first_chunk()?;
        let (trie, replacements) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        let units = trie.chunks_exact(4);
        Some(Self {
            trie: units.map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect(),
            replacements: String::from_utf8(replacements.into()).ok()?,
        })
    }

    /// The longest beginning of `text` that has a rule: its length in bytes, and what replaces it.
    pub fn longest_match(&self, text: &str) -> Option<(usize, &str)> {
        let mut longest = None;
        let mut unit = *self.trie.first()?;
        let mut at = offset(unit);
        for (length, byte) in (1..).zip(text.bytes()) {
            at ^= usize::from(byte);
            match self.trie.get(at) {
                Some(&next) if label(next) == u32::from(byte) => unit = next,
                _ => break,
            }
            at ^= offset(unit);
            if has_leaf(unit) && text.is_char_boundary(length) {
                longest = self.trie.get(at).map(|&leaf| (length, leaf)).or(longest);
            }
        }
        let (length, leaf) = longest?;
        // The highest bit marks a leaf.
        let replacement = self.replacements.get((leaf & !(1 << 31)) as usize..)?.split('\0').next()?;
        Some((length, replacement))
    }
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

/// The byte that leads to the unit; no byte equals that of a leaf.
fn label(unit: u32) -> u32 {
    unit & (1 << 31 | 0xff)
}

/// Of the unit's children.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pieces::tests::siglip;

    #[test]
    fn the_longest_match_wins() {
        let siglip = siglip();
        let map = &siglip.charsmap;
        assert_eq!(map.longest_match("ﬁn"), Some((3, "fi")));
        assert_eq!(map.longest_match("a\u{301}\u{327}"), Some((3, "á")));
        assert_eq!(map.longest_match("\u{2581}x"), Some((3, " ")));
        assert_eq!(map.longest_match("a"), None);
        assert_eq!(map.longest_match(""), None);
    }

    #[test]
    fn no_rules_match_nothing() {
        assert_eq!(Charsmap::read(&[]).unwrap().longest_match("ﬁ"), None);
    }

    #[test]
    fn broken_tables_neither_pass_nor_panic() {
        assert!(Charsmap::read(&[1, 0]).is_none());
        assert!(Charsmap::read(&[8, 0, 0, 0, 1]).is_none());
        assert!(Charsmap::read(&[0, 0, 0, 0, 0xff]).is_none());
        // Units that point anywhere.
        for fill in [0, 0x41, 0xff] {
            let table = [&[8, 0, 0, 0][..], &[fill; 8]].concat();
            let map = Charsmap::read(&table).unwrap();
            let _ = ["", "A", "\u{ff}A"].map(|text| map.longest_match(text).is_some());
        }
    }
}
