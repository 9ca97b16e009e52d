//! CLIP's tokenizer from its `vocab.json` and `merges.txt`, for checkpoints that are older than
//! `tokenizer.json`.
//!
//! Source: transformers 5.23.0, `models/clip/tokenization_clip.py`.

use std::{collections::BTreeMap, str};

use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{Lowercase, NFC, Replace, Sequence, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as Steps,
        split::{Split, SplitPattern},
    },
    processors::roberta::RobertaProcessing,
};

use super::TextError;

/// Stands before every text.
const START: &str = "<|startoftext|>";
/// Stands behind every text, and for what is unknown.
const END: &str = "<|endoftext|>";
/// What is one word; everything else, which is spaces, goes.
const WORD: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Builds the tokenizer: the start, the text's pieces in lower case, the end.
///
/// # Errors
/// [`TextError::Invalid`] when `vocab` is no JSON of ids or lacks a special token, or when `merges` is not
/// two pieces of it a line.
pub fn build(vocab: &[u8], merges: &[u8]) -> Result<Tokenizer, TextError> {
    let ids: BTreeMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|error| TextError::invalid("vocab.json", error))?;
    for token in [START, END] {
        if !ids.contains_key(token) {
            return Err(TextError::invalid("vocab.json", format!("it lacks `{token}`")));
        }
    }
    let processing = RobertaProcessing::new((END.into(), ids[END]), (START.into(), ids[START]))
        .trim_offsets(false)
        .add_prefix_space(false);
    let model = BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<Vocab>(), pairs(merges)?)
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into())
        .build()
        .map_err(|error| TextError::invalid("merges.txt", error))?;
    with_rules(model, processing).map_err(|error| TextError::invalid("vocab.json", error))
}

/// What is the same for every vocabulary.
fn with_rules(model: BPE, processing: RobertaProcessing) -> tokenizers::Result<Tokenizer> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORD.into()), SplitDelimiterBehavior::Removed, true)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?
        .with_pre_tokenizer(Some(Steps::new(vec![
            words.into(),
            ByteLevel::default().add_prefix_space(false).into(),
        ])))
        .with_post_processor(Some(processing));
    // A literal one in a text stands for it. The flags are those of every `tokenizer_config.json` of OpenAI's: only the
    // start is found in upper case too.
    let special = [START, END].map(|token| AddedToken::from(token, true).normalized(token == START));
    tokenizer.add_special_tokens(special)?;
    Ok(tokenizer)
}

/// The two pieces of each line, most frequent first.
fn pairs(merges: &[u8]) -> Result<Merges, TextError> {
    let text = str::from_utf8(merges).map_err(|error| TextError::invalid("merges.txt", error))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    lines
        .map(|line| match line.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(TextError::invalid(
                "merges.txt",
                format!("`{line}` is not two pieces with a space between"),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde::Deserialize;

    use super::*;
    use crate::domain::{TextSpec, TokenizerFile};

    /// The two files that say what the real `tokenizer.json` says.
    fn real() -> TokenizerFile {
        #[derive(Deserialize)]
        struct File {
            model: Model,
        }
        #[derive(Deserialize)]
        struct Model {
            vocab: serde_json::Value,
            merges: Vec<[String; 2]>,
        }
        let File { model } = serde_json::from_slice(&fixture("tokenizer.json")).unwrap();
        let lines = model.merges.iter().map(|pair| pair.join(" ") + "\n");
        TokenizerFile::BytePair {
            vocab: model.vocab.to_string().into_bytes(),
            merges: format!("#version: 0.2\n{}", lines.collect::<String>()).into_bytes(),
        }
    }

    fn fixture(file: &str) -> Vec<u8> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/clip/tokenizer");
        fs::read(dir.join(file)).unwrap()
    }

    /// The ids of 248 strings, as transformers gives them.
    #[test]
    fn ids_are_those_of_the_python_class() {
        #[derive(Deserialize)]
        struct Row {
            text: String,
            ids: Vec<u32>,
        }
        let tokenizer = crate::text::Tokenizer::new(&real(), &TextSpec::new(77)).unwrap();
        let rows: Vec<Row> = serde_json::from_slice(&fixture("expected_ids.json")).unwrap();
        assert!(rows.len() >= 248, "{} strings", rows.len());
        for row in rows {
            assert_eq!(tokenizer.encode(&row.text).unwrap().ids, row.ids, "{:?}", row.text);
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let vocab = br#"{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b</w>": 3, "ab</w>": 4}"#;
        assert!(build(vocab, b"#version: 0.2\r\na b</w>\r\n").is_ok());
        for (vocab, merges, words) in [
            (&b"[]"[..], &b""[..], ["vocab.json", "map"]),
            (br#"{"<|startoftext|>": 0}"#, b"", ["vocab.json", END]),
            (vocab, b"ab</w>", ["merges.txt", "`ab</w>`"]),
            (vocab, b"a c</w>", ["merges.txt", "`c</w>`"]),
            (vocab, b"\xff b</w>", ["merges.txt", "utf-8"]),
        ] {
            let message = build(vocab, merges).err().unwrap().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
