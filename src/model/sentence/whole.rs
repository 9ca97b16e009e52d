//! `config_sentence_transformers.json`: what counts for the whole model.
//!
//! Source: sentence-transformers 6.2.0, `base/model.py` and `sentence_transformer/model.py`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    domain::Prompts,
    model::{ModelError, ModelFiles, modules},
};

/// The file.
pub const FILE: &str = "config_sentence_transformers.json";
/// The prompts for a document by their names: the first that is there counts.
const DOCUMENT: [&str; 3] = ["document", "passage", "corpus"];

/// What the file says.
#[derive(Debug, Default, PartialEq)]
pub struct Whole {
    /// Put before a text.
    pub prompts: Prompts,
    /// The components that are kept of a vector (Matryoshka), 1 or more; all of them where it is none.
    pub truncate_dim: Option<i64>,
}

impl Whole {
    /// Reads the file of the checkpoint that `files` are part of; empty without it, or without steps. Where it
    /// has a default prompt but none for queries, queries go without, as in sentence-transformers; a document
    /// takes a `passage` prompt too, which must be asked for by name there.
    ///
    /// # Errors
    /// When it is not as expected.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct File {
            prompts: BTreeMap<String, Option<String>>,
            default_prompt_name: Option<String>,
            truncate_dim: Option<i64>,
        }
        if !modules::are_there(files) {
            return Ok(Self::default());
        }
        let File { prompts, default_prompt_name, truncate_dim } =
            files.top().json_if_there(FILE)?.unwrap_or_default();
        let unsupported =
            |key, found, expected| ModelError::Unsupported { file: FILE.into(), key, found, expected };
        if let Some(n) = truncate_dim.filter(|n| *n < 1) {
            return Err(unsupported("truncate_dim", n.to_string(), "vectors have at least one component"));
        }
        let prompt = |name: &str| prompts.get(name).cloned().flatten();
        let default = match default_prompt_name {
            None => None,
            // These two are always there for sentence-transformers.
            Some(name) if prompts.contains_key(&name) || ["query", "document"].contains(&name.as_str()) => {
                prompt(&name)
            }
            Some(name) => {
                let expected = "it must be one of `prompts`";
                return Err(unsupported("default_prompt_name", format!("`{name}`"), expected));
            }
        };
        let prompts = Prompts {
            query: prompt("query").unwrap_or_default(),
            document: DOCUMENT.into_iter().find_map(prompt).unwrap_or_default(),
            default: default.unwrap_or_default(),
        };
        Ok(Self { prompts, truncate_dim })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    fn read(json: &str) -> Result<Whole, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [(FILE, json), ("modules.json", "[]")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Whole::read(&ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap())
    }

    #[test]
    fn prompts_are_those_of_the_model() {
        let of = |json: &str| read(json).unwrap().prompts;
        let found =
            of(r#"{"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": "passage"}"#);
        let expected = Prompts { query: "q: ".into(), document: "p: ".into(), default: "p: ".into() };
        assert_eq!(found, expected);
        let found = of(r#"{"prompts": {"query": null, "document": "d: ", "passage": "p: "}}"#);
        assert_eq!(found, Prompts { document: "d: ".into(), ..Prompts::default() });
        assert_eq!(of(r#"{"__version__": {}, "default_prompt_name": null}"#), Prompts::default());
    }

    #[test]
    fn what_is_not_served_is_named() {
        for (json, words) in [
            (
                r#"{"prompts": {}, "default_prompt_name": "clustering"}"#,
                ["default_prompt_name", "`clustering`"],
            ),
            (r#"{"truncate_dim": 0}"#, ["truncate_dim", "0"]),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(FILE) && words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
