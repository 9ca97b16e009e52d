//! The encoders and their sizes.
//!
//! Source: transformers 5.23.0, `models/{bert,distilbert,roberta,xlm_roberta,camembert}`, whose defaults stand
//! for the keys that a checkpoint leaves out.

use serde::Deserialize;
use serde_json::json;

use crate::model::{
    ConfigJson, ModelError, ModelFiles,
    config::{TransformerConfig, unsupported},
};

/// DistilBERT's epsilon, which no file says.
const DISTILBERT_EPS: f64 = 1e-12;

/// What an encoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The original.
    Bert,
    /// Smaller: without token types and pooler, under other names.
    DistilBert,
    /// BERT whose positions are counted otherwise, and its kin XLM-RoBERTa and CamemBERT.
    Roberta,
}

impl Kind {
    /// By `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" | "camembert" => Some(Self::Roberta),
            _ => None,
        }
    }

    /// The `model_type`, for messages.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::Roberta => "roberta",
        }
    }

    /// Whether the architecture has a pooler on top of the first token.
    pub fn has_pooler(self) -> bool {
        self != Self::DistilBert
    }

    /// Whether its tokenizer is one that `vocab.txt` describes.
    pub fn is_word_piece(self) -> bool {
        self != Self::Roberta
    }

    /// What `config.json` leaves out.
    fn defaults(self) -> serde_json::Value {
        let (vocab_size, pad_token_id, layers) = match self {
            Self::Bert => (30522, 0, 12),
            Self::DistilBert => (30522, 0, 6),
            // XLM-RoBERTa's and CamemBERT's default is BERT's vocabulary; their files say their own.
            Self::Roberta => (50265, 1, 12),
        };
        json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": layers,
            "num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512, "type_vocab_size": 2, "vocab_size": vocab_size,
            "pad_token_id": pad_token_id, "position_embedding_type": "absolute", "is_decoder": false,
        })
    }
}

/// `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// What it is.
    pub kind: Kind,
    /// Its blocks.
    pub blocks: TransformerConfig,
    /// Rows of the token embedding.
    pub vocab_size: i64,
    /// Rows of the position embedding.
    pub n_positions: i64,
    /// Rows of the token type embedding, where there is one.
    pub n_types: Option<i64>,
    /// Fills short texts; RoBERTa counts positions after it.
    pub pad_token_id: u32,
    /// The most tokens that have a position.
    pub positions: usize,
}

impl Encoder {
    /// Reads `config.json` of a known encoder.
    ///
    /// # Errors
    /// When the file is missing, or says something that it cannot be served with.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Sizes {
            #[serde(flatten)]
            blocks: TransformerConfig,
            max_position_embeddings: i64,
            type_vocab_size: i64,
            vocab_size: i64,
            pad_token_id: u32,
            position_embedding_type: String,
            is_decoder: bool,
        }
        let json = ConfigJson::read(files)?;
        let Some(kind) = Kind::of(json.model_type()) else {
            let found = format!("`{}`", json.model_type());
            let expected = "text encoders are bert, distilbert, roberta, xlm-roberta and camembert";
            return Err(unsupported("model_type", found, expected));
        };
        let json = match kind {
            Kind::DistilBert => json.renamed(&[
                ("hidden_size", "dim"),
                ("intermediate_size", "hidden_dim"),
                ("num_hidden_layers", "n_layers"),
                ("num_attention_heads", "n_heads"),
                ("hidden_act", "activation"),
            ]),
            Kind::Bert | Kind::Roberta => json,
        };
        let mut sizes: Sizes = json.top(kind.defaults())?;
        sizes.blocks.check()?;
        if kind == Kind::DistilBert {
            sizes.blocks.layer_norm_eps = DISTILBERT_EPS;
        }
        if sizes.position_embedding_type != "absolute" {
            let expected = "Sidelens has `absolute`";
            return Err(unsupported("position_embedding_type", sizes.position_embedding_type, expected));
        }
        if sizes.is_decoder {
            let expected = "a decoder's tokens see only what stands before them; Sidelens has encoders";
            return Err(unsupported("is_decoder", "true".into(), expected));
        }
        let first = match kind {
            Kind::Roberta => i64::from(sizes.pad_token_id) + 1,
            Kind::Bert | Kind::DistilBert => 0,
        };
        let n_positions = sizes.max_position_embeddings;
        let Some(positions) = usize::try_from(n_positions - first).ok().filter(|&n| n > 0) else {
            let found = format!("{n_positions}");
            return Err(unsupported("max_position_embeddings", found, "a text has at least one position"));
        };
        Ok(Self {
            kind,
            blocks: sizes.blocks,
            vocab_size: sizes.vocab_size,
            n_positions,
            n_types: (kind != Kind::DistilBert).then_some(sizes.type_vocab_size),
            pad_token_id: sizes.pad_token_id,
            positions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelSource, model::config::Activation};

    fn read(json: &str) -> Result<Encoder, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        Encoder::read(&ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap())
    }

    #[test]
    fn sparse_files_mean_the_defaults_of_transformers() {
        let bert = read(r#"{"model_type": "bert", "hidden_act": null}"#).unwrap();
        assert_eq!((bert.vocab_size, bert.n_types, bert.positions), (30522, Some(2), 512));
        assert_eq!((bert.blocks.hidden_act, bert.blocks.layer_norm_eps), (Activation::Gelu, 1e-12));
        let roberta = read(r#"{"model_type": "roberta"}"#).unwrap();
        assert_eq!((roberta.vocab_size, roberta.pad_token_id, roberta.positions), (50265, 1, 510));
        let distilbert = read(r#"{"model_type": "distilbert"}"#).unwrap();
        assert_eq!((distilbert.blocks.num_hidden_layers, distilbert.n_types), (6, None));
    }

    #[test]
    fn distilbert_has_names_and_an_epsilon_of_its_own() {
        let config = read(
            r#"{"model_type": "distilbert", "dim": 60, "hidden_dim": 99, "n_heads": 5, "n_layers": 3,
                "activation": "relu", "layer_norm_eps": 0.5}"#,
        );
        let blocks = config.unwrap().blocks;
        assert_eq!((blocks.hidden_size, blocks.intermediate_size), (60, 99));
        assert_eq!((blocks.num_attention_heads, blocks.num_hidden_layers), (5, 3));
        assert_eq!((blocks.hidden_act, blocks.layer_norm_eps), (Activation::Relu, 1e-12));
    }

    #[test]
    fn impossible_values_are_named() {
        for (json, word) in [
            (r#"{"model_type": "bert", "position_embedding_type": "relative_key"}"#, "relative_key"),
            (r#"{"model_type": "bert", "num_attention_heads": 7}"#, "num_attention_heads"),
            (r#"{"model_type": "bert", "is_decoder": true}"#, "is_decoder"),
            (
                r#"{"model_type": "roberta", "max_position_embeddings": 4, "pad_token_id": 3}"#,
                "max_position_embeddings",
            ),
            (r#"{"model_type": "gpt2"}"#, "gpt2"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }
}
