//! The engine over libtorch.

use std::{
    collections::BTreeSet,
    io,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tch::{Device, Kind, TchError};

use super::{
    Backend, BackendError, Engine, LoadedModel,
    device::{DeviceError, cores, resolve_devices, resolve_dtype},
    fingerprint::fingerprint,
    schedule::{BULK_NICENESS, Layout, Schedule},
    search::SearchThread,
    staging::Staging,
};
use crate::{
    config::{CoreList, ModelConfig, ModelParts, ModelSource},
    domain::{Embedding, Lane, Lanes, ModelSpec, Prepared},
    libtorch::{Inference, cuda_choose_kernels, cuda_empty_cache, cuda_enter, cuda_synchronize},
    model::{Checkpoint, ModelError, Normalize, NormalizeTable, Placement, Towers},
};

/// While one batch is computed the next is copied to the device.
const ENGINES_PER_GPU: usize = 2;

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
    /// There is no thread to load or compute with.
    #[error("the system gives no thread: {0}")]
    Thread(#[from] io::Error),
}

/// Loads the model that the settings name onto the devices that they name.
///
/// # Errors
/// [`LoadError`]; the message names the file, the tensor or the library.
///
/// # Panics
/// When loading does.
pub fn load(config: &ModelConfig) -> Result<LoadedModel, LoadError> {
    // On a thread that ends, and its helpers with it: see `search.rs`.
    thread::scope(|scope| {
        let loading = thread::Builder::new().name("load".into()).spawn_scoped(scope, || load_here(config));
        loading?.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn load_here(config: &ModelConfig) -> Result<LoadedModel, LoadError> {
    let devices = resolve_devices(config.device)?;
    let kind = resolve_dtype(config.dtype, &devices);
    if devices[0].is_cuda() {
        cuda_choose_kernels()?;
    }
    let threads = match (config.threads, config.cores.len()) {
        (0, 0) => cores(),
        (0, pinned) => pinned.min(cores()),
        (threads, _) => threads,
    };
    // For what is computed while loading; the passes run on threads of their own. On the same cores: weights lie in the
    // memory of the socket whose core has written them.
    Schedule { threads, niceness: 0, cores: config.cores.clone() }.enter();
    let checkpoint = Arc::new(Checkpoint::open(&config.parts())?);
    let mut spec = checkpoint.spec(config.pooling)?;
    let models = devices
        .iter()
        .map(|device| Model::load(&checkpoint, &spec, Placement { device: *device, kind }))
        .collect::<Result<Vec<_>, _>>()?;
    if devices[0].is_cuda() {
        // What converting left behind is on this thread's stream, where the passes will not look for it.
        cuda_empty_cache()?;
    }
    let tokenizer = checkpoint.tokenizer(&spec)?;
    let dtype = match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "fp16",
        _ => "fp32",
    };
    // Last, when every file that counts has been read.
    let fingerprint = fingerprint(&checkpoint.digest()?, &spec.pooling, dtype);
    if let Some(name) = &config.name {
        spec.name.clone_from(name);
    }
    let layout = Layout::new(threads, config.replicas);
    let engines = models.into_iter().map(|model| engines(model, &layout, &config.cores));
    let engines = engines.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect();
    Ok(LoadedModel {
        spec,
        fingerprint,
        tokenizer,
        device: devices.iter().map(|device| name(*device)).collect::<Vec<_>>().join(","),
        dtype: dtype.into(),
        is_demo: config.parts() == ModelParts::One(ModelSource::Demo),
        engines,
    })
}

fn name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".into(),
    }
}

/// The engines over one copy of the weights.
///
/// On the CPU bulk is computed by several, one batch each, which step back behind the one for searches: that one has
/// threads of its own, so that a search waits for no batch. A GPU's two engines serve whoever comes; each has a stream of
/// its own, so that one's batch is copied while the other's is computed.
///
/// # Errors
/// When the operating system gives no thread.
fn engines(model: Model, layout: &Layout, cores: &CoreList) -> io::Result<Vec<Engine>> {
    let model = Arc::new(model);
    let schedule = |threads, niceness| Schedule { threads, niceness, cores: cores.clone() };
    let engine = |turn, lanes| {
        let (model, staging, device) = (model.clone(), Staging::new(model.device), name(model.device));
        Engine { backend: Box::new(Torch { model, turn, staging, waited: Duration::ZERO }), lanes, device }
    };
    match model.device {
        Device::Cpu => {
            let bulk = layout
                .bulk
                .iter()
                .map(|threads| engine(Turn::Own(schedule(*threads, BULK_NICENESS)), Lanes::Only(Lane::Bulk)));
            let search = SearchThread::shared(&schedule(layout.search, 0))?;
            Ok(bulk.chain([engine(Turn::Shared(search), Lanes::Only(Lane::Search))]).collect())
        }
        _ => Ok((0..ENGINES_PER_GPU).map(|_| engine(Turn::Own(schedule(1, 0)), Lanes::All)).collect()),
    }
}

/// A checkpoint on one device: what its engines share.
struct Model {
    dimensions: usize,
    towers: Box<dyn Towers>,
    /// None where it reads texts alone.
    pictures: Option<Pictures>,
    device: Device,
    /// The towers' tensors point into its mapped files.
    _checkpoint: Arc<Checkpoint>,
}

/// How pictures become `pixel_values`.
enum Pictures {
    /// On their way into the batch.
    Here(NormalizeTable),
    /// On the device, to which they travel as bytes.
    There(Normalize),
}

// SAFETY: A loaded model is only read. Passes call libtorch with its tensors as constant inputs, which it allows from
// several threads at once; `tch` does not say so only because its tensors have methods that write through a shared
// reference, and the towers call none of those on what they hold.
unsafe impl Sync for Model {}

/// One of a model's engines.
struct Torch {
    model: Arc<Model>,
    turn: Turn,
    staging: Staging,
    /// For the turn of the last pass.
    waited: Duration,
}

/// The thread that an engine computes on.
enum Turn {
    /// The one that calls it.
    Own(Schedule),
    /// One that other models have, too.
    Shared(SearchThread),
}

impl Backend for Torch {
    fn enter_thread(&mut self) {
        match &self.turn {
            Turn::Own(schedule) => schedule.enter(),
            Turn::Shared(_) => {}
        }
        if let Device::Cuda(index) = self.model.device
            && let Err(error) = cuda_enter(index)
        {
            tracing::warn!(%error, device = name(self.model.device), "one batch is not copied while another is computed");
        }
    }

    fn warm_sizes(&self, most: usize) -> Vec<usize> {
        match self.model.device {
            // The largest first, so that memory is laid out once.
            Device::Cuda(_) => {
                let sizes = (1..=most).map(|size| size_on_gpu(size).min(most)).collect::<BTreeSet<_>>();
                sizes.into_iter().rev().collect()
            }
            _ => vec![1.min(most)],
        }
    }

    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        match &self.turn {
            Turn::Own(_) => self.compute(batch),
            Turn::Shared(thread) => {
                let asked = Instant::now();
                thread.clone().run(|| {
                    self.waited = asked.elapsed();
                    self.compute(batch)
                })
            }
        }
    }

    fn waited(&self) -> Duration {
        self.waited
    }
}

