//! Why a checkpoint cannot be served.

use std::path::PathBuf;

use crate::{config::HubModel, domain::Pooling};

/// Why a checkpoint cannot be served. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The directory is not there.
    #[error(
        "there is no model directory `{0}`; give `demo`, a model of the hub as org/name, or a directory with \
         config.json, preprocessor_config.json, tokenizer.json and model.safetensors"
    )]
    NoDirectory(PathBuf),
    /// A name of the hub, not yet turned into a directory.
    #[error("`{0}` is not on this machine yet; fetch it with `sidelens download {0}`")]
    NotHere(HubModel),
    /// A file is not there.
    #[error("`{dir}` holds no {file}; a model directory in Hugging Face layout has one")]
    NoFile {
        /// Where it was looked for.
        dir: String,
        /// What was looked for.
        file: String,
    },
    /// A file's name leads out of the model's directory.
    #[error("`{file}`, which the files of `{dir}` name, lies outside that directory")]
    Path {
        /// The directory.
        dir: String,
        /// The name.
        file: String,
    },
    /// A file cannot be read.
    #[error("cannot read {file} of `{dir}`: {source}")]
    Io {
        /// The directory.
        dir: String,
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration file is not the JSON that it should be.
    #[error("{file} of `{dir}` is not as expected: {source}")]
    Json {
        /// The directory.
        dir: String,
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// `sidelens.toml` is not as it should be.
    #[error("{file} of `{dir}` is not as expected: {source}")]
    Toml {
        /// The directory.
        dir: String,
        /// The file.
        file: &'static str,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A TorchScript module cannot be loaded, or does not do what its `sidelens.toml` says.
    #[error("{file} of `{dir}` cannot be served: {reason}")]
    Module {
        /// The directory.
        dir: String,
        /// The module's file.
        file: String,
        /// What happened and what would do.
        reason: String,
    },
    /// No family fits.
    #[error("model `{model}` has model_type `{model_type}`; Sidelens serves {}", .known.join(", "))]
    UnknownFamily {
        /// The model.
        model: String,
        /// What its config.json says.
        model_type: String,
        /// The families that are served.
        known: Vec<&'static str>,
    },
    /// It looks like a family that is served, but is not quite one.
    #[error("model `{model}` cannot be served: {reason}")]
    NearMiss {
        /// The model.
        model: String,
        /// What it is and what is missing.
        reason: &'static str,
    },
    /// The setting `pooling` asks for what the family does not have.
    #[error(
        "`pooling` is `{found}`, but {family} models have {}",
        if .known.is_empty() { "one way only; leave it out".into() } else { pooling_names(.known) }
    )]
    Pooling {
        /// The family.
        family: &'static str,
        /// The setting.
        found: Pooling,
        /// What the family has.
        known: &'static [Pooling],
    },
    /// The two checkpoints of one model do not make one.
    #[error("image checkpoint `{image}` and text checkpoint `{text}` do not make one model: {reason}")]
    Pair {
        /// The checkpoint of the image tower.
        image: String,
        /// The checkpoint of the text tower.
        text: String,
        /// Why.
        reason: String,
    },
    /// A value that the family cannot be served with.
    #[error("{file} says `{key}` is {found}; {expected}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key in it.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// No weights in any format that is read.
    #[error("`{dir}` holds no weights; a model directory has one of {}", .known.join(", "))]
    NoWeights {
        /// The directory.
        dir: String,
        /// The files that were looked for, in that order.
        known: Vec<&'static str>,
    },
    /// An index names a file that is not beside it.
    #[error("{index} names {shard}, which is not there; download the rest of the checkpoint")]
    NoShard {
        /// The index.
        index: String,
        /// The file that is missing.
        shard: String,
    },
    /// A checkpoint asks for something that could run code.
    #[error(
        "{file} asks for {asks_for}, and Sidelens never runs code from a checkpoint: it builds tensors and \
         nothing else; if you trust the file, convert it to safetensors, or look for a model.safetensors \
         of the same model"
    )]
    Code {
        /// The weights file.
        file: String,
        /// The Python name or the opcode.
        asks_for: String,
    },
    /// A weights file cannot be read.
    #[error("{file} holds no weights that can be read: {reason}")]
    Weights {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A tensor is not there.
    #[error("{file} holds no tensor `{tensor}` (expected, shape {expected:?})")]
    NoTensor {
        /// The weights file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: Vec<i64>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, but config.json asks for {expected:?}")]
    Shape {
        /// The weights file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: Vec<i64>,
        /// The shape in the file.
        found: Vec<i64>,
    },
    /// A tensor has a number format that no weight has.
    #[error("{file}: tensor `{tensor}` is {found}; weights are F64, F32, F16 or BF16")]
    Dtype {
        /// The weights file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The number format in the file.
        found: String,
    },
    /// A tensor from which no vector could be computed.
    #[error(
        "{file}: tensor `{tensor}` has entries that are no finite numbers; download the checkpoint again, or convert it anew"
    )]
    NotFinite {
        /// The weights file.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// libtorch failed while weights were put in place.
    #[error("libtorch could not place tensor `{tensor}`: {reason}")]
    Torch {
        /// The tensor's name.
        tensor: String,
        /// What libtorch said.
        reason: String,
    },
}

impl ModelError {
    /// libtorch failed on `tensor`.
    #[cfg(feature = "torch")]
    pub(super) fn torch(tensor: &str, error: &tch::TchError) -> Self {
        Self::Torch { tensor: tensor.into(), reason: error.to_string() }
    }
}

fn pooling_names(known: &[Pooling]) -> String {
    known.iter().map(|pooling| format!("`{pooling}`")).collect::<Vec<_>>().join(", ")
}
