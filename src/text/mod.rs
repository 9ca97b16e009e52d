//! Texts to token ids, by the `tokenizers` crate and the checkpoint's own `tokenizer.json`, SentencePiece
//! model, `vocab.txt` or `vocab.json` and `merges.txt`.
//!
//! Leaves padding to the engine, which knows the batch, unless the text tower looks at its padding.

mod byte_pair;
mod charsmap;
mod pieces;
mod siglip;
mod word_piece;

use tokenizers::{
    Encoding, NormalizerWrapper, PostProcessor, TruncationParams,
    normalizers::{Lowercase, Sequence},
};

use self::{charsmap::Charsmap, pieces::Pieces, siglip::SiglipTokenizer};
use crate::domain::{CleanUp, TextSpec, TokenizerFile, Tokens};

/// Characters handed to the tokenizer at first, per token of the context.
const CHARS_PER_TOKEN: usize = 64;
/// Characters handed to the tokenizer at most, however little they tokenise to.
const MAX_CHARS: usize = 1 << 20;

/// A checkpoint's tokenizer. Shared by threads as it is.
pub struct Tokenizer {
    inner: Inner,
    max_length: usize,
    /// Fills every text up to `max_length`.
    padding: Option<u32>,
}

enum Inner {
    /// What `tokenizer.json` says, or an older file that could be one.
    Json(Box<tokenizers::Tokenizer>),
    /// What SigLIP's Python class does.
    Siglip(Box<SiglipTokenizer>),
}

/// What is wrong with another tokenizer for SigLIP.
const NO_SENTENCE_PIECE: &str = "SigLIP has a SentencePiece model";

/// Why a tokenizer cannot be built, or a text not be tokenised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The file is not one that can be read.
    #[error("{file} cannot be read: {reason}")]
    Invalid {
        /// Which.
        file: &'static str,
        /// Why.
        reason: String,
    },
    /// A SentencePiece model without the settings of a tokenizer that is known here.
    #[error(
        "a SentencePiece model alone does not say which special tokens a text gets; add the tokenizer.json that \
         transformers saves for this tokenizer"
    )]
    NoSettings,
    /// The padding token has no id.
    #[error("the padding token `{0}` is not in the vocabulary")]
    NoPadding(String),
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

impl TextError {
    /// [`Invalid`](Self::Invalid), in the words of who reads it.
    fn invalid(file: &'static str, words: impl ToString) -> Self {
        Self::Invalid { file, reason: words.to_string() }
    }

