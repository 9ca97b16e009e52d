//! `sentence_bert_config.json`: how the first step, a `Transformer`, calls its encoder.
//!
//! Source: sentence-transformers 6.2.0, `base/modules/transformer.py`. Files of before 5.3 say the length and the letter
//! case alone.

use serde_json::Value;

use crate::model::{ModelError, ModelFiles, modules};

/// The names of the file, of which the first that is there counts.
const NAMES: [&str; 5] = ["bert", "roberta", "distilbert", "camembert", "xlm-roberta"];

/// What the step takes from an encoder of some kind where nobody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// The states of all tokens or patches.
    States,
    /// The vectors of two towers that share a space.
    Vectors,
    /// The states of BLIP-2's queries.
    Answers,
}

impl Takes {
    /// The method for texts and the one for pictures, the part of what they give, and its name in later steps.
    fn names(self) -> [&'static str; 4] {
        match self {
            Self::States => ["forward", "forward", "last_hidden_state", "token_embeddings"],
            Self::Vectors => {
                ["get_text_features", "get_image_features", "pooler_output", "sentence_embedding"]
            }
            Self::Answers => {
                ["get_text_features", "get_image_features", "last_hidden_state", "token_embeddings"]
            }
        }
    }
}

/// What the file says of a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Transformer {
    /// The most tokens, special ones included, where it says that.
    pub max_length: Option<usize>,
    /// Lower case before the tokenizer's own normalisation.
    pub lowercase: bool,
}

