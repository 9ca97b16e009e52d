//! Model families: what a checkpoint says of itself, and its forward pass.
//!
//! One file per family. Reading a checkpoint's facts ([`spec`]) is always built; the forward pass and the
//! layers need the feature `torch`. A new family is a new file and a line in [`FAMILIES`].

mod clip;
mod error;
mod files;
#[cfg(feature = "torch")]
mod layers;
mod preprocessor;
#[cfg(feature = "torch")]
mod weights;

use serde_json::Value;
#[cfg(feature = "torch")]
use tch::{TchError, Tensor};

pub use error::ModelError;
pub use files::{FileBytes, ModelFiles};
#[cfg(feature = "torch")]
pub use layers::Normalize;
#[cfg(feature = "torch")]
pub use weights::Weights;

use crate::{config::ModelSource, domain::ModelSpec};

/// Every family that can be served.
pub static FAMILIES: &[&dyn Family] = &[&clip::Clip];

/// A family of checkpoints that share a layout.
pub trait Family: Sync {
    /// Its name in `/info` and messages.
    fn name(&self) -> &'static str;

    /// Whether `config.json` describes a checkpoint of this family.
    fn matches(&self, config: &Value) -> bool;

    /// The facts of a checkpoint, from its configuration files alone.
    ///
    /// # Errors
    /// When a file is missing or says something that this family cannot be served with.
    fn spec(&self, files: &ModelFiles) -> Result<ModelSpec, ModelError>;

    /// Builds the forward pass over the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the configuration says.
    #[cfg(feature = "torch")]
    fn load(&self, files: &ModelFiles, weights: &Weights) -> Result<Box<dyn Towers>, ModelError>;
}

/// A loaded checkpoint's forward passes. Vectors come out as the family defines them, not yet normalised.
#[cfg(feature = "torch")]
pub trait Towers: Send {
    /// `pixel_values` `[batch, 3, height, width]`, normalised, in the weights' dtype; gives `[batch, dimensions]`.
    ///
    /// # Errors
    /// When libtorch fails.
    fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError>;

    /// Token ids, special tokens included, 1 to `max_length` each; gives `[batch, dimensions]`.
    ///
    /// # Errors
    /// When libtorch fails.
    fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError>;
}

/// Finds the family that a checkpoint belongs to.
///
/// # Errors
/// [`ModelError::UnknownFamily`] names the families that are known.
pub fn family_of(files: &ModelFiles) -> Result<&'static dyn Family, ModelError> {
    let config: Value = files.json("config.json")?;
    FAMILIES.iter().find(|family| family.matches(&config)).copied().ok_or_else(|| ModelError::UnknownFamily {
        model: files.name(),
        model_type: config["model_type"].as_str().unwrap_or("none").to_owned(),
        known: FAMILIES.iter().map(|family| family.name()).collect(),
    })
}

/// The facts of the checkpoint at `source`, from its configuration files alone: no weights, no libtorch.
///
/// # Errors
/// When a file is missing, unreadable or describes a model that cannot be served.
pub fn spec(source: &ModelSource) -> Result<ModelSpec, ModelError> {
    let files = ModelFiles::open(source)?;
    family_of(&files)?.spec(&files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_describes_itself() {
        let spec = spec(&ModelSource::Demo).unwrap();
        assert_eq!((spec.name.as_str(), spec.family), ("sidelens-demo", "clip"));
        assert!(spec.dimensions >= 64);
        assert_eq!(spec.image.unwrap().crop, Some([64, 64]));
    }

    #[test]
    fn an_unknown_family_is_refused_with_the_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "eva"}"#).unwrap();
        let error = spec(&ModelSource::Directory(dir.path().into())).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("`eva`") && message.contains("clip"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = spec(&ModelSource::Directory(dir.path().into())).unwrap_err().to_string();
        assert!(message.contains("config.json"), "{message}");
        let message = spec(&ModelSource::Directory("/no/such/dir".into())).unwrap_err().to_string();
        assert!(message.contains("/no/such/dir"), "{message}");
    }
}
