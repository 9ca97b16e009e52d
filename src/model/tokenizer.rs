//! The tokenizer of a checkpoint: which file it is, and what the Python class makes of it.
//!
//! A class of transformers takes the vocabulary from `tokenizer.json` and some steps from
//! `tokenizer_config.json`, or its own defaults, whatever the first says of them.
//!
//! Source: transformers 5.23.0, `models/auto/tokenization_auto.py`, `tokenization_utils_tokenizers.py`,
//! `models/bert/tokenization_bert.py` and `models/roberta/tokenization_roberta.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ConfigJson, Family, ModelError, ModelFiles,
    clip::Clip,
    config::CONFIG,
    tokenizer_config::{self, TokenizerConfig},
};
use crate::domain::{CleanUp, TextSpec, TokenizerFile};

/// What counts where it is there, for all but SigLIP's Python class.
const JSON: &str = "tokenizer.json";

/// SentencePiece models, by the names that checkpoints give them.
const SENTENCE_PIECE: [&str; 3] = ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model"];

/// The vocabulary of BERT's tokenizer.
const WORD_PIECE: &str = "vocab.txt";

/// The vocabulary of CLIP's tokenizer, with `merges.txt` beside it.
const BYTE_PAIR: &str = "vocab.json";

/// The special tokens of BERT's tokenizer.
const BERT_SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// What a Python class does, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// BERT's, under any of its names.
    Bert,
    /// RoBERTa's.
    Roberta,
    /// It splits words by rules which only Python code knows.
    Python,
    /// It leaves `tokenizer.json` as it is.
    Other,
}

/// A Python class.
struct Class {
    /// Without `Fast`; empty where nothing says it.
    name: String,
    /// The file that says it.
    file: &'static str,
}

impl Class {
    fn read(files: &ModelFiles, settings: &TokenizerConfig) -> Result<Self, ModelError> {
        let config = ConfigJson::read_if_there(files)?;
        let (name, file) = match (settings.class(), config.get("tokenizer_class").as_str()) {
            (Some(name), _) => (name, tokenizer_config::FILE),
            (None, Some(name)) => (name.strip_suffix("Fast").unwrap_or(name), CONFIG),
            (None, None) => match config.model_type() {
                "bert" | "distilbert" => ("BertTokenizer", CONFIG),
                "roberta" => ("RobertaTokenizer", CONFIG),
                _ => ("", CONFIG),
            },
        };
        Ok(Self { name: name.into(), file })
    }

    fn kind(&self) -> Kind {
        match self.name.as_str() {
            "BertTokenizer"
            | "ConvBertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "LxmertTokenizer"
            | "MobileBertTokenizer"
            | "SqueezeBertTokenizer" => Kind::Bert,
            "RobertaTokenizer" => Kind::Roberta,
            "BertJapaneseTokenizer" | "BertweetTokenizer" | "PhobertTokenizer" => Kind::Python,
            _ => Kind::Other,
        }
    }

    fn unsupported(&self, expected: &'static str) -> ModelError {
        let found = format!("`{}`", self.name);
        ModelError::Unsupported { file: self.file.into(), key: "tokenizer_class", found, expected }
    }
}

/// Finds the tokenizer that `family` needs for texts as in `spec`.
///
/// # Errors
/// When there is none that can be read, or it does more than Sidelens can follow.
pub fn find(files: &ModelFiles, family: &dyn Family, spec: &TextSpec) -> Result<TokenizerFile, ModelError> {
    let settings = TokenizerConfig::read(files)?;
    if let Some(side) = settings.truncation_side.as_deref().filter(|side| *side != "right") {
        return Err(cut_at_the_left(tokenizer_config::FILE, "truncation_side", side));
    }
    let has_json = files.has(JSON);
    // SigLIP's Python class reads its SentencePiece model whatever lies beside it.
    if matches!(spec.clean_up, CleanUp::Siglip { .. }) || !has_json {
        if !has_json && files.has(WORD_PIECE) {
            return word_piece(files, &settings);
        }
        // RoBERTa has files of these names too, to be read by other rules.
        if !has_json && files.has(BYTE_PAIR) && family.name() == Clip.name() {
            let [vocab, merges] = [BYTE_PAIR, "merges.txt"].map(|file| files.read(file));
            let (vocab, merges) = (vocab?.into_owned(), merges?.into_owned());
            return Ok(TokenizerFile::BytePair { vocab, merges });
        }
        if let Some(file) = SENTENCE_PIECE.into_iter().find(|file| files.has(file)) {
            return Ok(TokenizerFile::SentencePiece(files.read(file)?.into_owned()));
        }
    }
    json(files, &settings)
}

