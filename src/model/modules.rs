//! `modules.json`: the steps of a sentence-transformers model.

use serde::Deserialize;

use super::{ModelError, ModelFiles};

/// The file.
const FILE: &str = "modules.json";

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
    /// The class without its package: `Transformer`, `Pooling`, `Dense`, `Normalize`, ...
    pub fn class(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or_default()
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.into(),
            path => format!("{}/{name}", path.trim_end_matches('/')),
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

/// The CLIP checkpoint inside a sentence-transformers model that is only a wrapper around it, such as
/// `sentence-transformers/clip-ViT-B-32`, which has it in `0_CLIPModel`.
///
/// # Errors
/// When `modules.json` is not as expected, or names a directory elsewhere.
pub fn clip_inside(files: &ModelFiles) -> Result<Option<ModelFiles>, ModelError> {
    if !files.has(FILE) {
        return Ok(None);
    }
    match read(files)?.unwrap_or_default().as_slice() {
        [module] if module.class() == "CLIPModel" && !module.path.is_empty() => {
            files.below(&module.path).map(Some)
        }
        _ => Ok(None),
    }
}
