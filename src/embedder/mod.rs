//! The service: inputs in, one unit vector each out.
//!
//! Siblings meet here. A request is admitted whole (`admission.rs`); each part goes through the cache, the
//! fetcher, the CPU pool (`prepare.rs`) and the batcher (`pipeline.rs`, `picture.rs`); failed items become an error or the
//! placeholder (`placeholder.rs`). Work inside the process asks for vectors one by one (`kept.rs`). Warming up runs real
//! shapes (`warm_up.rs`, `calibration.rs`).

mod admission;
mod calibration;
mod failures;
mod kept;
mod picture;
mod pipeline;
mod placeholder;
mod prepare;
mod registry;
mod spans;
mod unreadable;
mod vectors;
mod warm_up;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use crate::batch::{BatchPolicy, Batcher, CpuShare};
use crate::cache::{CacheSetupError, VectorCache};
use crate::config::{BatchConfig, Config, ImageConfig};
use crate::domain::{
    EmbedError, EmbedInput, EmbedRequest, EmbedResponse, Embedding, Fingerprint, ItemError, Lane, ModelSpec,
    OnItemError, Usage,
};
use crate::fetch::Fetcher;
use crate::imaging::{ImagingOptions, WorkerCommand, Workers};
use crate::runtime::{Caps, DeviceThread, Engine, LoadedModel};
use crate::telemetry::Metrics;
use crate::text::{TextError, Tokenizer};
use admission::{Admission, Admitted};
pub use failures::{FailedSource, Failures};
pub use kept::KeptError;
use pipeline::{ItemVector, Pipeline, Turn};
use prepare::PreparePool;
pub use registry::Models;
use unreadable::Unreadable;
use vectors::{Store, VectorFile};

/// Batches of decoded bulk pictures per engine, beside those being decoded: one runs, one is ready, one
/// fills up. More would wait as pixels, three times as large as they came.
const PIXEL_BATCHES: usize = 3;

/// After so long without a picture a process that decodes gives its memory back.
const IDLE_DECODE_WORKER: Duration = Duration::from_secs(60);

/// One model in service. Cheap to clone.
#[derive(Clone)]
pub struct Embedder {
    inner: Arc<Inner>,
}

struct Inner {
    info: ModelInfo,
    pipeline: Arc<Pipeline>,
    admission: Arc<Admission>,
    policy: BatchPolicy,
    /// Bulk pictures that may be pixels at once.
    max_pixels: usize,
    is_ready: AtomicBool,
    placeholder: OnceLock<Embedding>,
    metrics: Arc<Metrics>,
}

/// What all models of a process share. Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    fetcher: Fetcher,
    store: Store,
    pool: Arc<PreparePool>,
    share: Arc<CpuShare>,
    imaging: ImagingOptions,
    failures: Arc<Failures>,
    metrics: Arc<Metrics>,
}

impl Shared {
    /// One cache, whose keys tell the models apart, and one pool for decoding and tokenising; what may end its process
    /// is decoded in those that `decode_worker` starts.
    ///
    /// # Errors
    /// [`EmbedderSetupError::Thread`], [`EmbedderSetupError::Cache`].
    pub fn new(
        config: &Config,
        fetcher: Fetcher,
        decode_worker: WorkerCommand,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EmbedderSetupError> {
        let ImageConfig { decode, background, icc, avif, max_pixels, max_memory_bytes, timeout_ms, threads } =
            config.image;
        let lost = metrics.decode_workers_lost.clone();
        let workers = Some(Arc::new(Workers::new(decode_worker, IDLE_DECODE_WORKER, lost)));
        Ok(Self {
            fetcher,
            store: Store {
                cache: VectorCache::new(&config.cache, metrics.clone())?,
                file: VectorFile::new(&config.cache.file, config.cache.file_max_bytes),
            },
            pool: Arc::new(PreparePool::new(threads)?),
            share: Arc::default(),
            imaging: ImagingOptions {
                decode,
                background,
                icc,
                avif,
                workers,
                max_pixels,
                max_memory_bytes,
                timeout_ms,
            },
            failures: Arc::new(Failures::new()),
            metrics,
        })
    }
}

/// What is in service.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The model's facts.
    pub spec: ModelSpec,
    /// What tells its vectors from those of others.
    pub fingerprint: Fingerprint,
    /// Where it runs: `cpu`, `cuda:0`, ...
    pub device: String,
    /// What it computes in: `fp32`, `bf16`, `fp16`.
    pub dtype: String,
    /// Most inputs in its part of the house.
    pub max_queue_items: usize,
    /// Milliseconds after which a request is answered 503.
    pub deadline_ms: u64,
    /// Whether it is the demo model.
    pub is_demo: bool,
}