/// BERT's tokenizer as old checkpoints have it.
fn word_piece(files: &ModelFiles, settings: &TokenizerConfig) -> Result<TokenizerFile, ModelError> {
    let class = Class::read(files, settings)?;
    if class.kind() != Kind::Bert && !class.name.is_empty() {
        return Err(class.unsupported(
            "Sidelens reads a vocab.txt as BertTokenizer does; take a model with another tokenizer, or add the \
             tokenizer.json of this one if it has any",
        ));
    }
    check_added(settings, WORD_PIECE, &BERT_SPECIAL)?;
    Ok(TokenizerFile::WordPiece {
        vocab: files.read(WORD_PIECE)?.into_owned(),
        lowercase: settings.do_lower_case.unwrap_or(true),
        strip_accents: settings.strip_accents,
        split_chinese: settings.tokenize_chinese_chars.unwrap_or(true),
    })
}

/// `tokenizer.json`, with the steps that the Python class puts in the place of its own.
fn json(files: &ModelFiles, settings: &TokenizerConfig) -> Result<TokenizerFile, ModelError> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
        truncation: Option<Truncation>,
        #[serde(default)]
        normalizer: Value,
        #[serde(default)]
        pre_tokenizer: Value,
        #[serde(default)]
        model: Model,
    }
    #[derive(Deserialize)]
    struct Added {
        content: String,
    }
    #[derive(Deserialize)]
    struct Truncation {
        direction: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Model {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let malformed = |source| ModelError::Json { dir: files.place(), file: JSON.into(), source };
    let bytes = files.read(JSON)?.into_owned();
    let file: File = serde_json::from_slice(&bytes).map_err(malformed)?;
    let side = file.truncation.and_then(|truncation| truncation.direction);
    if let (None, Some("Left")) = (&settings.truncation_side, side.as_deref()) {
        return Err(cut_at_the_left(JSON, "truncation.direction", "Left"));
    }
    let added: Vec<&str> = file.added_tokens.iter().map(|token| token.content.as_str()).collect();
    check_added(settings, JSON, &added)?;
    let class = Class::read(files, settings)?;
    let (kind, steps) = match class.kind() {
        Kind::Bert => ("WordPiece", bert_steps(settings)),
        Kind::Roberta => ("BPE", roberta_steps(settings)),
        Kind::Python => {
            return Err(class.unsupported(
                "that class splits words by rules which no tokenizer.json has; take a model with another \
                 tokenizer",
            ));
        }
        Kind::Other => return Ok(TokenizerFile::Json(bytes)),
    };
    if let Some(found) = file.model.kind.filter(|found| found != kind) {
        return Err(ModelError::Unsupported {
            file: JSON.into(),
            key: "model",
            found: format!("`{found}`, where the {} of {} has `{kind}`", class.name, class.file),
            expected: "if tokenizer.json is right, `tokenizer_class` of tokenizer_config.json is \
                       PreTrainedTokenizerFast",
        });
    }
    if steps == [file.normalizer, file.pre_tokenizer] {
        return Ok(TokenizerFile::Json(bytes));
    }
    let mut json: Value = serde_json::from_slice(&bytes).map_err(malformed)?;
    [json["normalizer"], json["pre_tokenizer"]] = steps;
    Ok(TokenizerFile::Json(json.to_string().into_bytes()))
}

/// The normalizer and the pre-tokenizer of BERT's class.
fn bert_steps(settings: &TokenizerConfig) -> [Value; 2] {
    let normalizer = json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": settings.tokenize_chinese_chars.unwrap_or(true),
        "strip_accents": settings.strip_accents,
        "lowercase": settings.do_lower_case.unwrap_or(true),
    });
    [normalizer, json!({"type": "BertPreTokenizer"})]
}

