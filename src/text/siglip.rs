//! SigLIP's tokenizer as its Python class has it: a clean-up of the text, then SentencePiece.
//!
//! Source: transformers 5.23.0, `models/siglip/tokenization_siglip.py`, and SentencePiece 0.2,
//! `src/normalizer.cc`.

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizedString, Normalizer, PreTokenizerWrapper, TokenizerImpl,
    models::unigram::Unigram, processors::template::TemplateProcessing,
};

use super::{Charsmap, TextError, pieces::Pieces};

/// The tokenizer: special tokens are taken out of the text as they stand, the rest is cleaned up.
pub type SiglipTokenizer =
    TokenizerImpl<Unigram, SiglipNormalizer, PreTokenizerWrapper, TemplateProcessing, DecoderWrapper>;

/// Stands for a space in a piece.
const SPACE: char = '\u{2581}';
/// Ends every text. The class takes it from the checkpoint's settings, and no checkpoint has another.
const END: &str = "</s>";

/// Builds the tokenizer of a checkpoint that pads with the token `padding`.
///
/// # Errors
/// [`TextError::Invalid`] when the vocabulary lacks the end token.
pub fn tokenizer(
    pieces: Pieces,
    lowercase: bool,
    padding: Option<&str>,
) -> Result<SiglipTokenizer, TextError> {
    let invalid = |reason: String| TextError::invalid("the vocabulary", reason);
    let end = pieces.id_of(END).ok_or_else(|| invalid(format!("it has no piece `{END}`")))?;
    let unknown = pieces.vocabulary[pieces.unk_id].0.clone();
    let normalizer = SiglipNormalizer {
        lowercase,
        charsmap: pieces.charsmap.clone(),
        remove_extra_whitespaces: pieces.remove_extra_whitespaces,
        escape_whitespaces: pieces.escape_whitespaces,
    };
    let model = pieces.into_model().map_err(|error| invalid(error.to_string()))?;
    let ending = TemplateProcessing::builder()
        .try_single(format!("$A {END}"))
        .map(|builder| builder.special_tokens(vec![(END, end)]).build())
        .map_err(|error| invalid(error.to_string()))?
        .map_err(|error| invalid(error.to_string()))?;
    // Literally in a text they are themselves, and swallow the spaces around them.
    let special = [END, &unknown].into_iter().chain(padding);
    let special = special.map(|token| AddedToken::from(token, true).lstrip(true).rstrip(true));
    let mut tokenizer = SiglipTokenizer::new(model);
    tokenizer
        .with_normalizer(Some(normalizer))
        .and_then(|tokenizer| tokenizer.with_post_processor(Some(ending)).add_special_tokens(special))
        .map_err(|error| invalid(error.to_string()))?;
    Ok(tokenizer)
}

/// The text as the tokenizer wants it: with the space that SentencePiece puts before its first word.
pub fn begin(text: &str) -> String {
    format!("{SPACE}{}", text.replace(SPACE, " "))
}

/// What happens to each stretch of text between special tokens.
#[derive(Debug, Clone)]
pub struct SiglipNormalizer {
    lowercase: bool,
    charsmap: Charsmap,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Normalizer for SiglipNormalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let clean = self.sentence_piece(&clean_up(text.get(), self.lowercase));
        // Where each character came from is lost: only ids are asked for.
        *text = NormalizedString::from(clean);
        Ok(())
    }
}

impl SiglipNormalizer {
    /// SentencePiece's own normalisation in the middle of a text: the Python class puts an `<unk>` before
    /// every stretch and drops its tokens again, so none has the space that begins a text.
    fn sentence_piece(&self, mut rest: &str) -> String {
        let mut out = String::with_capacity(rest.len());
        let mut after_space = false;
        while let Some(first) = rest.chars().next() {
            let as_it_is = (first.len_utf8(), &rest[..first.len_utf8()]);
            let (length, mut part) = self.charsmap.longest_match(rest).unwrap_or(as_it_is);
            rest = &rest[length..];
            if self.remove_extra_whitespaces && after_space {
                part = part.trim_start_matches(' ');
            }
            let escaped = |c| if c == ' ' && self.escape_whitespaces { SPACE } else { c };
            out.extend(part.chars().map(escaped));
            after_space = part.ends_with(' ') || (after_space && part.is_empty());
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches([SPACE, ' ']).len());
        }
        out
    }
}

/// Lower case if asked for, no ASCII punctuation, single spaces, none at the ends (`canonicalize_text`).
fn clean_up(text: &str, lowercase: bool) -> String {
    // Both languages know that a sigma at the end of a word is another one.
    let text = if lowercase { text.to_lowercase() } else { text.into() };
    let kept: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    kept.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Python's `\s`: what Unicode calls white space, and four separators of old.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::pieces::tests::siglip;

    fn pieces_of(text: &str) -> Vec<String> {
        let tokenizer = tokenizer(siglip(), true, Some(END)).unwrap();
        let encoding = tokenizer.encode(begin(text), true).unwrap();
        // A special token shows the spaces that it swallowed.
        encoding.get_tokens().iter().map(|token| token.trim().to_owned()).collect()
    }

    #[test]
    fn cleans_up_as_the_python_class_does() {
        for (text, expected) in [
            ("  A photo,\tof a\u{a0}CAT!! ", "a photo of a cat"),
            ("don't e-mail $5.00", "dont email 500"),
            ("«Ça» — “là”", "«ça» — “là”"),
            ("ΣΟΦΟΣ ΣΑΣ.", "σοφος σας"),
            ("a\u{1c}b\u{85}c\u{200b}d", "a b c\u{200b}d"),
            (" .,! ", ""),
        ] {
            assert_eq!(clean_up(text, true), expected);
        }
        assert_eq!(clean_up("A. B", false), "A B");
    }

    // As transformers 5.23.0 gives them.
    #[test]
    fn special_tokens_in_a_text_are_themselves() {
        assert_eq!(pieces_of("a </s> b"), ["▁a", "</s>", "b", "</s>"]);
        assert_eq!(pieces_of("x <unk> y"), ["▁x", "<unk>", "y", "</s>"]);
        assert_eq!(pieces_of("</S>x"), ["▁", "s", "x", "</s>"]);
    }

    #[test]
    fn spaces_and_marks_do_as_in_sentence_piece() {
        for text in ["", "   ", "!?", "\u{2581}"] {
            assert_eq!(pieces_of(text), ["</s>"], "{text:?}");
        }
        for text in ["a b", " a  b ", "a \u{2581}b", "\u{2581}a b", "!a \u{3000} b."] {
            assert_eq!(pieces_of(text), ["▁a", "▁b", "</s>"], "{text:?}");
        }
        assert_eq!(pieces_of("ﬁ²"), ["▁fi", "2", "</s>"]);
        assert_eq!(pieces_of("a\u{301}\u{327} stacked"), ["▁", "á", "\u{327}", "▁stacked", "</s>"]);
    }

    #[test]
    fn a_vocabulary_without_an_end_is_refused() {
        let mut pieces = siglip();
        pieces.vocabulary[1].0 = "<end>".into();
        assert!(tokenizer(pieces, true, None).unwrap_err().to_string().contains("</s>"));
    }
}
