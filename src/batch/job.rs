//! The message between the handle and the worker.

use std::sync::Arc;

use prometheus::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Span;

use crate::domain::{Embedding, Lane, Prepared};
use crate::runtime::BackendError;
use crate::telemetry::traces::{trace_span, trace_span_below};

/// Why an input has no vector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It waited until its deadline.
    #[error("the deadline passed while the input waited for its batch")]
    Deadline,
    /// The service is stopping or has lost its device.
    #[error("{0}")]
    Unavailable(String),
    /// Its pass failed; the next may not.
    #[error("{0}")]
    Failed(String),
    /// The model has no vector for it, however often it is asked.
    #[error("{0}")]
    Unusable(String),
}

impl From<BackendError> for BatchError {
    fn from(error: BackendError) -> Self {
        let reason = error.to_string();
        match error {
            BackendError::Failed(_) | BackendError::OutOfMemory(_) => Self::Failed(reason),
            BackendError::Unusable(_) => Self::Unusable(reason),
            BackendError::DeviceLost(_) => Self::Unavailable(reason),
        }
    }
}

/// One input on its way to the device.
pub(super) struct Job {
    pub prepared: Prepared,
    pub lane: Lane,
    pub wait: Wait,
    pub deadline: Instant,
    pub trace: Trace,
    pub reply: Reply,
}

/// An input's time in the queue, counted when it ends: by its pass, at its deadline, or since nobody waits any more.
pub(super) struct Wait {
    /// When it began.
    pub since: Instant,
    seconds: Histogram,
}

impl Wait {
    /// Begins at `since`.
    pub fn new(since: Instant, seconds: Histogram) -> Self {
        Self { since, seconds }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.seconds.observe(self.since.elapsed().as_secs_f64());
    }
}

/// What the trace of the input's request shows of its way: how long it waited, then how long it took to compute. A batch
/// serves many requests, so that each gets a span of its own with what the batch was.
pub(super) struct Trace {
    input: Span,
    wait: Span,
}

impl Trace {
    /// Begins the wait of an input that the current span is about.
    pub fn begin_wait(lane: Lane) -> Self {
        Self { input: Span::current(), wait: trace_span!("queue", sidelens.lane = lane.as_str()) }
    }

    /// Ends the wait, and begins the forward pass, which ends when its span is dropped.
    pub fn begin_forward(self, batch: u64, n_inputs: usize, device: &str) -> Span {
        drop(self.wait);
        trace_span_below!(
            &self.input,
            "forward",
            sidelens.batch.id = batch,
            sidelens.batch.size = n_inputs,
            sidelens.device = device
        )
    }
}

/// What is to happen once an input's pass has begun.
pub type OnPass = Box<dyn FnOnce() + Send>;

/// Where the answer goes.
pub(super) struct Reply {
    sender: Option<oneshot::Sender<Result<Embedding, BatchError>>>,
    on_pass: Option<OnPass>,
}

impl Reply {
    pub fn new(sender: oneshot::Sender<Result<Embedding, BatchError>>) -> Self {
        Self { sender: Some(sender), on_pass: None }
    }

    /// The same, with something to happen once the pass has begun.
    pub fn with_on_pass(self, on_pass: OnPass) -> Self {
        Self { on_pass: Some(on_pass), ..self }
    }

    /// The pass begins.
    pub fn begin_pass(&mut self) {
        if let Some(on_pass) = self.on_pass.take() {
            on_pass();
        }
    }

    /// Answers, once; a caller that has left is not missed.
    pub fn send(&mut self, answer: Result<Embedding, BatchError>) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(answer);
        }
    }

    /// Whether the caller has left.
    pub fn is_abandoned(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// For every engine's first passes.
pub(super) struct WarmUp {
    /// What batches are filled with.
    pub input: Arc<Prepared>,
    /// As many make the largest.
    pub most: usize,
    /// One answer per engine, then the end.
    pub reply: mpsc::UnboundedSender<Result<(), BatchError>>,
}

/// What the handle tells the worker.
pub(super) enum Message {
    /// One more input.
    Job(Job),
    /// Before the first job: have every engine go through its sizes of batches.
    WarmUp(WarmUp),
    /// Take no more, finish what is queued, end.
    Close,
}