/// The same of RoBERTa's.
fn roberta_steps(settings: &TokenizerConfig) -> [Value; 2] {
    let pre_tokenizer = json!({
        "type": "ByteLevel",
        "add_prefix_space": settings.add_prefix_space.unwrap_or(false),
        "trim_offsets": true,
        "use_regex": true,
    });
    [Value::Null, pre_tokenizer]
}

/// Refuses tokens that the Python class would add to those of `file`.
fn check_added(settings: &TokenizerConfig, file: &str, known: &[&str]) -> Result<(), ModelError> {
    match settings.added_tokens().find(|token| !known.contains(token)) {
        None => Ok(()),
        Some(token) => Err(ModelError::Unsupported {
            file: tokenizer_config::FILE.into(),
            key: "additional_special_tokens",
            found: format!("`{token}`, which {file} does not add"),
            expected: "save the tokenizer again with transformers, so that tokenizer.json has all tokens",
        }),
    }
}

fn cut_at_the_left(file: &str, key: &'static str, found: &str) -> ModelError {
    ModelError::Unsupported {
        file: file.into(),
        key,
        found: format!("`{found}`"),
        expected: "Sidelens cuts the end of long texts; set it to right to have that",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelSource, model::family_of};

    /// The tokenizer of a checkpoint with these files.
    fn of(contents: &[(&str, &str)], spec: &TextSpec) -> Result<TokenizerFile, String> {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in contents {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        find(&files, family_of(&files).unwrap(), spec).map_err(|error| error.to_string())
    }

    fn model(model_type: &str) -> String {
        format!(r#"{{"model_type": "{model_type}"}}"#)
    }

    #[test]
    fn siglip_alone_prefers_its_sentence_piece_model() {
        let config = model("siglip_text_model");
        let contents = [("config.json", &*config), ("spiece.model", "pieces"), (JSON, "{}")];
        let (pieces, json) =
            (TokenizerFile::SentencePiece(b"pieces".into()), TokenizerFile::Json(b"{}".into()));
        for (clean_up, expected) in [
            (CleanUp::Siglip { lowercase: true }, &pieces),
            (CleanUp::Lowercase, &json),
            (CleanUp::None, &json),
        ] {
            let found = of(&contents, &TextSpec { clean_up, ..TextSpec::new(64) });
            assert_eq!(found.as_ref(), Ok(expected), "{clean_up:?}");
        }
    }

    #[test]
    fn clip_alone_has_byte_pairs() {
        let (vocab, merges) = (("vocab.json", "ids"), ("merges.txt", "pairs"));
        let tokenizer = |model_type: &str, contents: &[(&str, &str)]| {
            of(&[&[(CONFIG, &*model(model_type))], contents].concat(), &TextSpec::new(64))
        };
        let pairs = TokenizerFile::BytePair { vocab: b"ids".into(), merges: b"pairs".into() };
        assert_eq!(tokenizer("clip_text_model", &[vocab, merges]), Ok(pairs));
        let json = TokenizerFile::Json(b"{}".into());
        assert_eq!(tokenizer("clip_text_model", &[vocab, merges, (JSON, "{}")]), Ok(json));
        for (model_type, contents, missing) in
            [("clip_text_model", &[vocab][..], "merges.txt"), ("roberta", &[vocab, merges], JSON)]
        {
            let message = tokenizer(model_type, contents).unwrap_err();
            assert!(message.contains(missing), "{message}");
        }
    }

    /// The tokenizer of a text model with `tokenizer_config.json` and one more file.
    fn text(model_type: &str, settings: &str, file: (&str, &str)) -> Result<TokenizerFile, String> {
        let config = model(model_type);
        of(&[(CONFIG, &*config), (tokenizer_config::FILE, settings), file], &TextSpec::new(64))
    }

    #[test]
    fn a_vocabulary_of_words_is_read_as_that_of_bert_alone() {
        for settings in ["{}", r#"{"tokenizer_class": "DistilBertTokenizerFast"}"#] {
            let found = text("bert", settings, (WORD_PIECE, "[UNK]")).unwrap();
            assert!(matches!(found, TokenizerFile::WordPiece { lowercase: true, .. }), "{found:?}");
        }
        assert!(text("blip-2", "{}", (WORD_PIECE, "[UNK]")).is_ok());
        for class in ["BertJapaneseTokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast"] {
            let settings = format!(r#"{{"tokenizer_class": "{class}"}}"#);
            let message = text("bert", &settings, (WORD_PIECE, "[UNK]")).unwrap_err();
            let class = class.trim_end_matches("Fast");
            assert!(message.contains(class) && message.contains(tokenizer_config::FILE), "{message}");
        }
        let japanese = r#"{"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}"#;
        let message = of(&[(CONFIG, japanese), (WORD_PIECE, "[UNK]")], &TextSpec::new(64)).unwrap_err();
        assert!(message.starts_with(CONFIG) && message.contains("BertJapaneseTokenizer"), "{message}");
        // Not even with a file that could be read.
        let message = of(&[(CONFIG, japanese), (JSON, "{}")], &TextSpec::new(64)).unwrap_err();
        assert!(message.contains("BertJapaneseTokenizer"), "{message}");
    }

    /// The steps of the tokenizer that comes out of `tokenizer.json`.
    fn steps(model_type: &str, settings: &str, json: &str) -> [Value; 2] {
        let Ok(TokenizerFile::Json(bytes)) = text(model_type, settings, (JSON, json)) else {
            panic!("{settings} and {json}");
        };
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["model"]["vocab"]["a"], 7, "all else stays");
        [json["normalizer"].clone(), json["pre_tokenizer"].clone()]
    }

    #[test]
    fn the_class_of_bert_has_its_own_settings() {
        let json = r#"{"normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": false}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece", "vocab": {"a": 7}}}"#;
        let check = |model_type, settings, lowercase: bool, accents: Value, chinese: bool| {
            let [normalizer, pre_tokenizer] = steps(model_type, settings, json);
            assert_eq!(normalizer["lowercase"], lowercase, "{settings}");
            assert_eq!(normalizer["strip_accents"], accents, "{settings}");
            assert_eq!(normalizer["handle_chinese_chars"], chinese, "{settings}");
            assert_eq!(pre_tokenizer["type"], "BertPreTokenizer");
        };
        check("bert", r#"{"tokenizer_class": "BertTokenizer"}"#, true, Value::Null, true);
        check("distilbert", "{}", true, Value::Null, true);
        check("roberta", r#"{"tokenizer_class": "BertTokenizerFast"}"#, true, Value::Null, true);
        check(
            "bert",
            r#"{"do_lower_case": true, "strip_accents": false, "tokenize_chinese_chars": false}"#,
            true,
            false.into(),
            false,
        );
        check("bert", r#"{"do_lower_case": false}"#, false, Value::Null, true);
        check("bert", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, false, Value::Null, true);
    }

    #[test]
    fn the_class_of_roberta_says_whether_a_space_comes_first() {
        let json = r#"{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true}, "model": {"type": "BPE", "vocab": {"a": 7}}}"#;
        for (settings, space) in [
            ("{}", false),
            (r#"{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": false}"#, false),
            (r#"{"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": true}"#, true),
            (r#"{"tokenizer_class": "TokenizersBackend", "add_prefix_space": false}"#, true),
        ] {
            assert_eq!(steps("roberta", settings, json)[1]["add_prefix_space"], space, "{settings}");
        }
        assert!(steps("xlm-roberta", "{}", json)[1]["add_prefix_space"] == true);
    }

    #[test]
    fn what_the_files_do_not_agree_on_is_refused() {
        let left = r#"{"truncation_side": "left"}"#;
        let bpe = (JSON, r#"{"model": {"type": "BPE"}}"#);
        let added = r#"{"additional_special_tokens": ["[PAD]", "the"]}"#;
        let pad = (JSON, r#"{"added_tokens": [{"id": 0, "content": "[PAD]"}]}"#);
        for (settings, file, words) in [
            (left, pad, [tokenizer_config::FILE, "truncation_side"]),
            ("{}", (JSON, r#"{"truncation": {"direction": "Left"}}"#), [JSON, "truncation"]),
            ("{}", bpe, ["`BPE`", "BertTokenizer of config.json"]),
            (added, pad, [JSON, "`the`"]),
            (added, (WORD_PIECE, "[UNK]"), [WORD_PIECE, "`the`"]),
        ] {
            let message = text("bert", settings, file).unwrap_err();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        let right = r#"{"truncation_side": "right"}"#;
        assert!(text("bert", right, (JSON, r#"{"truncation": {"direction": "Left"}}"#)).is_ok());
    }
}
