//! Model families: what a checkpoint says of itself, and its forward pass.
//!
//! One file per family. Reading a checkpoint's facts ([`spec`]) is always built; the forward pass and the
//! layers need the feature `torch`. A new family is a new file and a line in `FAMILIES`.

mod blip2;
mod checkpoint;
mod clip;
mod config;
mod dinov2;
mod error;
mod files;
#[cfg(feature = "torch")]
mod layers;
mod modules;
mod preprocessor;
mod sentence;
mod siglip;
mod tokenizer;
mod tokenizer_config;
mod torchscript;
pub mod weights;

#[cfg(feature = "torch")]
use tch::{Device, Kind, TchError, Tensor};

pub use checkpoint::Checkpoint;
pub use config::ConfigJson;
pub use error::ModelError;
pub use files::{FileBytes, ModelFiles};
#[cfg(feature = "torch")]
pub use layers::{Linear, Normalize, NormalizeTable};
#[cfg(feature = "torch")]
pub use weights::Weights;

use crate::{
    config::ModelConfig,
    domain::{ModelSpec, Pooling},
};

/// Every family that can be served. The first that fits is taken: a `sidelens.toml` wins over whatever lies
/// beside it.
static FAMILIES: &[&dyn Family] = &[
    &torchscript::TorchScript,
    &clip::Clip,
    &siglip::Siglip,
    &dinov2::Dinov2,
    &blip2::Blip2,
    &sentence::SentenceTransformers,
];

/// Models that are taken for one of the families, and what they are instead.
const NEAR_MISSES: &[(&str, &str)] = &[
    (
        "siglip2",
        "it is a NaFlex SigLIP 2, whose pictures keep their shape; Sidelens has the SigLIP 2 of fixed resolution, \
         such as google/siglip2-base-patch16-224",
    ),
    (
        "siglip2_vision_model",
        "it is the image tower of a NaFlex SigLIP 2, whose pictures keep their shape; Sidelens has the SigLIP 2 of fixed \
         resolution, such as google/siglip2-base-patch16-224",
    ),
    (
        "metaclip_2",
        "it is a MetaCLIP 2, a CLIP with XLM-R's tokenizer, which Sidelens does not have; take a clip or siglip model",
    ),
    ("chinese_clip", "its text tower is a BERT inside CLIP, which Sidelens does not have; take a clip model"),
    ("altclip", "its text tower is an XLM-R inside CLIP, which Sidelens does not have; take a clip model"),
    ("blip", "it is the first BLIP; Sidelens has BLIP-2, such as Salesforce/blip2-itm-vit-g"),
    ("instructblip", "it answers questions and has no vector of its own; take a blip-2 model"),
    ("dinov3_vit", "it is DINOv3, which turns positions differently; Sidelens has DINOv2"),
    ("dinov3_convnext", "it is a DINOv3 made of convolutions; Sidelens has DINOv2"),
    (
        "mpnet",
        "it is an MPNet, whose attention is biased by distance; Sidelens has BERT, DistilBERT, RoBERTa and \
         XLM-RoBERTa, such as sentence-transformers/all-MiniLM-L12-v2",
    ),
    (
        "modernbert",
        "it is a ModernBERT, which turns positions; Sidelens has BERT, DistilBERT, RoBERTa and XLM-RoBERTa",
    ),
    (
        "nomic_bert",
        "it is a Nomic BERT, which turns positions; Sidelens has BERT, DistilBERT, RoBERTa and XLM-RoBERTa",
    ),
    ("t5", "it is a T5; among text encoders Sidelens has BERT, DistilBERT, RoBERTa and XLM-RoBERTa"),
    ("vit", "it is a classifier; export it with TorchScript and a sidelens.toml, or take a dinov2 model"),
    ("eva", "it is an EVA-CLIP; Sidelens has clip models in the layout of transformers, LAION's among them"),
    (
        "eva02",
        "it is an EVA-CLIP; Sidelens has clip models in the layout of transformers, LAION's among them",
    ),
];

/// A family of checkpoints that share a layout.
pub trait Family: Sync {
    /// Its name in `/info` and messages.
    fn name(&self) -> &'static str;

    /// Whether these files are a checkpoint of this family. `config` is empty where there is no
    /// `config.json`.
    fn matches(&self, files: &ModelFiles, config: &ConfigJson) -> bool;

    /// The values of the setting `pooling` that it has, its default first; none where it has one way only.
    fn poolings(&self) -> &'static [Pooling] {
        &[]
    }

    /// The facts of a checkpoint, from its configuration files alone. `pooling` is one of
    /// [`Self::poolings`], or `None` for the checkpoint's own.
    ///
    /// # Errors
    /// When a file is missing or says something that this family cannot be served with.
    fn spec(&self, files: &ModelFiles, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError>;

    /// Builds the forward passes of the towers that `spec` has: a checkpoint may serve with one of its two.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the configuration says.
    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: Placement,
    ) -> Result<Box<dyn Towers>, ModelError>;

    /// Whether [`Self::load`] would find all that it needs, without the memory that it takes.
    ///
    /// # Errors
    /// As there, and when a tensor holds what is no finite number.
    #[cfg(feature = "torch")]
    fn check(&self, files: &ModelFiles, spec: &ModelSpec) -> Result<(), ModelError> {
        self.load(files, spec, Placement::NOWHERE).map(drop)
    }
}

