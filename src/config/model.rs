//! Which model, where, how.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{CoreList, HubModel, empty_is_none};
use crate::domain::Pooling;

/// Which model, where, how.
///
/// Empty strings in a file stand for `None`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Its name in `/info`, in requests and paths; none for the checkpoint's own.
    #[serde(with = "empty_is_none")]
    pub name: Option<String>,
    /// The demo model, a directory, or a name on the hub.
    pub source: ModelSource,
    /// The checkpoint of the image tower, instead of `source`, beside `text`.
    #[serde(with = "empty_is_none")]
    pub image: Option<ModelSource>,
    /// The checkpoint of the text tower, instead of `source`, beside `image`.
    #[serde(with = "empty_is_none")]
    pub text: Option<ModelSource>,
    /// How token states become one vector; none for the checkpoint's own way.
    #[serde(with = "empty_is_none")]
    pub pooling: Option<Pooling>,
    /// Where it runs.
    pub device: DeviceChoice,
    /// What it computes in.
    pub dtype: DtypeChoice,
    /// Threads that compute on the CPU; 0 means one per core.
    pub threads: usize,
    /// Passes of bulk at once on the CPU, which share the threads; 0 means what does well.
    pub replicas: usize,
    /// The cores that compute; none for all.
    pub cores: CoreList,
}

impl Default for ModelConfig {
    /// The demo model, as in `config/default.toml`.
    fn default() -> Self {
        Self {
            name: None,
            source: ModelSource::Demo,
            image: None,
            text: None,
            pooling: None,
            device: DeviceChoice::Auto,
            dtype: DtypeChoice::Auto,
            threads: 0,
            replicas: 0,
            cores: CoreList::default(),
        }
    }
}

/// The checkpoints of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelParts {
    /// One with every tower.
    One(ModelSource),
    /// Two whose towers share one space.
    Pair {
        /// Gives the image tower.
        image: ModelSource,
        /// Gives the text tower.
        text: ModelSource,
    },
}

impl ModelConfig {
    /// The same with every source put through `find`, such as a name turned into the directory that has it.
    ///
    /// # Errors
    /// The first of `find`.
    pub fn located<E>(
        mut self,
        mut find: impl FnMut(&ModelSource) -> Result<ModelSource, E>,
    ) -> Result<Self, E> {
        match self.parts() {
            ModelParts::One(source) => self.source = find(&source)?,
            ModelParts::Pair { image, text } => {
                (self.image, self.text) = (Some(find(&image)?), Some(find(&text)?));
            }
        }
        Ok(self)
    }

    /// The checkpoints that it is made of.
    pub fn parts(&self) -> ModelParts {
        match (&self.image, &self.text) {
            (Some(image), Some(text)) => ModelParts::Pair { image: image.clone(), text: text.clone() },
            _ => ModelParts::One(self.source.clone()),
        }
    }
}

/// Where the model's files are.
///
/// Written as `demo`, as `org/name[@revision]`, or as a path. A directory that exists wins over a name that
/// looks the same; `./` before a path makes it one for certain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
pub enum ModelSource {
    /// The small model inside the binary.
    Demo,
    /// A directory in Hugging Face layout.
    Directory(PathBuf),
    /// A model on the hub.
    Hub(HubModel),
}

impl From<String> for ModelSource {
    fn from(source: String) -> Self {
        match source.as_str() {
            "demo" => Self::Demo,
            path if Path::new(path).is_dir() => Self::Directory(path.into()),
            text => text.parse().map_or_else(|_| Self::Directory(text.into()), Self::Hub),
        }
    }
}

impl From<ModelSource> for String {
    fn from(source: ModelSource) -> Self {
        match source {
            ModelSource::Demo => "demo".into(),
            ModelSource::Directory(path) => path.display().to_string(),
            ModelSource::Hub(model) => model.to_string(),
        }
    }
}

/// The device asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// Every CUDA device if there is one, else the CPU.
    Auto,
    /// The processor.
    Cpu,
    /// Every CUDA device.
    EveryCuda,
    /// The CUDA device with this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::EveryCuda),
            other => other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("unknown device `{other}`: use `auto`, `cpu`, `cuda` or `cuda:N`")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::EveryCuda => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
    }
}

/// The number format asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DtypeChoice {
    /// bf16 where the hardware computes it, else fp16 on a GPU and fp32 on a CPU.
    Auto,
    /// 32-bit floats.
    Fp32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats, for GPUs without bf16.
    Fp16,
}
