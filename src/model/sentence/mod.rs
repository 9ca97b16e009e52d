//! Text models in sentence-transformers layout: an encoder of the BERT kind, then the steps of
//! `modules.json`.
//!
//! An encoder alone, without `modules.json`, is pooled by the mean, as sentence-transformers does.
//!
//! Source: sentence-transformers 6.2.0, `base/model.py` and `base/modules`; for the encoders see [`encoder`].

mod encoder;
mod steps;
#[cfg(feature = "torch")]
mod towers;
mod transformer;
mod whole;
mod wrapper;

use self::{encoder::Encoder, steps::Steps, transformer::Transformer, whole::Whole, wrapper::Around};
pub use self::{
    transformer::Takes,
    wrapper::{around_states, around_vectors},
};
use super::{ConfigJson, Family, ModelError, ModelFiles};
use crate::domain::{ModelSpec, Pooling, Poolings, Prompts};

/// The family.
pub struct SentenceTransformers;

impl Family for SentenceTransformers {
    fn name(&self) -> &'static str {
        "sentence-transformers"
    }

    fn matches(&self, _: &ModelFiles, config: &ConfigJson) -> bool {
        encoder::Kind::of(config.model_type()).is_some()
    }

    fn poolings(&self) -> &'static [Pooling] {
        &[Pooling::Mean, Pooling::Cls, Pooling::Pooler]
    }

    fn spec(&self, files: &ModelFiles, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let encoder = Encoder::read(files)?;
        let steps = Steps::read(files, pooling, encoder.blocks.hidden_size)?;
        if steps.pooling.way == Pooling::Pooler && !encoder.kind.has_pooler() {
            let known = &[Pooling::Mean, Pooling::Cls];
            return Err(ModelError::Pooling {
                family: encoder.kind.model_type(),
                found: Pooling::Pooler,
                known,
            });
        }
        let Whole { prompts, .. } = Whole::read(files)?;
        if steps.pooling.leaves_prompts_out && prompts != Prompts::default() {
            return Err(ModelError::Unsupported {
                file: steps.pooling.file,
                key: "include_prompt",
                found: "false".into(),
                expected: "Sidelens pools over the prompt too; take a model whose pooling includes it",
            });
        }
        let around = Around { prompts, transformer: Transformer::read(files, Takes::States)? };
        let text = around.texts_of(files, encoder.positions)?;
        if !encoder.kind.is_word_piece() || !files.has("vocab.txt") {
            // The SentencePiece models of these checkpoints number their pieces in another way.
            files.map("tokenizer.json")?;
        }
        Ok(ModelSpec {
            name: files.name(),
            family: self.name().into(),
            dimensions: steps.dimensions,
            pooling: Poolings { image: None, text: Some(steps.pooling.way) },
            image: None,
            text: Some(text),
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: super::Placement,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        let encoder = Encoder::read(files)?;
        let steps = Steps::read(files, spec.pooling.text, encoder.blocks.hidden_size)?;
        Ok(Box::new(towers::Text::load(files, &encoder, &steps, on)?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::ModelSource;
    use crate::domain::{CleanUp, TextSpec};

    /// A checkpoint of BERT with these files in addition.
    fn files(more: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        let base = [("config.json", r#"{"model_type": "bert"}"#), ("tokenizer.json", "{}")];
        for (name, text) in base.iter().chain(more) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    fn spec(more: &[(&str, &str)]) -> Result<ModelSpec, ModelError> {
        SentenceTransformers.spec(&files(more).1, None)
    }

    /// The files that make a model of sentence-transformers of it.
    const STEPS: [(&str, &str); 2] = [
        (
            "modules.json",
            r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#,
        ),
        ("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#),
    ];

    fn text(more: &[(&str, &str)]) -> TextSpec {
        spec(&[&STEPS, more].concat()).unwrap().text.unwrap()
    }

    #[test]
    fn an_encoder_alone_is_pooled_by_the_mean() {
        let alone = spec(&[]).unwrap();
        assert_eq!((alone.dimensions, alone.pooling.text), (768, Some(Pooling::Mean)));
        let text = alone.text.unwrap();
        assert_eq!((text.max_length, text.clean_up), (512, CleanUp::None));
        assert_eq!(text.prompts, Prompts::default());
        // As sentence-transformers, which looks at neither without modules.json.
        let step = ("sentence_bert_config.json", r#"{"max_seq_length": 8, "query_length": 4}"#);
        let prompts = (whole::FILE, r#"{"prompts": {"query": "q: "}, "truncate_dim": 7}"#);
        let same = spec(&[step, prompts]).unwrap();
        assert_eq!((same.dimensions, same.text.unwrap()), (768, text));
    }

    #[test]
    fn the_step_says_the_length_then_the_tokenizer_then_the_positions() {
        let step = ("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": true}"#);
        let tokenizer = ("tokenizer_config.json", r#"{"model_max_length": 300}"#);
        let endless = ("tokenizer_config.json", r#"{"model_max_length": 1000000000000000019884624838656}"#);
        assert_eq!(text(&[step, tokenizer]).max_length, 256);
        assert_eq!(text(&[step]).clean_up, CleanUp::Lowercase);
        assert_eq!(text(&[tokenizer]).max_length, 300);
        assert_eq!(text(&[endless]).max_length, 512);
        let none = ("sentence_bert_config.json", r#"{"max_seq_length": null}"#);
        assert_eq!(text(&[none, tokenizer]).max_length, 300);
        // RoBERTa's first position is the one behind its padding token's.
        let roberta = ("config.json", r#"{"model_type": "roberta", "max_position_embeddings": 514}"#);
        assert_eq!(text(&[roberta, endless]).max_length, 512);
        let long = ("sentence_roberta_config.json", r#"{"max_seq_length": 9999}"#);
        assert_eq!(text(&[roberta, long]).max_length, 512);
    }

    #[test]
    fn a_pooling_that_leaves_prompts_out_is_refused_where_there_are_any() {
        let [modules, _] = STEPS;
        let pooling = ("1_Pooling/config.json", r#"{"include_prompt": false}"#);
        assert!(spec(&[modules, pooling]).is_ok());
        let prompts = (whole::FILE, r#"{"prompts": {"query": "q: "}}"#);
        let message = spec(&[modules, pooling, prompts]).unwrap_err().to_string();
        assert!(message.contains("1_Pooling/config.json") && message.contains("include_prompt"), "{message}");
    }

    #[test]
    fn only_an_encoder_with_a_pooler_has_one() {
        let (_dir, bert) = files(&[]);
        let pooler = |files| SentenceTransformers.spec(files, Some(Pooling::Pooler));
        assert_eq!(pooler(&bert).unwrap().pooling.text, Some(Pooling::Pooler));
        let (_dir, distilbert) = files(&[("config.json", r#"{"model_type": "distilbert"}"#)]);
        let message = pooler(&distilbert).unwrap_err().to_string();
        assert_eq!(message, "`pooling` is `pooler`, but distilbert models have `mean`, `cls`");
    }

    #[test]
    fn a_tokenizer_is_needed() {
        let (dir, files) = files(&[("vocab.txt", "[UNK]")]);
        fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        assert!(SentenceTransformers.spec(&files, None).is_ok());
        fs::write(dir.path().join("config.json"), r#"{"model_type": "xlm-roberta"}"#).unwrap();
        let message = SentenceTransformers.spec(&files, None).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
}
