//! The engine over libtorch.

use tch::{Device, Kind, TchError, Tensor};

use super::{
    Backend, BackendError, LoadedModel,
    device::{DeviceError, cores, resolve_device, resolve_dtype},
};
use crate::{
    config::{ModelConfig, ModelParts, ModelSource},
    domain::{Embedding, Pixels, Pooling, Poolings, Prepared},
    model::{Checkpoint, ModelError, Normalize, Placement, Towers},
};

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The checkpoint cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// Loads the model that the settings name onto the device that they name.
///
/// # Errors
/// [`LoadError`]; the message names the file, the tensor or the library.
pub fn load(config: &ModelConfig) -> Result<LoadedModel, LoadError> {
    let device = resolve_device(config.device)?;
    let kind = resolve_dtype(config.dtype, device);
    let threads = if config.threads == 0 { cores() } else { config.threads };
    // For what is computed while loading; the passes run on a thread of their own.
    set_threads(threads);
    let checkpoint = Checkpoint::open(&config.parts())?;
    let mut spec = checkpoint.spec(config.pooling)?;
    let _no_grad = tch::no_grad_guard();
    let towers = checkpoint.load(&spec, Placement { device, kind })?;
    let normalize = match &spec.image {
        Some(image) => Some(Normalize::new(image, device, kind)?),
        None => None,
    };
    let tokenizer = checkpoint.tokenizer(&spec)?;
    let dtype = if kind == Kind::BFloat16 { "bf16" } else { "fp32" };
    let fingerprint = fingerprint(&checkpoint, &spec.pooling, dtype)?;
    if let Some(name) = &config.name {
        spec.name.clone_from(name);
    }
    let backend =
        Torch { dimensions: spec.dimensions, towers, normalize, device, threads, _checkpoint: checkpoint };
    Ok(LoadedModel {
        spec,
        fingerprint,
        tokenizer,
        device: match device {
            Device::Cuda(n) => format!("cuda:{n}"),
            _ => "cpu".into(),
        },
        dtype: dtype.into(),
        is_demo: config.parts() == ModelParts::One(ModelSource::Demo),
        backend: Box::new(backend),
    })
}

fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// Everything that decides what a vector is: 128 bits of it in hex. To be called last, when every file that
/// counts has been read.
fn fingerprint(checkpoint: &Checkpoint, pooling: &Poolings, dtype: &str) -> Result<String, ModelError> {
    let mut hasher = blake3::Hasher::new();
    let chosen = [pooling.image, pooling.text].map(|pooling| pooling.map_or("", Pooling::as_str));
    for part in [dtype, chosen[0], chosen[1]] {
        hasher.update(part.as_bytes()).update(b"\n");
    }
    hasher.update(checkpoint.digest()?.as_bytes());
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// A checkpoint on one device.
struct Torch {
    dimensions: usize,
    towers: Box<dyn Towers>,
    normalize: Option<Normalize>,
    device: Device,
    threads: usize,
    /// The towers' tensors point into its mapped files.
    _checkpoint: Checkpoint,
}

impl Backend for Torch {
    fn enter_thread(&mut self) {
        // libtorch keeps this number per thread that computes, so that each model may have its own.
        set_threads(self.threads);
    }

    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        let rows = self.forward(batch).map_err(|error| classify(&error))?;
        rows.chunks_exact(self.dimensions)
            .map(|row| Embedding::normalized(row.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|error| BackendError::Failed(format!("the model gave no usable vector: {error}")))
    }
}

impl Torch {
    /// The vectors of the batch, one after another.
    fn forward(&self, batch: &[Prepared]) -> Result<Vec<f32>, TchError> {
        let _no_grad = tch::no_grad_guard();
        let mut pictures = Vec::new();
        let mut texts = Vec::new();
        for input in batch {
            match input {
                Prepared::Pixels(pixels) => pictures.push(pixels),
                Prepared::Tokens(tokens) => texts.push(tokens.ids.as_slice()),
            }
        }
        let vectors = match (&self.normalize, texts.is_empty()) {
            (Some(normalize), true) => {
                self.towers.encode_images(&normalize.forward(&self.upload(&pictures)?)?)?
            }
            _ => self.towers.encode_texts(&texts)?,
        };
        Vec::<f32>::try_from(vectors.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?)
    }

    /// Pictures of one size to RGB8 `[batch, height, width, 3]` on the device.
    fn upload(&self, pictures: &[&Pixels]) -> Result<Tensor, TchError> {
        let bytes = pictures.iter().map(|picture| picture.rgb8.as_slice()).collect::<Vec<_>>().concat();
        let (height, width) = pictures.first().map_or((0, 0), |p| (i64::from(p.height), i64::from(p.width)));
        let size = [pictures.len() as i64, height, width, 3];
        Tensor::f_from_data_size(&bytes, &size, Kind::Uint8)?.f_to_device(self.device)
    }
}

/// A CUDA error other than running out of memory is sticky: every later call on the device fails too.
fn classify(error: &TchError) -> BackendError {
    let message = error.to_string();
    let first_line = message.lines().next().unwrap_or_default().to_owned();
    match message.contains("CUDA error") && !message.contains("out of memory") {
        true => BackendError::DeviceLost(first_line),
        false => BackendError::Failed(first_line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sticky_cuda_error_loses_the_device() {
        let torch = |message: &str| classify(&TchError::Torch(message.into()));
        assert!(matches!(torch("CUDA error: an illegal memory access\nmore"), BackendError::DeviceLost(_)));
        assert!(matches!(torch("CUDA error: out of memory"), BackendError::Failed(_)));
        assert!(matches!(torch("index out of range"), BackendError::Failed(_)));
    }
}
