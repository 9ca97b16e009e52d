//! `tokenizer_config.json`: the settings of the Python tokenizer, and `special_tokens_map.json` beside it.

use serde::Deserialize;

use super::{ModelError, ModelFiles};

/// What the files say; sparse, as each Python class has defaults of its own.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct TokenizerConfig {
    /// The Python class.
    #[serde(rename = "tokenizer_class")]
    pub class: Option<String>,
    /// Whether texts are put in lower case.
    pub do_lower_case: Option<bool>,
    /// The most tokens of a text; 1e30 where the tokenizer knows no limit.
    pub model_max_length: Option<f64>,
    pad_token: Option<Token>,
}

/// A token in both of its styles.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Token {
    Plain(String),
    WithFlags { content: String },
}

impl TokenizerConfig {
    /// Reads the files; empty for a checkpoint without them.
    ///
    /// # Errors
    /// When one is not as expected.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct SpecialTokens {
            pad_token: Option<Token>,
        }
        let mut config: Self = files.json_if_there("tokenizer_config.json")?.unwrap_or_default();
        if config.pad_token.is_none() {
            let map: Option<SpecialTokens> = files.json_if_there("special_tokens_map.json")?;
            config.pad_token = map.and_then(|map| map.pad_token);
        }
        Ok(config)
    }

    /// The token that fills a text.
    pub fn pad_token(&self) -> Option<&str> {
        self.pad_token.as_ref().map(|token| match token {
            Token::Plain(content) | Token::WithFlags { content } => content.as_str(),
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
        assert_eq!(read(&[map, config(r#"{"pad_token": "<own>"}"#)]).pad_token(), Some("<own>"));
        let gemma = read(&[config(
            r#"{"tokenizer_class": "GemmaTokenizer", "model_max_length": 1000000000000000019884624838656}"#,
        )]);
        assert_eq!((gemma.class.as_deref(), gemma.model_max_length), (Some("GemmaTokenizer"), Some(1e30)));
    }
}
