//! What sentence-transformers puts around an encoder of another family: CLIP, SigLIP, BLIP-2, DINOv2.
//!
//! Source: sentence-transformers 6.2.0, `base/model.py` and `base/modules/transformer.py`.

use super::{
    steps::PoolingStep,
    transformer::{Takes, Transformer},
    whole::{self, Whole},
};
use crate::{
    domain::{CleanUp, Pooling, Prompts, TextSpec},
    model::{
        ModelError, ModelFiles,
        modules::{self, ENCODERS, Module},
        tokenizer_config::TokenizerConfig,
    },
};

/// What the wrapper of an encoder of texts says of them; nothing without a wrapper.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Around {
    pub(super) prompts: Prompts,
    pub(super) transformer: Transformer,
}

impl Around {
    /// The tokenizer's settings, in which the wrapper's length is the one that counts.
    ///
    /// # Errors
    /// When a file is not as expected.
    pub fn tokenizer(&self, files: &ModelFiles) -> Result<TokenizerConfig, ModelError> {
        let mut config = TokenizerConfig::read(files)?;
        if let Some(max) = self.transformer.max_length {
            config.model_max_length = Some(max as f64);
        }
        Ok(config)
    }

    /// How texts are prepared for an encoder with this many positions that asks for nothing else.
    ///
    /// # Errors
    /// When a file is not as expected.
    pub fn texts_of(self, files: &ModelFiles, positions: usize) -> Result<TextSpec, ModelError> {
        let max_length = self.tokenizer(files)?.max_length(positions);
        Ok(self.texts(TextSpec::new(max_length)))
    }

    /// How texts are prepared that the encoder alone has prepared as `spec` says.
    pub fn texts(self, spec: TextSpec) -> TextSpec {
        let clean_up = match spec.clean_up {
            CleanUp::None if self.transformer.lowercase => CleanUp::Lowercase,
            CleanUp::Siglip { lowercase } => {
                CleanUp::Siglip { lowercase: lowercase || self.transformer.lowercase }
            }
            clean_up => clean_up,
        };
        TextSpec { clean_up, prompts: self.prompts, ..spec }
    }
}

/// Around an encoder that gives vectors, which the wrapper `takes`.
///
/// # Errors
/// When a file is not as expected, or a step changes the vectors.
pub fn around_vectors(files: &ModelFiles, takes: Takes) -> Result<Around, ModelError> {
    if let Some(modules) = modules::read(&files.top())? {
        check(&modules, modules.get(1..).unwrap_or_default())?;
    }
    Ok(Around { prompts: prompts(files)?, transformer: Transformer::read(files, takes)? })
}

/// Around an encoder that gives token states: how they become a vector. That is `pooling`, the setting, where
/// there is one; `None` without a wrapper.
///
/// # Errors
/// When a file is not as expected, or the steps behind the encoder do something else.
pub fn around_states(files: &ModelFiles, pooling: Option<Pooling>) -> Result<Option<Pooling>, ModelError> {
    let top = files.top();
    let Some(modules) = modules::read(&top)? else { return Ok(pooling) };
    let (step, others) = match modules.get(1..).unwrap_or_default() {
        [step, others @ ..] if step.class() == "Pooling" => (Some(step), others),
        others => (None, others),
    };
    check(&modules, others)?;
    prompts(files)?;
    Transformer::read(files, Takes::States)?;
    match step {
        Some(step) => Ok(Some(PoolingStep::read(&top, step, pooling)?.way)),
        None if pooling.is_some() => Ok(pooling),
        None => {
            let expected = "without a Pooling it does not say which state is the vector; set `pooling`";
            Err(modules::unserved("Transformer", &modules, expected))
        }
    }
}

/// Refuses what the first step is, or any of these `others` behind it does, to the vectors. They become unit
/// length anyway.
fn check(modules: &[Module], others: &[Module]) -> Result<(), ModelError> {
    let first = modules.iter().take(1).filter(|first| !ENCODERS.contains(&first.class()));
    let others = others.iter().filter(|other| !["Normalize", "Dropout"].contains(&other.class()));
    let expected = "around this family's encoder Sidelens has Normalize and Dropout, and Pooling for a dinov2; \
                    export the whole as TorchScript with a sidelens.toml";
    match first.chain(others).next() {
        Some(module) => Err(modules::unserved(module.class(), modules, expected)),
        None => Ok(()),
    }
}

