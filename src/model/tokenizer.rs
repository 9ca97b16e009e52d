//! The tokenizer of a checkpoint: which file it is, and what the Python class makes of it.
//!
//! A class of transformers takes the vocabulary from `tokenizer.json` and some steps from
//! `tokenizer_config.json`, or its own defaults, whatever the first says of them.
//!
//! Source: transformers 5.23.0, `models/auto/tokenization_auto.py`, `tokenization_utils_tokenizers.py`, and
//! `models/{bert,roberta,xlm_roberta,camembert,clip}/tokenization_*.py`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

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
    /// XLM-RoBERTa's, and CamemBERT's, which does the same.
    XlmRoberta,
    /// CLIP's.
    Clip,
    /// It does what no `tokenizer.json` of a model that is served says.
    Python,
    /// It leaves `tokenizer.json` as it is but for the flags of its tokens, or nothing is known of it.
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
                "xlm-roberta" => ("XLMRobertaTokenizer", CONFIG),
                "camembert" => ("CamembertTokenizer", CONFIG),
                "clip" => ("CLIPTokenizer", CONFIG),
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
            "XLMRobertaTokenizer" | "CamembertTokenizer" => Kind::XlmRoberta,
            "CLIPTokenizer" => Kind::Clip,
            // The last two put special tokens of their own around a text.
            "BertJapaneseTokenizer"
            | "BertweetTokenizer"
            | "PhobertTokenizer"
            | "FunnelTokenizer"
            | "MPNetTokenizer" => Kind::Python,
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
    if settings.split_special_tokens == Some(true) {
        return Err(ModelError::Unsupported {
            file: tokenizer_config::FILE.into(),
            key: "split_special_tokens",
            found: "true".into(),
            expected: "Sidelens takes a special token in a text for itself; take the key out to have that",
        });
    }
    let has_json = files.has(JSON);
    // SigLIP's Python class reads its SentencePiece model whatever lies beside it.
    if matches!(spec.clean_up, CleanUp::Siglip { .. }) || !has_json {
        if !has_json && files.has(WORD_PIECE) {
            return word_piece(files, &settings);
        }
        // RoBERTa has files of these names too, to be read by other rules.
        if !has_json && files.has(BYTE_PAIR) && family.name() == Clip.name() {
            check_frame(
                BYTE_PAIR,
                [
                    ("bos_token", settings.bos_token(), "<|startoftext|>"),
                    ("eos_token", settings.eos_token(), "<|endoftext|>"),
                ],
            )?;
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
    check_frame(
        WORD_PIECE,
        [("cls_token", settings.cls_token(), "[CLS]"), ("sep_token", settings.sep_token(), "[SEP]")],
    )?;
    Ok(TokenizerFile::WordPiece {
        vocab: files.read(WORD_PIECE)?.into_owned(),
        lowercase: settings.do_lower_case.unwrap_or(true),
        strip_accents: settings.strip_accents,
        split_chinese: settings.tokenize_chinese_chars.unwrap_or(true),
    })
}

/// `tokenizer.json`, with what the Python class puts in the place of its parts.
fn json(files: &ModelFiles, settings: &TokenizerConfig) -> Result<TokenizerFile, ModelError> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
        truncation: Option<Truncation>,
        #[serde(default)]
        model: Model,
    }
    #[derive(Deserialize)]
    struct Added {
        content: String,
        #[serde(flatten)]
        flags: Map<String, Value>,
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
    let rebuilt: Option<(_, Rebuild)> = match class.kind() {
        Kind::Bert => Some(("WordPiece", Parts::as_bert)),
        Kind::Roberta => Some(("BPE", Parts::as_roberta)),
        Kind::XlmRoberta => Some(("Unigram", Parts::as_xlm_roberta)),
        Kind::Clip => Some(("BPE", Parts::as_clip)),
        Kind::Python => {
            return Err(class.unsupported(
                "that class does what no tokenizer.json of this model says; take a model with another tokenizer",
            ));
        }
        Kind::Other => None,
    };
    let flagged_otherwise = |token: &Added| {
        let mut flags = settings.flags_of(&token.content);
        flags.any(|(flag, value)| token.flags.get(flag).and_then(Value::as_bool) != Some(value))
    };
    if rebuilt.is_none() && !file.added_tokens.iter().any(flagged_otherwise) {
        return Ok(TokenizerFile::Json(bytes));
    }
    if let (Some((kind, _)), Some(found)) = (rebuilt, file.model.kind)
        && found != kind
    {
        return Err(ModelError::Unsupported {
            file: JSON.into(),
            key: "model",
            found: format!("`{found}`, where the {} of {} has `{kind}`", class.name, class.file),
            expected: "if tokenizer.json is right, `tokenizer_class` of tokenizer_config.json is \
                       PreTrainedTokenizerFast",
        });
    }
    let mut parts: Parts = serde_json::from_slice(&bytes).map_err(malformed)?;
    if let Some((_, rebuild)) = rebuilt {
        rebuild(&mut parts, settings)?;
    }
    parts.flag(settings);
    Ok(TokenizerFile::Json(serde_json::to_vec(&parts).map_err(malformed)?))
}