impl Transformer {
    /// Reads the file; empty for a checkpoint without it, or without steps.
    ///
    /// # Errors
    /// When it calls the encoder in a way that gives other vectors than those which are served.
    pub fn read(files: &ModelFiles, takes: Takes) -> Result<Self, ModelError> {
        if !modules::are_there(files) {
            return Ok(Self::default());
        }
        let names = NAMES.map(|name| format!("sentence_{name}_config.json"));
        let Some(file) = names.into_iter().find(|file| files.has(file)) else { return Ok(Self::default()) };
        let json: Value = files.json(&file)?;
        let unsupported = |key, found: String| ModelError::Unsupported {
            file: file.clone(),
            key,
            found,
            expected: "Sidelens calls this encoder as sentence-transformers does by itself; take a model that was \
                       trained so",
        };
        let [text, image, output, name] = takes.names();
        for (key, expected) in [
            ("transformer_task", "feature-extraction"),
            ("module_output_name", name),
            ("modality_config.text.method", text),
            ("modality_config.text.method_output_name", output),
            ("modality_config.image.method", image),
            ("modality_config.image.method_output_name", output),
            ("query_length", ""),
            ("document_length", ""),
            ("query_expansion", ""),
        ] {
            let found = key.split('.').fold(&json, |at, key| &at[key]);
            if !found.is_null() && found != expected {
                return Err(unsupported(key, found.to_string()));
            }
        }
        // By their names of now and of before.
        for key in ["processor_kwargs", "tokenizer_args", "config_kwargs", "config_args"] {
            let others =
                json[key].as_object().is_some_and(|all| all.keys().any(|key| key != "trust_remote_code"));
            if others {
                return Err(unsupported(key, json[key].to_string()));
            }
        }
        let mut max_length = &json["max_seq_length"];
        for (modality, options) in json["processing_kwargs"].as_object().into_iter().flatten() {
            for (option, value) in options.as_object().into_iter().flatten() {
                match (modality.as_str(), option.as_str()) {
                    ("text", "max_length") => max_length = value,
                    // One text of a batch is as good as another: towers that look at their padding have all of it anyway.
                    ("text", "padding") => {}
                    ("text", "truncation") if *value == true || *value == "longest_first" => {}
                    ("audio" | "video" | "chat_template", _) => {}
                    _ => {
                        return Err(unsupported(
                            "processing_kwargs",
                            format!("`{modality}.{option}` as {value}"),
                        ));
                    }
                }
            }
        }
        let max_length = match max_length {
            Value::Null => None,
            length => match length.as_u64().and_then(|length| usize::try_from(length).ok()) {
                Some(length) => Some(length),
                None => return Err(unsupported("max_seq_length", length.to_string())),
            },
        };
        Ok(Self { max_length, lowercase: json["do_lower_case"] == true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    fn read(json: &str, takes: Takes) -> Result<Transformer, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("sentence_bert_config.json", json), ("modules.json", "[]")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        Transformer::read(&files, takes).map_err(|error| error.to_string())
    }

    /// As sentence-transformers 6.2.0 writes it for BERT, CLIP, BLIP-2 and DINOv2, and others before.
    #[test]
    fn files_without_choices_are_served() {
        for (json, takes) in [
            (
                r#"{"transformer_task": "feature-extraction", "modality_config": {"text": {"method": "forward",
                    "method_output_name": "last_hidden_state"}}, "module_output_name": "token_embeddings"}"#,
                Takes::States,
            ),
            (
                r#"{"transformer_task": "feature-extraction", "modality_config": {"text": {"method":
                    "get_text_features", "method_output_name": "pooler_output"}, "image": {"method":
                    "get_image_features", "method_output_name": null}}, "module_output_name": "sentence_embedding"}"#,
                Takes::Vectors,
            ),
            (
                r#"{"transformer_task": "feature-extraction", "modality_config": {"text": {"method":
                    "get_text_features", "method_output_name": "last_hidden_state"}, "image": {"method":
                    "get_image_features", "method_output_name": "last_hidden_state"}},
                    "module_output_name": "token_embeddings"}"#,
                Takes::Answers,
            ),
            (
                r#"{"transformer_task": "feature-extraction", "modality_config": {"image": {"method": "forward",
                    "method_output_name": "last_hidden_state"}}, "module_output_name": "token_embeddings"}"#,
                Takes::States,
            ),
            (r#"{"max_seq_length": null, "do_lower_case": false}"#, Takes::States),
            (
                r#"{"model_args": {"trust_remote_code": true}, "config_args": {"trust_remote_code": true},
                    "tokenizer_args": {}, "query_length": null, "unpad_inputs": false}"#,
                Takes::States,
            ),
        ] {
            assert_eq!(read(json, takes), Ok(Transformer::default()), "{json}");
        }
    }

    #[test]
    fn the_length_of_a_call_comes_before_that_of_the_tokenizer() {
        let length = |json| read(json, Takes::States).unwrap().max_length;
        assert_eq!(length(r#"{"max_seq_length": 128}"#), Some(128));
        let both = r#"{"max_seq_length": 128, "processing_kwargs": {"text": {"max_length": 8, "padding": "max_length",
            "truncation": true}, "audio": {"padding": true}}}"#;
        assert_eq!(length(both), Some(8));
        assert!(read(r#"{"do_lower_case": true}"#, Takes::States).unwrap().lowercase);
    }

    #[test]
    fn other_calls_are_refused_by_their_key() {
        for (json, key) in [
            (r#"{"transformer_task": "fill-mask"}"#, "transformer_task"),
            (r#"{"module_output_name": "sentence_embedding"}"#, "module_output_name"),
            (
                r#"{"modality_config": {"text": {"method": "get_text_features"}}}"#,
                "modality_config.text.method",
            ),
            (
                r#"{"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", -2]}}}"#,
                "modality_config.text.method_output_name",
            ),
            (
                r#"{"modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}}}"#,
                "modality_config.image.method_output_name",
            ),
            (r#"{"query_length": 6}"#, "query_length"),
            (r#"{"document_length": 8}"#, "document_length"),
            (r#"{"query_expansion": {"strategy": "fixed", "length": 32}}"#, "query_expansion"),
            (r#"{"tokenizer_args": {"truncation_side": "left"}}"#, "tokenizer_args"),
            (r#"{"config_kwargs": {"num_hidden_layers": 1}}"#, "config_kwargs"),
            (r#"{"processing_kwargs": {"text": {"add_special_tokens": false}}}"#, "text.add_special_tokens"),
            (r#"{"processing_kwargs": {"image": {"do_resize": false}}}"#, "image.do_resize"),
            (r#"{"processing_kwargs": {"common": {"padding_side": "left"}}}"#, "common.padding_side"),
            (r#"{"max_seq_length": -1}"#, "max_seq_length"),
        ] {
            let message = read(json, Takes::States).unwrap_err();
            assert!(message.starts_with("sentence_bert_config.json") && message.contains(key), "{message}");
        }
    }
}