/// The size that a GPU computes a batch of `n` inputs at: at most eight to a doubling, so that all are known before the
/// first request, when kernels are loaded and memory is laid out. What fills it up is a quarter of a batch at most, and
/// nothing of the large ones that keep a GPU busy.
fn size_on_gpu(n: usize) -> usize {
    n.next_multiple_of((n.next_power_of_two() / 8).max(1))
}

impl Torch {
    fn compute(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        let size = match self.model.device {
            Device::Cuda(_) => size_on_gpu(batch.len()),
            _ => batch.len(),
        };
        let rows =
            self.model.forward(batch, size, &mut self.staging).map_err(|error| self.classify(&error))?;
        rows.chunks_exact(self.model.dimensions)
            .take(batch.len())
            .map(|row| Embedding::normalized(row.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|error| BackendError::Unusable(error.to_string()))
    }

    /// What an error of libtorch means for this engine.
    fn classify(&self, error: &TchError) -> BackendError {
        let Device::Cuda(index) = self.model.device else { return classify(error, || Ok(())) };
        let error = classify(error, || cuda_synchronize(index));
        if matches!(error, BackendError::OutOfMemory(_))
            && let Err(error) = cuda_empty_cache()
        {
            // libtorch did so itself where the memory was its own; cuBLAS takes its share elsewhere.
            tracing::warn!(%error, "memory that is kept for later cannot be given back");
        }
        error
    }
}

impl Pictures {
    fn new(normalize: Normalize, device: Device) -> Result<Self, TchError> {
        match device {
            Device::Cpu => NormalizeTable::new(&normalize).map(Self::Here),
            _ => Ok(Self::There(normalize)),
        }
    }
}

impl Model {
    fn load(checkpoint: &Arc<Checkpoint>, spec: &ModelSpec, on: Placement) -> Result<Self, LoadError> {
        let _no_grad = tch::no_grad_guard();
        let towers = checkpoint.load(spec, on)?;
        let pictures = match &spec.image {
            Some(image) => Some(Pictures::new(Normalize::new(image, on.device, on.kind)?, on.device)?),
            None => None,
        };
        let (dimensions, device) = (spec.dimensions, on.device);
        Ok(Self { dimensions, towers, pictures, device, _checkpoint: checkpoint.clone() })
    }

