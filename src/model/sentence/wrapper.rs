//! What sentence-transformers puts around an encoder of another family: CLIP, SigLIP, BLIP-2, DINOv2.
//!
//! Source: sentence-transformers 6.2.0, `base/model.py` and `base/modules/transformer.py`.

use super::{
    steps::PoolingStep,
    whole::{self, Whole},
};
use crate::{
    domain::{Pooling, Prompts},
    model::{
        ModelError, ModelFiles,
        modules::{self, ENCODERS, Module},
    },
};

/// Around an encoder that gives vectors: the prompts of its texts. There are none without a wrapper.
///
/// # Errors
/// When a file is not as expected, or a step behind the encoder changes the vectors.
pub fn around_vectors(files: &ModelFiles) -> Result<Prompts, ModelError> {
    if let Some(modules) = modules::read(&files.top())? {
        check(&modules, modules.get(1..).unwrap_or_default())?;
    }
    prompts(files)
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

    fn vectors(classes: &[&str], more: &[(&str, &str)]) -> Result<Prompts, String> {
        around_vectors(&files(classes, more).1).map_err(|error| error.to_string())
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
            assert_eq!(vectors(classes, &[]), Ok(Prompts::default()), "{classes:?}");
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
        let prompts = whole(r#"{"prompts": {"p": "a photo of "}, "default_prompt_name": "p"}"#).unwrap();
        assert_eq!(prompts.default, "a photo of ");
        let message = whole(r#"{"truncate_dim": 12}"#).unwrap_err();
        assert!(message.contains("truncate_dim") && message.contains(whole::FILE), "{message}");
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
