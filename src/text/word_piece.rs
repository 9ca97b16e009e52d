//! BERT's tokenizer from its `vocab.txt`, for checkpoints that are older than `tokenizer.json`.
//!
//! Source: transformers 5.23.0, `models/bert/tokenization_bert.py`.

use tokenizers::{
    AddedToken, Tokenizer, models::wordpiece::WordPiece, normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer, processors::bert::BertProcessing,
};

use super::TextError;

/// The special tokens, all of which a literal in a text stands for too.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Builds the tokenizer: `[CLS]`, the text's pieces, `[SEP]`.
///
/// # Errors
/// [`TextError::Invalid`] when `vocab` is no UTF-8 or lacks a special token.
pub fn build(
    vocab: &[u8],
    lowercase: bool,
    strip_accents: Option<bool>,
    split_chinese: bool,
) -> Result<Tokenizer, TextError> {
    let model = WordPiece::read_bytes(vocab)
        .and_then(|ids| WordPiece::builder().vocab(ids).build())
        .map_err(invalid)?;
    let mut tokenizer = Tokenizer::new(model);
    let id = |token: &str| {
        let id = tokenizer.token_to_id(token).ok_or_else(|| invalid(format!("it lacks `{token}`")))?;
        Ok((token.to_owned(), id))
    };
    let processing = BertProcessing::new(id("[SEP]")?, id("[CLS]")?);
    let special: Vec<_> = SPECIAL.iter().map(|token| id(token)).collect::<Result<_, TextError>>()?;
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(true, split_chinese, strip_accents, lowercase)))
        .map_err(invalid)?
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(processing));
    tokenizer
        .add_special_tokens(special.into_iter().map(|(token, _)| AddedToken::from(token, true)))
        .map_err(invalid)?;
    Ok(tokenizer)
}

fn invalid(words: impl ToString) -> TextError {
    TextError::invalid("vocab.txt", words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{TextSpec, TokenizerFile};

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n##s\nmañana\nmanana\n猫\nRed\n";

    fn ids(lowercase: bool, strip_accents: Option<bool>, split_chinese: bool, text: &str) -> Vec<u32> {
        let vocab = VOCAB.as_bytes().to_vec();
        let file = TokenizerFile::WordPiece { vocab, lowercase, strip_accents, split_chinese };
        let tokenizer = crate::text::Tokenizer::new(&file, &TextSpec::new(16)).unwrap();
        tokenizer.encode(text).unwrap().ids
    }

    #[test]
    fn the_settings_of_the_tokenizer_count() {
        assert_eq!(ids(true, None, true, "Reds [MASK]"), [2, 5, 6, 4, 3]);
        assert_eq!(ids(false, None, true, "Reds"), [2, 10, 6, 3]);
        assert_eq!(ids(true, None, true, "MAÑANA"), [2, 8, 3]);
        assert_eq!(ids(true, Some(false), true, "MAÑANA"), [2, 7, 3]);
        assert_eq!(ids(false, Some(true), true, "mañana"), [2, 8, 3]);
        assert_eq!(ids(true, None, true, "猫猫"), [2, 9, 9, 3]);
        assert_eq!(ids(true, None, false, "猫猫"), [2, 1, 3]);
    }

    #[test]
    fn a_vocabulary_without_special_tokens_is_refused() {
        for (vocab, named) in [(&b"[UNK]\n[CLS]\nred"[..], "[SEP]"), (&[0xff, b'\n'], "UTF-8")] {
            let message = build(vocab, true, None, true).err().unwrap().to_string();
            assert!(message.contains("vocab.txt") && message.contains(named), "{message}");
        }
    }
}