    /// The vectors of the batch, one after another, and behind them what fills it up to `size`.
    fn forward(&self, batch: &[Prepared], size: usize, staging: &mut Staging) -> Result<Vec<f32>, TchError> {
        let _inference = Inference::begin();
        let (mut pictures, mut texts) = (Vec::new(), Vec::new());
        let filling = batch.last().into_iter().cycle().take(size.saturating_sub(batch.len()));
        for input in batch.iter().chain(filling) {
            match input {
                Prepared::Pixels(pixels) => pictures.push(pixels),
                Prepared::Tokens(tokens) => texts.push(tokens.ids.as_slice()),
            }
        }
        let vectors = match (&self.pictures, texts.is_empty()) {
            (Some(Pictures::Here(table)), true) => self.towers.encode_images(&table.forward(&pictures)?)?,
            (Some(Pictures::There(normalize)), true) => {
                self.towers.encode_images(&normalize.forward(&staging.upload(&pictures)?)?)?
            }
            _ => self.towers.encode_texts(&texts)?,
        };
        Vec::<f32>::try_from(vectors.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?)
    }
}

/// Running out of memory is told by the words, a lost device by asking it: some errors of CUDA fail every later call, others
/// nothing but the one, and their words do not say.
fn classify(error: &TchError, ask_device: impl FnOnce() -> Result<(), TchError>) -> BackendError {
    let message = error.to_string();
    let first_line = message.lines().next().unwrap_or_default().to_owned();
    // libtorch's allocator says "CUDA out of memory", the driver "CUDA error: out of memory", cuBLAS
    // "CUBLAS_STATUS_ALLOC_FAILED" for its workspace and "CUBLAS_STATUS_NOT_INITIALIZED" for its handle, the CPU's allocator
    // "DefaultCPUAllocator: can't allocate memory".
    let is_full = ["out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "can't allocate memory"];
    match ask_device() {
        Err(_) => BackendError::DeviceLost(first_line),
        Ok(()) if is_full.iter().any(|words| message.contains(words)) => {
            BackendError::OutOfMemory(first_line)
        }
        Ok(()) => BackendError::Failed(first_line),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::mpsc};

    use super::*;
    use crate::{
        config::{Config, DEFAULT_TOML, DeviceChoice, DtypeChoice},
        domain::{Pixels, Tokens},
    };

    #[test]
    fn each_change_of_the_model_changes_the_fingerprint() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo-model");
        let of = |change: &dyn Fn(&Path), dtype: DtypeChoice| {
            let dir = tempfile::tempdir().unwrap();
            for file in ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"] {
                fs::copy(format!("{demo}/{file}"), dir.path().join(file)).unwrap();
            }
            change(dir.path());
            let config: Config = toml::from_str(DEFAULT_TOML).unwrap();
            let source = ModelSource::Directory(dir.path().into());
            let device = DeviceChoice::Cpu;
            load(&ModelConfig { source, device, dtype, ..config.model }).unwrap().fingerprint
        };
        let nothing = |_: &Path| {};
        let weights = |dir: &Path| {
            let file = dir.join("model.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(file, bytes).unwrap();
        };
        let mean = |dir: &Path| {
            let file = dir.join("preprocessor_config.json");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, text.replacen("0.5", "0.25", 1)).unwrap();
        };
        let fp32 = DtypeChoice::Fp32;
        assert_eq!(of(&nothing, fp32), of(&nothing, fp32));
        let distinct = BTreeSet::from([
            of(&nothing, fp32),
            of(&nothing, DtypeChoice::Bf16),
            of(&weights, fp32),
            of(&mean, fp32),
        ]);
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn a_device_that_answers_no_more_is_lost_whatever_the_error_says() {
        let torch = |message: &str, answers| {
            let error = TchError::Torch(message.into());
            classify(&error, || if answers { Ok(()) } else { Err(TchError::Torch("the same".into())) })
        };
        let illegal = "CUDA error: an illegal memory access was encountered\nmore";
        assert!(
            matches!(torch(illegal, false), BackendError::DeviceLost(reason) if !reason.contains("more"))
        );
        assert!(matches!(torch("CUDA driver error: unknown", false), BackendError::DeviceLost(_)));
        for message in [
            "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`",
            "CUDA error: invalid configuration argument",
            "index out of range",
        ] {
            assert!(matches!(torch(message, true), BackendError::Failed(_)), "{message}");
        }
        for message in [
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        ] {
            assert!(matches!(torch(message, true), BackendError::OutOfMemory(_)), "{message}");
        }
    }

    #[test]
    fn a_gpu_computes_few_sizes() {
        let sizes: Vec<_> = (1..=20).map(size_on_gpu).collect();
        assert_eq!(sizes, [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16, 20, 20, 20, 20]);
        for n in 1..=1024 {
            let size = size_on_gpu(n);
            assert!(size >= n && size * 4 <= n * 5 && size_on_gpu(size) == size, "{n}: {size}");
        }
        assert_eq!((1..=64).map(size_on_gpu).collect::<BTreeSet<_>>().len(), 20);
    }

    fn demo() -> (Model, ModelSpec) {
        let config: Config = toml::from_str(DEFAULT_TOML).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(&config.model.parts()).unwrap());
        let spec = checkpoint.spec(None).unwrap();
        let placement = Placement { device: Device::Cpu, kind: Kind::Float };
        (Model::load(&checkpoint, &spec, placement).unwrap(), spec)
    }

