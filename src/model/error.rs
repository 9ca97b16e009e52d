//! Why a checkpoint cannot be served.

use std::path::PathBuf;

/// Why a checkpoint cannot be served. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The directory is not there.
    #[error(
        "there is no model directory `{0}`; give `demo`, or a directory with config.json, \
         preprocessor_config.json, tokenizer.json and model.safetensors"
    )]
    NoDirectory(PathBuf),
    /// A file is not there.
    #[error("`{dir}` holds no {file}; a model directory in Hugging Face layout has one")]
    NoFile {
        /// Where it was looked for.
        dir: String,
        /// What was looked for.
        file: &'static str,
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
    /// A value that the family cannot be served with.
    #[error("{file} says `{key}` is {found}; {expected}")]
    Unsupported {
        /// The file.
        file: &'static str,
        /// The key in it.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// The weights file is not safetensors.
    #[error("{file} is not a readable safetensors file: {reason}")]
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
    #[error("{file}: tensor `{tensor}` is {found}; weights are F32, F16 or BF16")]
    Dtype {
        /// The weights file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The number format in the file.
        found: String,
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