fn prompts(files: &ModelFiles) -> Result<Prompts, ModelError> {
    let Whole { prompts, truncate_dim } = Whole::read(files)?;
    match truncate_dim {
        None => Ok(prompts),
        Some(n) => Err(ModelError::Unsupported {
            file: whole::FILE.into(),
            key: "truncate_dim",
            found: n.to_string(),
            expected: "Sidelens cuts the vectors of text models only; take the key out for whole vectors",
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::ModelSource;

    fn files(classes: &[&str], more: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        let steps: Vec<_> = classes
            .iter()
            .enumerate()
            .map(|(n, class)| {
                serde_json::json!({"path": n.to_string(), "type": format!("sentence_transformers.models.{class}")})
            })
            .collect();
        let modules = ("modules.json", &*serde_json::to_string(&steps).unwrap());
        for (name, text) in [&[modules], more].concat() {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    fn vectors(classes: &[&str], more: &[(&str, &str)]) -> Result<Around, String> {
        around_vectors(&files(classes, more).1, Takes::Vectors).map_err(|error| error.to_string())
    }

    fn states(
        classes: &[&str],
        more: &[(&str, &str)],
        pooling: Option<Pooling>,
    ) -> Result<Option<Pooling>, String> {
        around_states(&files(classes, more).1, pooling).map_err(|error| error.to_string())
    }

    #[test]
    fn steps_that_change_vectors_are_refused() {
        for classes in
            [&["CLIPModel"][..], &["CLIPModel", "Normalize"], &["Transformer", "Dropout", "Normalize"]]
        {
            assert_eq!(vectors(classes, &[]), Ok(Around::default()), "{classes:?}");
        }
        for (classes, named) in [
            (&["Transformer", "Dense"][..], "`Dense`"),
            (&["Transformer", "Normalize", "LayerNorm"], "`LayerNorm`"),
            (&["Transformer", "Pooling"], "`Pooling`"),
            (&["Router"], "`Router`"),
        ] {
            let message = vectors(classes, &[]).unwrap_err();
            let all = classes.join(", ");
            assert!([named, &all, "modules.json"].iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn prompts_count_and_shorter_vectors_are_refused() {
        let whole = |json| vectors(&["Transformer"], &[(whole::FILE, json)]);
        let around = whole(r#"{"prompts": {"p": "a photo of "}, "default_prompt_name": "p"}"#).unwrap();
        assert_eq!(around.prompts.default, "a photo of ");
        let message = whole(r#"{"truncate_dim": 12}"#).unwrap_err();
        assert!(message.contains("truncate_dim") && message.contains(whole::FILE), "{message}");
    }

    #[test]
    fn the_first_step_says_how_texts_are_prepared() {
        let (step, tokenizer) = ("0/sentence_bert_config.json", "0/tokenizer_config.json");
        let prepared = |json, clean_up| {
            let (_dir, files) =
                files(&["Transformer"], &[(step, json), (tokenizer, r#"{"model_max_length": 20}"#)]);
            let files = files.below("0").unwrap();
            let around = around_vectors(&files, Takes::Vectors).unwrap();
            let max_length = around.tokenizer(&files).unwrap().max_length(77);
            let texts = around.texts(TextSpec { clean_up, ..TextSpec::new(max_length) });
            (texts.max_length, texts.clean_up)
        };
        assert_eq!(prepared("{}", CleanUp::None), (20, CleanUp::None));
        let lower = r#"{"max_seq_length": 32, "do_lower_case": true}"#;
        assert_eq!(prepared(lower, CleanUp::None), (32, CleanUp::Lowercase));
        let siglip = |lowercase| CleanUp::Siglip { lowercase };
        assert_eq!(prepared(lower, siglip(false)), (32, siglip(true)));
        assert_eq!(prepared(r#"{"max_seq_length": 999}"#, siglip(false)), (77, siglip(false)));

        let (_dir, files) = files(&["Transformer"], &[(step, r#"{"query_length": 4}"#)]);
        let files = files.below("0").unwrap();
        let message = around_vectors(&files, Takes::Vectors).unwrap_err().to_string();
        assert!(message.contains("query_length"), "{message}");
        let message = around_states(&files, Some(Pooling::Cls)).unwrap_err().to_string();
        assert!(message.contains("query_length"), "{message}");
    }

    #[test]
    fn the_pooling_is_the_setting_then_the_step() {
        let steps = &["Transformer", "Pooling", "Normalize"];
        let mode = |mode| [("1/config.json", mode)];
        let (cls, max) = (r#"{"pooling_mode": "cls"}"#, r#"{"pooling_mode": "max"}"#);
        assert_eq!(states(steps, &mode(cls), None), Ok(Some(Pooling::Cls)));
        assert_eq!(states(steps, &mode(cls), Some(Pooling::Mean)), Ok(Some(Pooling::Mean)));
        assert_eq!(states(steps, &mode(max), Some(Pooling::Mean)), Ok(Some(Pooling::Mean)));
        assert_eq!(states(&["Transformer"], &[], Some(Pooling::Pooler)), Ok(Some(Pooling::Pooler)));
        for (classes, word) in [
            (&steps[..], "`max`"),
            (&["Transformer"], "set `pooling`"),
            (&["Transformer", "Pooling", "Dense"], "`Dense`"),
        ] {
            let message = states(classes, &mode(max), None).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
    }
}