/// Where a model's tensors go, and in which number format.
#[cfg(feature = "torch")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// The dtype of weights and activations.
    pub kind: Kind,
}

#[cfg(feature = "torch")]
impl Placement {
    /// For towers that are built to see whether they can be, and compute nothing: tensors are looked at in their file, and
    /// what stands for them has a shape but no memory. No model computes in `bool`.
    const NOWHERE: Self = Self { device: Device::Cpu, kind: Kind::Bool };
}

/// A loaded checkpoint's forward passes. Vectors come out as the family defines them, not yet normalised.
#[cfg(feature = "torch")]
pub trait Towers: Send {
    /// `pixel_values` `[batch, 3, height, width]`, normalised, in the weights' dtype; gives `[batch, dimensions]`.
    ///
    /// # Errors
    /// When libtorch fails, or there is no image tower.
    fn encode_images(&self, _pixel_values: &Tensor) -> Result<Tensor, TchError> {
        Err(missing_tower())
    }

    /// Token ids, special tokens included, 1 to `max_length` each; gives `[batch, dimensions]`.
    ///
    /// # Errors
    /// When libtorch fails, or there is no text tower.
    fn encode_texts(&self, _texts: &[&[u32]]) -> Result<Tensor, TchError> {
        Err(missing_tower())
    }
}

/// For a call that [`ModelSpec`] should have kept away.
#[cfg(feature = "torch")]
fn missing_tower() -> TchError {
    TchError::Torch("the model has no tower for this input".into())
}

/// Finds the family that a checkpoint belongs to.
///
/// # Errors
/// [`ModelError::NearMiss`] says what is missing, [`ModelError::UnknownFamily`] names the known families.
pub fn family_of(files: &ModelFiles) -> Result<&'static dyn Family, ModelError> {
    let config = ConfigJson::read_if_there(files)?;
    if let Some(family) = FAMILIES.iter().find(|family| family.matches(files, &config)) {
        return Ok(*family);
    }
    if !files.has(config::CONFIG) {
        // Names the file.
        ConfigJson::read(files)?;
    }
    let (model, model_type) = (files.name(), config.model_type().to_owned());
    match NEAR_MISSES.iter().find(|(near, _)| *near == model_type) {
        Some((_, reason)) => Err(ModelError::NearMiss { model, reason }),
        None => {
            let known = FAMILIES.iter().map(|family| family.name()).collect();
            Err(ModelError::UnknownFamily { model, model_type, known })
        }
    }
}

/// The facts of the model that the settings name, from its configuration files alone: no weights, no
/// libtorch.
///
/// # Errors
/// When a file is missing, unreadable or describes a model that cannot be served.
pub fn spec(config: &ModelConfig) -> Result<ModelSpec, ModelError> {
    Checkpoint::open(&config.parts())?.spec(config.pooling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    fn directory(path: impl Into<std::path::PathBuf>) -> Result<ModelSpec, ModelError> {
        spec(&ModelConfig { source: ModelSource::Directory(path.into()), ..ModelConfig::default() })
    }

    fn of_type(model_type: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), format!(r#"{{"model_type": "{model_type}"}}"#))
            .unwrap();
        directory(dir.path()).unwrap_err().to_string()
    }

    #[test]
    fn the_demo_model_describes_itself() {
        let spec = spec(&ModelConfig::default()).unwrap();
        assert_eq!((spec.name.as_str(), spec.family.as_str()), ("sidelens-demo", "clip"));
        assert!(spec.dimensions >= 64);
        assert_eq!(spec.image.unwrap().crop, Some([64, 64]));
    }

    #[test]
    fn an_unknown_family_is_refused_with_the_known_ones() {
        let message = of_type("resnet");
        assert!(message.contains("`resnet`"), "{message}");
        for family in FAMILIES {
            assert!(message.contains(family.name()), "{message}");
        }
    }

    #[test]
    fn near_misses_say_what_they_are() {
        for (model_type, reason) in NEAR_MISSES {
            let message = of_type(model_type);
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = directory(dir.path()).unwrap_err().to_string();
        assert!(message.contains("config.json"), "{message}");
        let message = directory("/no/such/dir").unwrap_err().to_string();
        assert!(message.contains("/no/such/dir"), "{message}");
    }

    #[test]
    fn a_pooling_that_the_family_has_not_is_refused() {
        let error = spec(&ModelConfig { pooling: Some(Pooling::Cls), ..ModelConfig::default() }).unwrap_err();
        assert_eq!(error.to_string(), "`pooling` is `cls`, but clip models have one way only; leave it out");
    }
}