/// Why a model cannot be put into service.
#[derive(Debug, thiserror::Error)]
pub enum EmbedderSetupError {
    /// The model has a text tower, but nothing to make tokens with.
    #[error("model `{0}` has a text tower but no tokenizer.json")]
    NoTokenizer(String),
    /// Its tokenizer cannot be used.
    #[error("model `{model}`: {source}")]
    Tokenizer {
        /// The model.
        model: String,
        /// What is wrong with it.
        source: TextError,
    },
    /// Two models have one name.
    #[error("two models are called `{0}`; give one of them another `name`")]
    SameName(String),
    /// No model at all.
    #[error("there is no model to serve")]
    NoModel,
    /// The cache's settings cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheSetupError),
    /// The operating system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Embedder {
    /// Puts `model` into service: starts its device thread and the batch worker. Must be called inside a
    /// tokio runtime. It refuses requests until [`Self::warm_up`] has succeeded.
    ///
    /// # Errors
    /// [`EmbedderSetupError`].
    pub fn new(model: LoadedModel, batch: &BatchConfig, shared: &Shared) -> Result<Self, EmbedderSetupError> {
        let Shared { fetcher, store: Store { cache, .. }, pool, share, imaging, failures, metrics } =
            shared.clone();
        let LoadedModel { spec, fingerprint, tokenizer, device, dtype, is_demo, engines } = model;
        // A GPU's bulk leaves the CPU to searches, and its searches the CPU to bulk.
        let share = if device == "cpu" { share } else { Arc::default() };
        let tokenizer = match (&spec.text, tokenizer) {
            (None, _) => None,
            (Some(_), None) => return Err(EmbedderSetupError::NoTokenizer(spec.name)),
            (Some(text), Some(file)) => {
                let tokenizer = Tokenizer::new(&file, text)
                    .map_err(|source| EmbedderSetupError::Tokenizer { model: spec.name.clone(), source })?;
                Some(Arc::new(tokenizer))
            }
        };
        // What one engine learns of a device's memory holds for all of them there.
        let mut caps: HashMap<String, Arc<Caps>> = HashMap::new();
        let threads = engines
            .into_iter()
            .map(|Engine { backend, lanes, device }| {
                let caps = caps.entry(device.clone()).or_default().clone();
                Ok((DeviceThread::spawn(backend, &device, caps)?, lanes))
            })
            .collect::<Result<Vec<_>, std::io::Error>>()?;
        metrics
            .model_info
            .with_label_values(&[
                spec.name.as_str(),
                &fingerprint.to_string(),
                &dtype,
                &device,
                &spec.dimensions.to_string(),
            ])
            .set(1);
        let n_bulk = threads.iter().filter(|(_, lanes)| lanes.serve(Lane::Bulk)).count();
        let policy = BatchPolicy::new(batch, &device);
        let max_pixels = PIXEL_BATCHES * n_bulk * policy.max_pictures + pool.threads();
        let pipeline = Pipeline {
            spec: spec.clone(),
            fingerprint,
            imaging,
            tokenizer,
            fetcher,
            cache,
            pixels: Semaphore::new(max_pixels),
            pool,
            batcher: Batcher::spawn(threads, policy, share.clone(), metrics.clone()),
            deadline: Duration::from_millis(batch.deadline_ms),
            failures,
            unreadable: Unreadable::new(),
            metrics: metrics.clone(),
        };
        let inner = Inner {
            info: ModelInfo {
                spec,
                fingerprint,
                device,
                dtype,
                max_queue_items: batch.max_queue_items,
                deadline_ms: batch.deadline_ms,
                is_demo,
            },
            pipeline: Arc::new(pipeline),
            admission: Arc::new(Admission::new(batch.max_queue_items, share, metrics.clone())),
            policy,
            max_pixels,
            is_ready: AtomicBool::new(false),
            placeholder: OnceLock::new(),
            metrics,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Embeds every input of `request`, in its order. Its deadline counts from `since`, when it began to arrive: the
    /// caller's does, too.
    ///
    /// # Errors
    /// [`EmbedError`]. All failed items are named at once; with [`OnItemError::Placeholder`] they get the
    /// placeholder vector instead and are listed in the answer, unless the request has a query: that would find first
    /// whatever has the placeholder for its vector. Overload, a passed deadline, failed
    /// inference and a lack of decoders always fail the request: the same request may succeed later.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request's inputs out of every queue. What is in a pass by then is still kept.
    pub async fn embed(
        &self,
        request: EmbedRequest,
        on_item_error: OnItemError,
        since: Instant,
    ) -> Result<EmbedResponse, EmbedError> {
        let deadline = since + self.inner.pipeline.deadline;
        let on_item_error = if request.has_query() { OnItemError::Fail } else { on_item_error };
        let lane = request.lane();
        Span::current().record("sidelens.lane", lane.as_str());
        let _admitted = self.admit(&request)?;
        let parts = request.inputs.iter().flat_map(|input| &input.parts);
        let n_text_bytes = parts.map(|part| part.content.n_text_bytes()).sum();
        let turn = Turn { lane, deadline, n_text_bytes, on_item_error };
        let items = self.items(request.inputs, turn).await?;
        self.answer(items, on_item_error)
    }

    /// Refuses at once what [`Self::embed`] would refuse at once, at this moment.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn check(&self, request: &EmbedRequest) -> Result<(), EmbedError> {
        self.admit(request).map(drop)
    }

    fn admit(&self, request: &EmbedRequest) -> Result<Admitted, EmbedError> {
        if !self.is_ready() {
            return Err(EmbedError::Unavailable("the model is not ready; try again".into()));
        }
        let spec = &self.inner.info.spec;
        if let Some(requested) = request.dimensions.filter(|requested| *requested != spec.dimensions) {
            let (actual, model) = (spec.dimensions, spec.name.clone());
            return Err(EmbedError::Dimensions { requested, actual, model });
        }
        let n_parts = request.inputs.iter().map(|input| input.parts.len()).sum();
        self.inner.admission.admit(n_parts, request.lane())
    }

    async fn items(
        &self,
        inputs: Vec<EmbedInput>,
        turn: Turn,
    ) -> Result<Vec<Result<ItemVector, ItemError>>, EmbedError> {
        let pipeline = &self.inner.pipeline;
        let items = inputs.into_iter().enumerate().map(|(index, input)| pipeline.item(index, input, turn));
        let deadline_ms = self.inner.info.deadline_ms;
        timeout_at(turn.deadline, try_join_all(items))
            .await
            .unwrap_or(Err(EmbedError::Deadline { deadline_ms }))
    }

    fn answer(
        &self,
        items: Vec<Result<ItemVector, ItemError>>,
        on_item_error: OnItemError,
    ) -> Result<EmbedResponse, EmbedError> {
        let (mut embeddings, mut errors) = (Vec::with_capacity(items.len()), Vec::new());
        let mut usage = Usage::default();
        for item in items {
            match item {
                Ok(item) => {
                    usage.text_tokens += item.usage.text_tokens;
                    usage.images += item.usage.images;
                    embeddings.push(item.embedding);
                }
                Err(error) => {
                    embeddings.extend(self.inner.placeholder.get().cloned());
                    errors.push(error);
                }
            }
        }
        if !errors.is_empty() {
            if on_item_error == OnItemError::Fail {
                return Err(EmbedError::Items(errors));
            }
            for error in &errors {
                self.inner.metrics.placeholder_vectors.with_label_values(&[error.kind.as_str()]).inc();
            }
            let first = &errors[0];
            tracing::warn!(
                n_items = errors.len(),
                index = first.index,
                kind = first.kind.as_str(),
                message = first.message,
                "items answered by the placeholder vector"
            );
        }
        let model = self.inner.info.spec.name.clone();
        Ok(EmbedResponse { model, embeddings, errors, usage })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.inner.info.spec.name
    }

    /// What is in service.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Whether requests are taken: warmed up, and not stopping.
    pub fn is_ready(&self) -> bool {
        self.inner.is_ready.load(Ordering::Acquire)
    }

    /// Resolves with the reason once the device is lost, else never. Nothing succeeds after that: the
    /// process should end, and be started again.
    pub async fn device_lost(&self) -> String {
        let reason = self.inner.pipeline.batcher.device_lost().await;
        self.set_ready(false);
        reason
    }

    /// Finishes what is queued, takes no more, and joins the device's thread.
    pub async fn shut_down(&self) {
        self.inner.pipeline.batcher.shut_down().await;
        self.set_ready(false);
    }

    fn set_ready(&self, is_ready: bool) {
        self.inner.is_ready.store(is_ready, Ordering::Release);
    }
}
