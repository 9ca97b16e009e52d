//! `tokenizer_config.json`: the settings of the Python tokenizer, and `special_tokens_map.json` beside it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ModelError, ModelFiles};

/// The first of the files.
pub const FILE: &str = "tokenizer_config.json";

/// What the files say; sparse, as each Python class has defaults of its own.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct TokenizerConfig {
    tokenizer_class: Option<String>,
    /// Whether texts are put in lower case.
    pub do_lower_case: Option<bool>,
    /// Whether accents go; none for what `do_lower_case` is.
    pub strip_accents: Option<bool>,
    /// Whether each Chinese character is a word.
    pub tokenize_chinese_chars: Option<bool>,
    /// Whether a text begins with a space.
    pub add_prefix_space: Option<bool>,
    /// Whether a special token that a text spells is no more than its letters.
    pub split_special_tokens: Option<bool>,
    /// The end of a text that is filled: `right` or `left`.
    pub padding_side: Option<String>,
    /// The end that long texts lose: `right` or `left`.
    pub truncation_side: Option<String>,
    /// The most tokens of a text; 1e30 where the tokenizer knows no limit.
    pub model_max_length: Option<f64>,
    #[serde(flatten)]
    named: NamedTokens,
    additional_special_tokens: Option<Tokens>,
    extra_special_tokens: Option<Tokens>,
    added_tokens_decoder: Option<Tokens>,
}

/// The tokens that have a role, which both files may say.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct NamedTokens {
    pad_token: Option<Token>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    cls_token: Option<Token>,
    sep_token: Option<Token>,
}

impl NamedTokens {
    /// These, and `others` for those which are not here.
    fn or(self, others: Self) -> Self {
        Self {
            pad_token: self.pad_token.or(others.pad_token),
            bos_token: self.bos_token.or(others.bos_token),
            eos_token: self.eos_token.or(others.eos_token),
            cls_token: self.cls_token.or(others.cls_token),
            sep_token: self.sep_token.or(others.sep_token),
        }
    }
}

/// A token in both of its styles.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Token {
    Plain(String),
    WithFlags {
        content: String,
        #[serde(flatten)]
        flags: Map<String, Value>,
    },
}

/// Tokens in all of their styles.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Tokens {
    List(Vec<Token>),
    Named(BTreeMap<String, Token>),
}

impl Token {
    fn content(&self) -> &str {
        match self {
            Self::Plain(content) | Self::WithFlags { content, .. } => content,
        }
    }
}

impl TokenizerConfig {
    /// Reads the files; empty for a checkpoint without them. As in transformers, the second comes first, but only where the
    /// first is of a version before 4.34 and so without `added_tokens_decoder`.
    ///
    /// # Errors
    /// When one is not as expected.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let config: Self = files.json_if_there(FILE)?.unwrap_or_default();
        if config.added_tokens_decoder.is_some() {
            return Ok(config);
        }
        let map: NamedTokens = files.json_if_there("special_tokens_map.json")?.unwrap_or_default();
        Ok(Self { named: map.or(config.named), ..config })
    }

    /// The Python class, whether or not it is the fast one of two.
    pub fn class(&self) -> Option<&str> {
        self.tokenizer_class.as_deref().map(|class| class.strip_suffix("Fast").unwrap_or(class))
    }

    /// The token that fills a text.
    pub fn pad_token(&self) -> Option<&str> {
        self.named.pad_token.as_ref().map(Token::content)
    }

    /// The token that begins a text.
    pub fn bos_token(&self) -> Option<&str> {
        self.named.bos_token.as_ref().map(Token::content)
    }

    /// The token that ends a text.
    pub fn eos_token(&self) -> Option<&str> {
        self.named.eos_token.as_ref().map(Token::content)
    }

    /// The token that begins a text in the classes of BERT's kind.
    pub fn cls_token(&self) -> Option<&str> {
        self.named.cls_token.as_ref().map(Token::content)
    }

    /// The token that ends a text there.
    pub fn sep_token(&self) -> Option<&str> {
        self.named.sep_token.as_ref().map(Token::content)
    }

    /// How this token is found in a text: `lstrip`, `normalized` and so on, where it is said.
    pub fn flags_of<'a>(&'a self, token: &str) -> impl Iterator<Item = (&'a str, bool)> + use<'a> {
        let tokens = match &self.added_tokens_decoder {
            Some(Tokens::Named(tokens)) => Some(tokens),
            _ => None,
        };
        let found = tokens.into_iter().flat_map(BTreeMap::values).find_map(|found| match found {
            Token::WithFlags { content, flags } if content == token => Some(flags),
            _ => None,
        });
        found.into_iter().flatten().filter_map(|(flag, value)| Some((flag.as_str(), value.as_bool()?)))
    }

    /// The most tokens of a text for a tower that has this many positions.
    pub fn max_length(&self, positions: usize) -> usize {
        self.model_max_length.map_or(positions, |max| (max as usize).min(positions))
    }

    /// Tokens beside those of the class.
    pub fn added_tokens(&self) -> impl Iterator<Item = &str> {
        let all = [&self.additional_special_tokens, &self.extra_special_tokens, &self.added_tokens_decoder];
        all.into_iter().flatten().flat_map(|tokens| match tokens {
            Tokens::List(tokens) => tokens.iter().map(Token::content).collect::<Vec<_>>(),
            Tokens::Named(tokens) => tokens.values().map(Token::content).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    fn read(of: &[(&str, &str)]) -> TokenizerConfig {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in of {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        TokenizerConfig::read(&ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap()).unwrap()
    }

    #[test]
    fn reads_both_files_and_both_styles() {
        let map = ("special_tokens_map.json", r#"{"pad_token": {"content": "<map>", "lstrip": true}}"#);
        let config = |json| ("tokenizer_config.json", json);
        assert_eq!(read(&[]), TokenizerConfig::default());
        assert_eq!(read(&[map]).pad_token(), Some("<map>"));
        assert_eq!(read(&[map, config(r#"{"pad_token": null}"#)]).pad_token(), Some("<map>"));
        assert_eq!(read(&[map, config(r#"{"pad_token": "<own>"}"#)]).pad_token(), Some("<map>"));
        let newer = r#"{"pad_token": "<own>", "added_tokens_decoder": {}}"#;
        assert_eq!(read(&[map, config(newer)]).pad_token(), Some("<own>"));
        assert_eq!(read(&[map, config(r#"{"added_tokens_decoder": {}}"#)]).pad_token(), None);
        let tokens = r#"{"additional_special_tokens": ["<a>", {"content": "<b>"}], "extra_special_tokens": {},
            "added_tokens_decoder": {"7": {"content": "<c>", "special": true}}}"#;
        assert_eq!(read(&[config(tokens)]).added_tokens().collect::<Vec<_>>(), ["<a>", "<b>", "<c>"]);
        assert_eq!(
            read(&[config(r#"{"tokenizer_class": "BertTokenizerFast"}"#)]).class(),
            Some("BertTokenizer")
        );
        let gemma = read(&[config(
            r#"{"tokenizer_class": "GemmaTokenizer", "model_max_length": 1000000000000000019884624838656}"#,
        )]);
        assert_eq!((gemma.class(), gemma.model_max_length), (Some("GemmaTokenizer"), Some(1e30)));
    }
}