/// Puts in what a class has of its own.
type Rebuild = fn(&mut Parts, &TokenizerConfig) -> Result<(), ModelError>;

/// `tokenizer.json` by what a Python class has of its own.
#[derive(Deserialize, Serialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    model: Map<String, Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Parts {
    fn as_bert(&mut self, settings: &TokenizerConfig) -> Result<(), ModelError> {
        self.normalizer = json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": settings.tokenize_chinese_chars.unwrap_or(true),
            "strip_accents": settings.strip_accents,
            "lowercase": settings.do_lower_case.unwrap_or(true),
        });
        self.pre_tokenizer = json!({"type": "BertPreTokenizer"});
        self.model.insert("max_input_chars_per_word".into(), 100.into());
        self.frame(settings.cls_token().unwrap_or("[CLS]"), settings.sep_token().unwrap_or("[SEP]"))
    }

    fn as_roberta(&mut self, settings: &TokenizerConfig) -> Result<(), ModelError> {
        self.normalizer = Value::Null;
        self.pre_tokenizer = byte_level(settings.add_prefix_space.unwrap_or(false));
        self.frame(settings.cls_token().unwrap_or("<s>"), settings.sep_token().unwrap_or("</s>"))
    }

    /// Of the normalizer it has the table of SentencePiece alone: what a newer `tokenizer.json` does to spaces there,
    /// its pre-tokenizer does.
    fn as_xlm_roberta(&mut self, settings: &TokenizerConfig) -> Result<(), ModelError> {
        let steps = match self.normalizer.take() {
            Value::Object(mut all) if all.get("type").is_some_and(|step| step == "Sequence") => {
                all.remove("normalizers").and_then(|steps| serde_json::from_value(steps).ok())
            }
            step => Some(vec![step]),
        };
        let mut steps = steps.unwrap_or_default().into_iter();
        self.normalizer = steps.find(|step: &Value| step["type"] == "Precompiled").unwrap_or_default();
        let prepend_scheme = if settings.add_prefix_space.unwrap_or(true) { "always" } else { "never" };
        self.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": prepend_scheme, "split": true},
        ]});
        self.frame(settings.bos_token().unwrap_or("<s>"), settings.eos_token().unwrap_or("</s>"))
    }

    fn as_clip(&mut self, settings: &TokenizerConfig) -> Result<(), ModelError> {
        self.normalizer = json!({"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]});
        let word =
            r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
        self.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": word}, "behavior": "Removed", "invert": true},
            byte_level(false),
        ]});
        let (start, end) = (settings.bos_token(), settings.eos_token());
        self.frame(start.unwrap_or("<|startoftext|>"), end.unwrap_or("<|endoftext|>"))
    }

    /// Puts a token before each text and one behind it.
    fn frame(&mut self, first: &str, last: &str) -> Result<(), ModelError> {
        let [first, last] = [first, last].map(|token| self.id_of(token).map(|id| json!([token, id])));
        // Of one text it makes what the other processors do.
        self.post_processor = json!({
            "type": "RobertaProcessing", "cls": first?, "sep": last?, "trim_offsets": true, "add_prefix_space": false,
        });
        Ok(())
    }

    /// Gives tokens the flags that `tokenizer_config.json` has for them.
    fn flag(&mut self, settings: &TokenizerConfig) {
        let added = self.others.get_mut("added_tokens").and_then(Value::as_array_mut);
        for token in added.into_iter().flatten().filter_map(Value::as_object_mut) {
            let content = token.get("content").and_then(Value::as_str).unwrap_or_default();
            for (flag, value) in settings.flags_of(content) {
                token.insert(flag.into(), value.into());
            }
        }
    }

    fn id_of(&self, token: &str) -> Result<u64, ModelError> {
        let in_vocabulary = match self.model.get("vocab") {
            Some(Value::Array(pieces)) => {
                pieces.iter().position(|piece| piece[0] == token).map(|position| position as u64)
            }
            ids => ids.and_then(|ids| ids[token].as_u64()),
        };
        let added = || {
            let mut added = self.others.get("added_tokens")?.as_array()?.iter();
            added.find(|added| added["content"] == token)?["id"].as_u64()
        };
        in_vocabulary.or_else(added).ok_or_else(|| ModelError::Unsupported {
            file: JSON.into(),
            key: "model.vocab",
            found: format!("without `{token}`"),
            expected: "its Python class puts that token at an end of each text; save the tokenizer again with transformers",
        })
    }
}

