//! The body, and the pieces cut out of it: pictures and texts are handed on where they stand, so that a body of a hundred
//! megabytes is in memory once.

use std::{collections::BTreeMap, str};

use bytes::BytesMut;
use bytestring::ByteString;

/// A string of the body, as serde met it.
#[derive(Debug)]
pub(super) enum Word {
    /// Without escapes: where it stands, as an address and a length in bytes. No borrow, which would keep the
    /// body from being cut.
    Standing(usize, usize),
    /// With escapes, which only a copy can be without. Meilisearch escapes nothing that base64 is made of, but quotes
    /// and line breaks in texts.
    Unescaped(String),
}

impl Word {
    /// The empty string.
    pub(super) const EMPTY: Self = Self::Unescaped(String::new());

    /// A string that stands in the body like this.
    pub(super) fn standing(text: &str) -> Self {
        Self::Standing(text.as_ptr() as usize, text.len())
    }
}

/// Bytes by which a picture is told from an address.
const START_BYTES: usize = 64;

/// A body, whole at first.
pub(super) struct Cuts {
    /// What is left, by address.
    pieces: BTreeMap<usize, BytesMut>,
}

impl Cuts {
    /// The body that words will be read from; it was valid UTF-8 wherever a [`Word`] was found.
    pub(super) fn new(body: BytesMut) -> Self {
        Self { pieces: BTreeMap::from([(body.as_ptr() as usize, body)]) }
    }

    /// The text of `word`.
    pub(super) fn text<'a>(&'a self, word: &'a Word) -> &'a str {
        str::from_utf8(self.bytes(word)).expect("serde found it to be UTF-8")
    }

    /// How `word` begins, white space left out: some bytes at least, unless nothing else is in it. Pictures are
    /// long, and [`Self::text`] looks at all of one.
    pub(super) fn start<'a>(&'a self, word: &'a Word) -> &'a str {
        let bytes = self.bytes(word);
        if !bytes.first().is_some_and(u8::is_ascii_graphic) {
            return self.text(word).trim_start();
        }
        let start = &bytes[..bytes.len().min(START_BYTES)];
        start.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }

    fn bytes<'a>(&'a self, word: &'a Word) -> &'a [u8] {
        match word {
            Word::Unescaped(text) => text.as_bytes(),
            Word::Standing(_, 0) => b"",
            Word::Standing(at, len) => {
                let (start, piece) = self.pieces.range(..=at).next_back().expect("words stand in the body");
                let from = at - start;
                &piece[from..from + len]
            }
        }
    }

    /// Takes a text out, without a copy.
    pub(super) fn take_text(&mut self, word: Word) -> ByteString {
        match word {
            Word::Unescaped(text) => text.into(),
            standing => self.take(standing).try_into().expect("serde found it to be UTF-8"),
        }
    }

    /// Takes `word` out, without a copy where it stands in the body.
    pub(super) fn take(&mut self, word: Word) -> BytesMut {
        match word {
            Word::Unescaped(text) => BytesMut::from(text.as_bytes()),
            Word::Standing(_, 0) => BytesMut::new(),
            Word::Standing(at, len) => {
                let (_, piece) = self.pieces.range_mut(..=at).next_back().expect("words stand in the body");
                let mut taken = piece.split_off(at - piece.as_ptr() as usize);
                let rest = taken.split_off(len);
                self.pieces.insert(at + len, rest);
                taken
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_in_any_order_where_they_stand() {
        let body = BytesMut::from("0123456789");
        let start = body.as_ptr() as usize;
        let mut cuts = Cuts::new(body);
        let word = |from: usize, len: usize| Word::Standing(start + from, len);
        for (from, len, expected) in [(6, 2, "67"), (1, 3, "123"), (8, 2, "89"), (4, 0, ""), (4, 2, "45")] {
            assert_eq!(cuts.text(&word(from, len)), expected);
            let taken = cuts.take(word(from, len));
            assert_eq!(taken, expected);
            assert!(len == 0 || taken.as_ptr() as usize == start + from, "{expected} was copied");
        }
        assert_eq!(cuts.text(&word(0, 1)), "0");
        assert_eq!(cuts.take(Word::Unescaped("a/b".into())), "a/b");
        assert_eq!(cuts.take_text(Word::Unescaped("a\nb".into())), "a\nb");
        let text = cuts.take_text(word(0, 1));
        assert_eq!(text, "0");
        assert_eq!(text.as_ptr() as usize, start, "it was copied");
    }
}
