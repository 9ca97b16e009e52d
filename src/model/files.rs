//! The files of a checkpoint, on disk or inside the binary.

use std::{
    borrow::Cow,
    fs::{self, File},
    io,
    path::PathBuf,
};

use memmap2::Mmap;
use serde::de::DeserializeOwned;

use super::ModelError;
use crate::config::ModelSource;

/// The name of the weights file.
pub const WEIGHTS: &str = "model.safetensors";

/// The demo model, compiled in: `assets/demo-model`, made by `tools/demo-model`.
const DEMO: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../assets/demo-model/config.json")),
    ("preprocessor_config.json", include_bytes!("../../assets/demo-model/preprocessor_config.json")),
    ("tokenizer.json", include_bytes!("../../assets/demo-model/tokenizer.json")),
    (WEIGHTS, include_bytes!("../../assets/demo-model/model.safetensors")),
];

/// The files of one checkpoint.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// The small model inside the binary.
    Demo,
    /// A directory in Hugging Face layout.
    Directory(PathBuf),
}

/// The bytes of a file that may be large: mapped, or part of the binary.
#[derive(Debug)]
pub enum FileBytes {
    /// Part of the binary.
    Static(&'static [u8]),
    /// Mapped read-only; pages come in as they are touched and are shared between processes.
    Mapped(Mmap),
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl ModelFiles {
    /// Looks at a model's place.
    ///
    /// # Errors
    /// [`ModelError::NoDirectory`] when nothing is there.
    pub fn open(source: &ModelSource) -> Result<Self, ModelError> {
        match source {
            ModelSource::Demo => Ok(Self::Demo),
            ModelSource::Directory(path) if path.is_dir() => Ok(Self::Directory(path.clone())),
            ModelSource::Directory(path) => Err(ModelError::NoDirectory(path.clone())),
        }
    }

    /// The name shown to callers.
    pub fn name(&self) -> String {
        match self {
            Self::Demo => "sidelens-demo".into(),
            // Canonical, so that `.` and `models/clip/` have a name too.
            Self::Directory(path) => fs::canonicalize(path)
                .ok()
                .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
                .unwrap_or_else(|| path.display().to_string()),
        }
    }

    /// Where the files are, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::Demo => "the demo model".into(),
            Self::Directory(path) => path.display().to_string(),
        }
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// [`ModelError::NoFile`] when it is not there, [`ModelError::Io`] when it cannot be read.
    pub fn read(&self, file: &'static str) -> Result<Cow<'static, [u8]>, ModelError> {
        match self {
            Self::Demo => self.demo(file).map(Cow::Borrowed),
            Self::Directory(path) => fs::read(path.join(file)).map(Cow::Owned).map_err(|e| self.io(file, e)),
        }
    }

    /// A JSON file.
    ///
    /// # Errors
    /// As [`Self::read`], and [`ModelError::Json`].
    pub fn json<T: DeserializeOwned>(&self, file: &'static str) -> Result<T, ModelError> {
        serde_json::from_slice(&self.read(file)?).map_err(|source| ModelError::Json {
            dir: self.place(),
            file: file.into(),
            source,
        })
    }

    /// A large file, mapped.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn map(&self, file: &'static str) -> Result<FileBytes, ModelError> {
        match self {
            Self::Demo => self.demo(file).map(FileBytes::Static),
            Self::Directory(path) => {
                let opened = File::open(path.join(file)).map_err(|e| self.io(file, e))?;
                // SAFETY: The map is only read. A file that someone cuts short while it is served ends the
                // process with SIGBUS, as it would any program that maps its weights.
                let map = unsafe { Mmap::map(&opened) }.map_err(|e| self.io(file, e))?;
                Ok(FileBytes::Mapped(map))
            }
        }
    }

    fn demo(&self, file: &'static str) -> Result<&'static [u8], ModelError> {
        let found = DEMO.iter().find(|(name, _)| *name == file);
        found.map(|(_, bytes)| *bytes).ok_or(ModelError::NoFile { dir: self.place(), file })
    }

    fn io(&self, file: &'static str, source: io::Error) -> ModelError {
        match source.kind() {
            io::ErrorKind::NotFound => ModelError::NoFile { dir: self.place(), file },
            _ => ModelError::Io { dir: self.place(), file: file.into(), source },
        }
    }
}