fn byte_level(add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true})
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

/// Refuses tokens at the ends of a text, by their keys, that are not those which a tokenizer out of `file` has.
fn check_frame(file: &str, frame: [(&'static str, Option<&str>, &str); 2]) -> Result<(), ModelError> {
    match frame.into_iter().find(|(_, found, own)| found.is_some_and(|found| found != *own)) {
        None => Ok(()),
        Some((key, found, own)) => Err(ModelError::Unsupported {
            file: tokenizer_config::FILE.into(),
            key,
            found: format!("`{}`, where a tokenizer out of {file} has `{own}`", found.unwrap_or_default()),
            expected: "save the tokenizer again with transformers, so that a tokenizer.json has it",
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
        let start = (tokenizer_config::FILE, r#"{"bos_token": "<s>"}"#);
        for (model_type, contents, missing) in [
            ("clip_text_model", &[vocab][..], "merges.txt"),
            ("clip_text_model", &[vocab, merges, start], "bos_token"),
            ("roberta", &[vocab, merges], JSON),
        ] {
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

    /// What comes out of `tokenizer.json`.
    fn rebuilt(model_type: &str, settings: &str, json: &str) -> Value {
        let found = text(model_type, settings, (JSON, json));
        let Ok(TokenizerFile::Json(bytes)) = found else { panic!("{settings} and {json}: {found:?}") };
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn the_class_of_bert_has_its_own_settings() {
        let json = r#"{"normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": false}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "version": "1.0", "model": {"type": "WordPiece", "max_input_chars_per_word": 9,
                "vocab": {"a": 7, "[CLS]": 8, "[SEP]": 9, "<s>": 5}}}"#;
        let check = |model_type, settings, lowercase: bool, accents: Value, chinese: bool| {
            let json = rebuilt(model_type, settings, json);
            assert_eq!(json["normalizer"]["lowercase"], lowercase, "{settings}");
            assert_eq!(json["normalizer"]["strip_accents"], accents, "{settings}");
            assert_eq!(json["normalizer"]["handle_chinese_chars"], chinese, "{settings}");
            assert_eq!(json["pre_tokenizer"]["type"], "BertPreTokenizer");
            assert_eq!(
                (&json["version"], &json["model"]["vocab"]["a"]),
                (&"1.0".into(), &7.into()),
                "all else stays"
            );
            json
        };
        let json = check("bert", r#"{"tokenizer_class": "BertTokenizer"}"#, true, Value::Null, true);
        assert_eq!(json["model"]["max_input_chars_per_word"], 100);
        assert_eq!(json["post_processor"]["cls"], json!(["[CLS]", 8]));
        check("distilbert", "{}", true, Value::Null, true);
        check("roberta", r#"{"tokenizer_class": "BertTokenizerFast"}"#, true, Value::Null, true);
        check(
            "bert",
            r#"{"do_lower_case": true, "strip_accents": false, "tokenize_chinese_chars": false}"#,
            true,
            false.into(),
            false,
        );
        let json = check("bert", r#"{"do_lower_case": false, "cls_token": "<s>"}"#, false, Value::Null, true);
        assert_eq!(json["post_processor"]["cls"], json!(["<s>", 5]));
        let json =
            check("bert", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, false, Value::Null, true);
        assert_eq!(
            (&json["model"]["max_input_chars_per_word"], &json["post_processor"]),
            (&9.into(), &Value::Null)
        );
    }

    #[test]
    fn the_class_of_roberta_says_whether_a_space_comes_first() {
        let json = r#"{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true}, "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 2}}}"#;
        for (settings, space) in [
            ("{}", false),
            (r#"{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": false}"#, false),
            (r#"{"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": true}"#, true),
            (r#"{"tokenizer_class": "TokenizersBackend", "add_prefix_space": false}"#, true),
        ] {
            let json = rebuilt("roberta", settings, json);
            assert_eq!(json["pre_tokenizer"]["add_prefix_space"], space, "{settings}");
        }
    }

    #[test]
    fn the_class_of_xlm_roberta_splits_at_white_space_itself() {
        let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
        let json = |normalizer: Value| {
            json!({"normalizer": normalizer, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}",
                "prepend_scheme": "always", "split": true}, "added_tokens": [{"id": 4, "content": "</s>"}],
                "model": {"type": "Unigram", "vocab": [["<pad>", 0.0], ["<s>", 0.0], ["a", -1.5]]}})
            .to_string()
        };
        let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
        let newer = json(json!({"type": "Sequence", "normalizers": [table, spaces]}));
        for (model_type, settings, prepended) in [
            ("xlm-roberta", "{}", "always"),
            ("camembert", "{}", "always"),
            ("bert", r#"{"tokenizer_class": "XLMRobertaTokenizerFast"}"#, "always"),
            (
                "xlm-roberta",
                r#"{"tokenizer_class": "CamembertTokenizer", "add_prefix_space": false}"#,
                "never",
            ),
        ] {
            let json = rebuilt(model_type, settings, &newer);
            assert_eq!(json["normalizer"], table, "{settings}");
            let steps = &json["pre_tokenizer"]["pretokenizers"];
            assert_eq!(
                (&steps[0]["type"], &steps[1]["type"]),
                (&"WhitespaceSplit".into(), &"Metaspace".into())
            );
            assert_eq!(steps[1]["prepend_scheme"], prepended, "{settings}");
            let frame = &json["post_processor"];
            assert_eq!((&frame["cls"], &frame["sep"]), (&json!(["<s>", 1]), &json!(["</s>", 4])));
        }
        assert_eq!(rebuilt("xlm-roberta", "{}", &json(table.clone()))["normalizer"], table);
        for other in
            [json!({"type": "NFKC"}), json!({"type": "Sequence", "normalizers": [spaces]}), Value::Null]
        {
            assert_eq!(rebuilt("xlm-roberta", "{}", &json(other))["normalizer"], Value::Null);
        }
        let bare = rebuilt("xlm-roberta", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, &newer);
        assert_eq!(bare["normalizer"]["type"], "Sequence");
    }

    #[test]
    fn the_settings_flag_tokens_whatever_the_class() {
        let json = r#"{"added_tokens": [{"id": 3, "content": "<mask>", "lstrip": false, "normalized": true}, {"id": 1,
            "content": "<pad>", "lstrip": false}], "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 2}}}"#;
        let settings = |class| {
            format!(
                r#"{{"tokenizer_class": "{class}", "added_tokens_decoder": {{"3": {{"content": "<mask>",
                "lstrip": true, "normalized": false, "__type": "AddedToken"}}}}}}"#
            )
        };
        for class in ["RobertaTokenizer", "PreTrainedTokenizerFast"] {
            let flagged = &rebuilt("roberta", &settings(class), json)["added_tokens"];
            assert_eq!(
                flagged[0],
                json!({"id": 3, "content": "<mask>", "lstrip": true, "normalized": false})
            );
            assert_eq!(flagged[1]["lstrip"], false);
        }
        let same = json.replace("false", "true").replace(r#""normalized": true"#, r#""normalized": false"#);
        let found = text("roberta", &settings("PreTrainedTokenizerFast"), (JSON, &same)).unwrap();
        assert_eq!(found, TokenizerFile::Json(same.into()), "as it is");
    }

    #[test]
    fn the_class_of_clip_knows_its_special_tokens_in_upper_case() {
        let json = r#"{"model": {"type": "BPE", "vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1}}}"#;
        for (model_type, settings) in
            [("clip", "{}"), ("clip_text_model", r#"{"tokenizer_class": "CLIPTokenizer"}"#)]
        {
            let word =
                &rebuilt(model_type, settings, json)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
            assert!(word.as_str().unwrap().contains("endoftext"), "{word}");
        }
    }

    #[test]
    fn what_the_files_do_not_agree_on_is_refused() {
        let left = r#"{"truncation_side": "left"}"#;
        let bpe = (JSON, r#"{"model": {"type": "BPE"}}"#);
        let funnel = r#"{"tokenizer_class": "FunnelTokenizer"}"#;
        let added = r#"{"additional_special_tokens": ["[PAD]", "the"]}"#;
        let pad = (JSON, r#"{"added_tokens": [{"id": 0, "content": "[PAD]"}]}"#);
        for (settings, file, words) in [
            (left, pad, [tokenizer_config::FILE, "truncation_side"]),
            (r#"{"split_special_tokens": true}"#, pad, [tokenizer_config::FILE, "split_special_tokens"]),
            ("{}", (JSON, r#"{"truncation": {"direction": "Left"}}"#), [JSON, "truncation"]),
            ("{}", bpe, ["`BPE`", "BertTokenizer of config.json"]),
            ("{}", pad, [JSON, "`[CLS]`"]),
            (funnel, pad, [tokenizer_config::FILE, "FunnelTokenizer"]),
            (added, pad, [JSON, "`the`"]),
            (added, (WORD_PIECE, "[UNK]"), [WORD_PIECE, "`the`"]),
            (r#"{"cls_token": "<s>"}"#, (WORD_PIECE, "[UNK]"), ["cls_token", "`<s>`"]),
        ] {
            let message = text("bert", settings, file).unwrap_err();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        let right = r#"{"truncation_side": "right"}"#;
        let left = r#"{"truncation": {"direction": "Left"}, "model": {"vocab": {"[CLS]": 0, "[SEP]": 1}}}"#;
        assert!(text("bert", right, (JSON, left)).is_ok());
    }
}
