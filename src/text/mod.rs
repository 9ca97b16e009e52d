//! Texts to token ids, by the `tokenizers` crate and the checkpoint's own `tokenizer.json`.
//!
//! Leaves padding to the engine, which knows the batch.

use tokenizers::{PostProcessor, TruncationParams};

use crate::domain::{TextSpec, TokenizerFile, Tokens};

/// Characters handed to the tokenizer at first, per token of the context.
const CHARS_PER_TOKEN: usize = 64;
/// Characters handed to the tokenizer at most, however little they tokenise to.
const MAX_CHARS: usize = 1 << 20;

/// A checkpoint's tokenizer. Shared by threads as it is.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_length: usize,
}

/// Why a tokenizer cannot be built, or a text not be tokenised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The file is not one that the `tokenizers` crate reads.
    #[error("tokenizer.json cannot be read: {0}")]
    Invalid(String),
    /// The special tokens alone fill the context.
    #[error("a context of {max_length} tokens has no room for text beside {special} special tokens")]
    NoRoom {
        /// The model's context.
        max_length: usize,
        /// What the tokenizer adds to every text.
        special: usize,
    },
    /// The tokenizer refused a text, or gave no token at all.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
}

impl Tokenizer {
    /// Builds the tokenizer of a checkpoint.
    ///
    /// # Errors
    /// [`TextError::Invalid`] and [`TextError::NoRoom`].
    pub fn new(file: &TokenizerFile, spec: &TextSpec) -> Result<Self, TextError> {
        match file {
            TokenizerFile::Json(json) => Self::from_json(json, spec),
            TokenizerFile::SentencePiece(_) => Err(TextError::Invalid("a SentencePiece model".into())),
        }
    }

    /// Reads `tokenizer.json`. Its own truncation and padding are replaced: texts are cut to
    /// `spec.max_length` tokens, special ones included, and never padded.
    ///
    /// # Errors
    /// [`TextError::Invalid`] and [`TextError::NoRoom`].
    fn from_json(json: &[u8], spec: &TextSpec) -> Result<Self, TextError> {
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| TextError::Invalid(error.to_string()))?;
        let max_length = spec.max_length;
        let special = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if special >= max_length {
            return Err(TextError::NoRoom { max_length, special });
        }
        inner
            .with_padding(None)
            .with_truncation(Some(TruncationParams { max_length, ..Default::default() }))
            .map_err(|error| TextError::Invalid(error.to_string()))?;
        Ok(Self { inner, max_length })
    }

    /// Tokenises one text: 1 to `max_length` ids, special tokens included.
    ///
    /// The time is bounded however long the text is. Only a beginning of it is read (64 characters for each
    /// token of the context at first), and a longer one as long as the beginning does not overflow the
    /// context. Where it does, all ids that are kept come from before the cut: tokenisers work from left to
    /// right in words, so that the cut can change only the tokens of the word it falls into, which is beyond
    /// the context unless that one word alone overflows it.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Tokens, TextError> {
        let mut limit = self.max_length.saturating_mul(CHARS_PER_TOKEN).min(MAX_CHARS);
        loop {
            let beginning = prefix(text, limit);
            let is_cut = beginning.len() < text.len();
            let encoding = self
                .inner
                .encode_fast(beginning, true)
                .map_err(|error| TextError::Encode(error.to_string()))?;
            let overflows = !encoding.get_overflowing().is_empty();
            // Long runs of spaces collapse to nothing: what comes after them must be seen.
            if is_cut && !overflows && limit < MAX_CHARS {
                limit = limit.saturating_mul(4).min(MAX_CHARS);
                continue;
            }
            if encoding.get_ids().is_empty() {
                return Err(TextError::Encode("no token came out".into()));
            }
            return Ok(Tokens { ids: encoding.get_ids().to_vec(), truncated: overflows || is_cut });
        }
    }
}

/// The first `n_chars` characters.
fn prefix(text: &str, n_chars: usize) -> &str {
    // A character has at least one byte, so most texts are seen to be short without counting.
    if text.len() <= n_chars {
        return text;
    }
    match text.char_indices().nth(n_chars) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &[u8] = include_bytes!("../../assets/demo-model/tokenizer.json");

    fn demo(max_length: usize) -> Tokenizer {
        Tokenizer::from_json(DEMO, &TextSpec::new(max_length)).unwrap()
    }

    #[test]
    fn cuts_to_the_context_and_keeps_the_end_token() {
        let short = demo(16).encode("a red house").unwrap();
        assert!(!short.truncated);
        assert_eq!((short.ids[0], *short.ids.last().unwrap()), (884, 885));
        let long = demo(16).encode(&"a red house ".repeat(20)).unwrap();
        assert!(long.truncated);
        assert_eq!((long.ids.len(), *long.ids.last().unwrap()), (16, 885));
        assert_eq!(long.ids[..short.ids.len() - 1], short.ids[..short.ids.len() - 1]);
    }

    #[test]
    fn an_exact_fit_is_not_truncated() {
        let n = demo(64).encode("a red house").unwrap().ids.len();
        assert!(!demo(n).encode("a red house").unwrap().truncated);
        assert!(demo(n - 1).encode("a red house").unwrap().truncated);
    }

    #[test]
    fn an_empty_text_has_tokens() {
        assert_eq!(demo(16).encode("").unwrap(), Tokens { ids: vec![884, 885], truncated: false });
    }

    #[test]
    fn very_long_texts_give_the_ids_of_their_beginning() {
        let expected = demo(16).encode(&"a red house ".repeat(90)).unwrap();
        assert_eq!(demo(16).encode(&"a red house ".repeat(2_000_000)).unwrap(), expected);
        // One endless word, and many bytes per character.
        assert!(demo(16).encode(&"é".repeat(3_000_000)).unwrap().truncated);
    }

    #[test]
    fn text_behind_a_long_run_of_spaces_is_seen() {
        let expected = demo(16).encode("red house").unwrap();
        let found = demo(16).encode(&format!("red{}house", " ".repeat(5000))).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        let spec = TextSpec::new;
        assert!(matches!(Tokenizer::from_json(b"{}", &spec(16)), Err(TextError::Invalid(_))));
        let no_room = Tokenizer::from_json(DEMO, &spec(2)).err();
        assert_eq!(no_room, Some(TextError::NoRoom { max_length: 2, special: 2 }));
    }
}