    fn text(ids: Vec<u32>) -> Prepared {
        Prepared::Tokens(Tokens { n_tokens: ids.len(), ids, truncated: false })
    }

    #[test]
    fn a_token_that_the_model_does_not_have_is_an_error_that_says_so() {
        let (model, _) = demo();
        let texts = [text(vec![49, 5, 50]), text(vec![49, 1_000_000, 50])];
        let error = model.forward(&texts, 2, &mut Staging::new(Device::Cpu)).unwrap_err().to_string();
        assert!(error.contains("token 1000000") && error.contains("do not belong together"), "{error}");
    }

    #[test]
    fn a_pass_tells_how_long_it_waited_for_those_of_other_models() {
        let (model, _) = demo();
        // No other test has this niceness.
        let schedule = Schedule { threads: 1, niceness: 5, cores: CoreList::default() };
        let thread = SearchThread::shared(&schedule).unwrap();
        let turn = Turn::Shared(thread.clone());
        let staging = Staging::new(Device::Cpu);
        let mut torch = Torch { model: Arc::new(model), turn, staging, waited: Duration::ZERO };
        let (begin, begun) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread.run(|| {
                    begin.send(()).unwrap();
                    thread::sleep(Duration::from_secs(1));
                });
            });
            begun.recv().unwrap();
            torch.embed(&[text(vec![49, 5, 50])]).unwrap();
        });
        assert!(torch.waited() > Duration::from_millis(100), "{:?}", torch.waited());
        torch.embed(&[text(vec![49, 5, 50])]).unwrap();
        assert!(torch.waited() < Duration::from_millis(100), "{:?}", torch.waited());
    }

    #[test]
    fn what_fills_a_batch_up_changes_no_vector() {
        let (model, spec) = demo();
        let [height, width] = spec.image.as_ref().unwrap().size();
        let rgb8 = |seed: u32| (0..height * width * 3).map(|i| (i * 7 + seed * 31) as u8).collect();
        let pictures = [1, 2].map(|seed| Prepared::Pixels(Pixels { rgb8: rgb8(seed), height, width }));
        let texts = [vec![49, 5, 50], vec![49, 6, 7, 50], vec![49, 8, 50]].map(text);
        for batch in [&pictures[..], &texts[..]] {
            let vectors = |size| model.forward(batch, size, &mut Staging::new(Device::Cpu)).unwrap();
            let (plain, filled) = (vectors(batch.len()), vectors(5));
            assert_eq!((plain.len(), filled.len()), (batch.len() * spec.dimensions, 5 * spec.dimensions));
            let differ = plain.iter().zip(&filled).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
            assert_eq!(differ, 0);
        }
    }
}