    /// The same of `tokenizer.json`.
    fn invalid_json(words: impl ToString) -> Self {
        Self::invalid("tokenizer.json", words)
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a checkpoint. Truncation and padding are those of `spec`, whatever the file
    /// says: texts are cut to `spec.max_length` tokens, special ones included.
    ///
    /// # Errors
    /// Every [`TextError`] but [`TextError::Encode`].
    pub fn new(file: &TokenizerFile, spec: &TextSpec) -> Result<Self, TextError> {
        let inner = match spec.clean_up {
            CleanUp::Siglip { lowercase } => {
                let pieces = match file {
                    TokenizerFile::Json(json) => Pieces::from_json(json)?,
                    TokenizerFile::SentencePiece(bytes) => Pieces::from_sentence_piece(bytes)?,
                    TokenizerFile::WordPiece { .. } => {
                        return Err(TextError::invalid("vocab.txt", NO_SENTENCE_PIECE));
                    }
                    TokenizerFile::BytePair { .. } => {
                        return Err(TextError::invalid("vocab.json", NO_SENTENCE_PIECE));
                    }
                };
                Inner::Siglip(Box::new(siglip::tokenizer(pieces, lowercase, spec.padding.as_deref())?))
            }
            CleanUp::None | CleanUp::Lowercase => {
                let mut inner = match file {
                    TokenizerFile::Json(json) => {
                        tokenizers::Tokenizer::from_bytes(json).map_err(TextError::invalid_json)?
                    }
                    TokenizerFile::WordPiece { vocab, lowercase, strip_accents, split_chinese } => {
                        word_piece::build(vocab, *lowercase, *strip_accents, *split_chinese)?
                    }
                    TokenizerFile::BytePair { vocab, merges } => byte_pair::build(vocab, merges)?,
                    TokenizerFile::SentencePiece(_) => return Err(TextError::NoSettings),
                };
                if spec.clean_up == CleanUp::Lowercase {
                    lowercase_first(&mut inner)?;
                }
                Inner::Json(Box::new(inner))
            }
        };
        Self::bounded(inner, spec)
    }

    fn bounded(mut inner: Inner, spec: &TextSpec) -> Result<Self, TextError> {
        let max_length = spec.max_length;
        let special = match &inner {
            Inner::Json(inner) => inner.get_post_processor().map_or(0, |post| post.added_tokens(false)),
            Inner::Siglip(inner) => inner.get_post_processor().map_or(0, |post| post.added_tokens(false)),
        };
        if special >= max_length {
            return Err(TextError::NoRoom { max_length, special });
        }
        let truncation = Some(TruncationParams { max_length, ..Default::default() });
        match &mut inner {
            Inner::Json(inner) => inner.with_padding(None).with_truncation(truncation).map(|_| ()),
            Inner::Siglip(inner) => inner.with_truncation(truncation).map(|_| ()),
        }
        .map_err(TextError::invalid_json)?;
        let id_of = |token: &String| {
            let id = match &inner {
                Inner::Json(inner) => inner.token_to_id(token),
                Inner::Siglip(inner) => inner.token_to_id(token),
            };
            id.ok_or_else(|| TextError::NoPadding(token.clone()))
        };
        let padding = spec.padding.as_ref().map(id_of).transpose()?;
        Ok(Self { inner, max_length, padding })
    }

    /// Tokenises one text: 1 to `max_length` ids, special tokens included; exactly `max_length` where the
    /// model looks at its padding.
    ///
    /// The time is bounded however long the text is. Only a beginning of it is read (64 characters for each
    /// token of the context at first), and a longer one as long as the beginning does not overflow the
    /// context. Where it does, all ids that are kept come from before the cut: tokenisers work from left to
    /// right in words, and the cut is between two of them unless one alone is half of what is read.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Tokens, TextError> {
        let mut limit = self.max_length.saturating_mul(CHARS_PER_TOKEN).min(MAX_CHARS);
        loop {
            let beginning = match prefix(text, limit) {
                // The last look takes all it can: none comes after it to see the rest of a word.
                cut if cut.len() < text.len() && limit < MAX_CHARS => whole_words(cut),
                beginning => beginning,
            };
            let is_cut = beginning.len() < text.len();
            let encoding =
                self.encoding_of(beginning).map_err(|error| TextError::Encode(error.to_string()))?;
            let overflows = !encoding.get_overflowing().is_empty();
            // Long runs of spaces collapse to nothing: what comes after them must be seen.
            if is_cut && !overflows && limit < MAX_CHARS {
                limit = limit.saturating_mul(4).min(MAX_CHARS);
                continue;
            }
            let mut ids = encoding.get_ids().to_vec();
            let n_tokens = ids.len();
            if n_tokens == 0 {
                return Err(TextError::Encode("no token came out".into()));
            }
            if let Some(padding) = self.padding {
                ids.resize(self.max_length, padding);
            }
            return Ok(Tokens { ids, n_tokens, truncated: overflows || is_cut });
        }
    }

    fn encoding_of(&self, text: &str) -> tokenizers::Result<Encoding> {
        match &self.inner {
            Inner::Json(inner) => inner.encode_fast(text, true),
            Inner::Siglip(inner) => inner.encode_fast(siglip::begin(text), true),
        }
    }
}

