//! `sidelens verify`: whether a model on this machine is whole and can be served, without the memory and the time that
//! serving takes: nothing is computed.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use clap::Args;
use memmap2::Mmap;

use super::{CliError, ConfigArgs};
use crate::{
    config::{HubConfig, ModelConfig, ModelSource},
    hub::{self, HubError},
    model::{Checkpoint, ModelError, weights::Format},
    text::{TextError, Tokenizer},
};

/// What a zip archive, which a `.pt` is, ends with; a comment may follow.
const ZIP_END: &[u8] = b"PK\x05\x06";
/// Bytes of the end record, and the longest comment.
const ZIP_END_BYTES: usize = 22 + 65535;

/// What to look at.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// A directory, or the name of a model that is downloaded.
    #[arg(value_name = "DIR|MODEL")]
    source: String,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Not downloaded, not whole, or not what the hub announced.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Of no family that is served, or not as that family asks.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its texts cannot be tokenised.
    #[error("model `{model}`: {source}")]
    Tokenizer {
        /// The model.
        model: String,
        /// What is wrong with its tokenizer.
        source: TextError,
    },
    /// A file is damaged.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Prints one line for a sound model; the first fault is the error.
pub(super) fn run(args: &VerifyArgs) -> Result<(), CliError> {
    let config = args.config.load()?;
    println!("{}", verify(ModelSource::from(args.source.clone()), &config.hub)?);
    Ok(())
}

fn verify(source: ModelSource, hub: &HubConfig) -> Result<String, VerifyError> {
    let source = match source {
        ModelSource::Hub(model) => ModelSource::Directory(hub::cached(&model, hub)?.dir),
        other => other,
    };
    let mut checked = String::new();
    if let ModelSource::Directory(dir) = &source
        && dir.is_dir()
    {
        let files = hub::files_of(dir)?;
        let mut n_verified = 0;
        for file in &files {
            n_verified += usize::from(hub::verify_digest(file)?);
            check_weights(file)?;
        }
        checked = format!(", {} files, {n_verified} digests verified", files.len());
    }
    let model = ModelConfig { source, ..ModelConfig::default() };
    let checkpoint = Checkpoint::open(&model.parts())?;
    let spec = checkpoint.spec(model.pooling)?;
    #[cfg(feature = "torch")]
    checkpoint.check(&spec)?;
    if let (Some(text), Some(file)) = (&spec.text, checkpoint.tokenizer(&spec)?) {
        Tokenizer::new(&file, text)
            .map_err(|source| VerifyError::Tokenizer { model: spec.name.clone(), source })?;
    }
    Ok(format!("{}: sound, {}, {} dimensions{checked}", spec.name, spec.family, spec.dimensions))
}

/// Whether a file of weights is whole, by what it says of itself; other files pass.
fn check_weights(file: &Path) -> Result<(), VerifyError> {
    let format = match file.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => Some(Format::Safetensors),
        Some("bin") => Some(Format::Torch),
        // A TorchScript module is read by libtorch alone; that it is a whole archive can be seen here.
        Some("pt") => None,
        _ => return Ok(()),
    };
    let fault = |reason: String| VerifyError::File { file: file.into(), reason };
    let opened = File::open(file).map_err(|error| fault(error.to_string()))?;
    // SAFETY: The map is only read, and dropped before this returns; a file that is cut short meanwhile ends
    // the process with SIGBUS, as it would any program that maps it.
    let bytes = unsafe { Mmap::map(&opened) }.map_err(|error| fault(error.to_string()))?;
    if let Some(format) = format {
        format.read(&bytes, &file.to_string_lossy())?;
        return Ok(());
    }
    let tail = &bytes[bytes.len().saturating_sub(ZIP_END_BYTES)..];
    match tail.windows(ZIP_END.len()).any(|window| window == ZIP_END) {
        true => Ok(()),
        false => Err(fault("it is no whole zip archive, as PyTorch has written since 1.6".into())),
    }
}
