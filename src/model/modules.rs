//! `modules.json`: the steps of a sentence-transformers model.

use serde::Deserialize;

use super::{ModelError, ModelFiles};

/// The file.
const FILE: &str = "modules.json";

/// The classes of a first step whose directory holds a checkpoint of transformers.
pub const ENCODERS: [&str; 2] = ["Transformer", "CLIPModel"];

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Module {
    /// The sub-directory with its files; empty for the top.
    pub path: String,
    /// The Python class, dotted.
    #[serde(rename = "type")]
    class: String,
}

impl Module {
    /// The class without its package: `Transformer`, `Pooling`, `Dense`, `Normalize`, ... A class from
    /// elsewhere than sentence-transformers does something else: its dotted name stays whole.
    pub fn class(&self) -> &str {
        match self.class.strip_prefix("sentence_transformers.") {
            Some(class) => class.rsplit('.').next().unwrap_or_default(),
            None => &self.class,
        }
    }
}

/// The steps in their order; `None` for a checkpoint without the file.
///
/// # Errors
/// When the file is not as expected.
pub fn read(files: &ModelFiles) -> Result<Option<Vec<Module>>, ModelError> {
    files.json_if_there(FILE)
}

/// Whether the checkpoint that `files` are part of has steps. In one without, sentence-transformers takes no notice of its
/// other files.
pub fn are_there(files: &ModelFiles) -> bool {
    files.top().has(FILE)
}

/// `found`, of these steps, is not served; `expected` says which are.
pub fn unserved(found: &str, modules: &[Module], expected: &'static str) -> ModelError {
    let all = modules.iter().map(Module::class).collect::<Vec<_>>().join(", ");
    ModelError::Unsupported { file: FILE.into(), key: "type", found: format!("`{found}` in {all}"), expected }
}

/// Where a checkpoint has its `config.json`, its tokenizer and its main weights: in the directory of the
/// first step. Old sentence-transformers models have their encoder in `0_Transformer`, and wrappers around
/// CLIP, such as `sentence-transformers/clip-ViT-B-32`, in `0_CLIPModel`.
///
/// # Errors
/// When `modules.json` is not as expected, or names a directory elsewhere.
pub fn first_step(files: ModelFiles) -> Result<ModelFiles, ModelError> {
    match read(&files)?.unwrap_or_default().as_slice() {
        [first, ..] if ENCODERS.contains(&first.class()) => files.below(&first.path),
        _ => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_other_packages_keep_their_names() {
        let class = |class: &str| Module { path: String::new(), class: class.into() }.class().to_owned();
        assert_eq!(class("sentence_transformers.models.Pooling"), "Pooling");
        assert_eq!(class("sentence_transformers.base.modules.transformer.Transformer"), "Transformer");
        assert_eq!(class("custom_st.Transformer"), "custom_st.Transformer");
    }
}