/// Lower case before all other normalisation, unless a step of it is just that: as sentence-transformers
/// does where `do_lower_case` is set.
fn lowercase_first(inner: &mut tokenizers::Tokenizer) -> Result<(), TextError> {
    let steps = match inner.get_normalizer() {
        None => Vec::new(),
        Some(NormalizerWrapper::Sequence(steps)) => steps.as_ref().to_vec(),
        Some(step) => vec![step.clone()],
    };
    if steps.iter().any(|step| matches!(step, NormalizerWrapper::Lowercase(_))) {
        return Ok(());
    }
    let first = NormalizerWrapper::Lowercase(Lowercase);
    let all = Sequence::new(std::iter::once(first).chain(steps).collect());
    inner.with_normalizer(Some(all)).map_err(TextError::invalid_json)?;
    Ok(())
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

/// Without the last word of `cut`, which may go on behind it; with it where that takes more than half of `cut`, as in
/// texts that have no spaces.
fn whole_words(cut: &str) -> &str {
    match cut.rfind(char::is_whitespace) {
        Some(end) if end >= cut.len() / 2 => &cut[..end],
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &[u8] = include_bytes!("../../assets/demo-model/tokenizer.json");

    fn read(json: &[u8], spec: &TextSpec) -> Result<Tokenizer, TextError> {
        Tokenizer::new(&TokenizerFile::Json(json.into()), spec)
    }

    fn demo(max_length: usize) -> Tokenizer {
        read(DEMO, &TextSpec::new(max_length)).unwrap()
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
        assert_eq!(
            demo(16).encode("").unwrap(),
            Tokens { ids: vec![884, 885], n_tokens: 2, truncated: false }
        );
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
    fn the_cut_makes_no_other_token_of_a_word() {
        let json = br###"{"version": "1.0", "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "truncation": null, "padding": null,
            "model": {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": {"?": 0, "x": 1, "abcd": 2, "ab": 3, "##c": 4}}}"###;
        let tokenizer = read(json, &TextSpec::new(2)).unwrap();
        // The first 128 characters end behind `abc`.
        let found = tokenizer.encode(&format!("x{}abcd", " ".repeat(124))).unwrap();
        assert_eq!(found, Tokens { ids: vec![1, 2], n_tokens: 2, truncated: false });
        // A word without end is cut all the same.
        let found = demo(16).encode(&format!("a {}", "é".repeat(3_000_000))).unwrap();
        assert_eq!((found.n_tokens, found.truncated), (16, true));
    }

    #[test]
    fn lower_case_comes_first_where_it_is_asked_for() {
        let json = br#"{"version": "1.0", "added_tokens": [], "normalizer": {"type": "Prepend", "prepend": "A"},
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "Ared": 1, "ARed": 2}}}"#;
        let id = |clean_up| {
            let spec = TextSpec { clean_up, ..TextSpec::new(4) };
            read(json, &spec).unwrap().encode("Red").unwrap().ids
        };
        assert_eq!((id(CleanUp::None), id(CleanUp::Lowercase)), (vec![2], vec![1]));
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        let spec = TextSpec::new;
        assert!(matches!(read(b"{}", &spec(16)), Err(TextError::Invalid { .. })));
        let no_room = read(DEMO, &spec(2)).err();
        assert_eq!(no_room, Some(TextError::NoRoom { max_length: 2, special: 2 }));
        let file = TokenizerFile::SentencePiece(pieces::tests::SPIECE.into());
        assert_eq!(Tokenizer::new(&file, &spec(16)).err(), Some(TextError::NoSettings));
        let padded = TextSpec { padding: Some("<none>".into()), ..spec(16) };
        assert_eq!(read(DEMO, &padded).err(), Some(TextError::NoPadding("<none>".into())));
    }

    fn siglip(max_length: usize) -> Tokenizer {
        let spec = TextSpec {
            clean_up: CleanUp::Siglip { lowercase: true },
            padding: Some("</s>".into()),
            ..TextSpec::new(max_length)
        };
        Tokenizer::new(&TokenizerFile::SentencePiece(pieces::tests::SPIECE.into()), &spec).unwrap()
    }

    #[test]
    fn padding_fills_the_context_and_is_no_token() {
        let tokens = siglip(8).encode("A cat!").unwrap();
        assert_eq!((tokens.ids.len(), tokens.truncated), (8, false));
        assert!(tokens.n_tokens < 8 && tokens.ids[tokens.n_tokens - 1..].iter().all(|id| *id == 1));
        let tokens = siglip(4).encode("a b a b a b").unwrap();
        assert!(tokens.truncated);
        assert_eq!((tokens.n_tokens, tokens.ids.len(), tokens.ids[3]), (4, 4, 1));
    }

    #[test]
    fn text_behind_what_the_clean_up_removes_is_seen() {
        let expected = siglip(16).encode("a cat").unwrap();
        for gap in ["!", " ", "\n", "?\u{3000}"] {
            let found = siglip(16).encode(&format!("a {}cat", gap.repeat(20_000))).unwrap();
            assert_eq!(found, expected, "{gap:?}");
        }
        // Nothing is left of what is read.
        let empty = siglip(16).encode(&"!".repeat(3_000_000)).unwrap();
        assert_eq!((empty.n_tokens, empty.truncated), (1, true));
    }

    /// The ids of 248 strings, as the Python class of each tokenizer gives them.
    #[test]
    fn ids_are_those_of_the_python_classes() {
        #[derive(serde::Deserialize)]
        struct Row {
            text: String,
            ids: Vec<u32>,
        }
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let read = |file: &str| std::fs::read(fixtures.join(file)).unwrap();
        let siglip = CleanUp::Siglip { lowercase: true };
        for (name, clean_up, padding, file) in [
            ("siglip", siglip, "</s>", TokenizerFile::SentencePiece(pieces::tests::SPIECE.into())),
            ("siglip", siglip, "</s>", TokenizerFile::Json(pieces::tests::JSON.into())),
            (
                "siglip2",
                CleanUp::None,
                "<pad>",
                TokenizerFile::Json(read("tokenizers/siglip2/tokenizer.json")),
            ),
        ] {
            let spec = TextSpec { clean_up, padding: Some(padding.into()), ..TextSpec::new(64) };
            let tokenizer = Tokenizer::new(&file, &spec).unwrap();
            let rows = read(&format!("siglip/tokenizer/expected_ids.{name}.json"));
            let rows: Vec<Row> = serde_json::from_slice(&rows).unwrap();
            assert!(rows.len() >= 248, "{} strings", rows.len());
            for row in rows {
                assert_eq!(tokenizer.encode(&row.text).unwrap().ids, row.ids, "{name}: {:?}", row.text);
            }
        }
    }
}
