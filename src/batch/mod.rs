//! Merges inputs from all requests into batches for the engines of one model.
//!
//! [`Batcher`] is the cloneable handle; a task (`worker.rs`) owns the queue (`queue.rs`, plain state) and
//! gives each engine its next batch whenever it is free, by the rules of [`BatchPolicy`].

mod job;
mod policy;
mod queue;
mod share;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use job::{BatchError, OnPass};
pub use policy::BatchPolicy;
pub use share::{BulkRequest, CpuShare};
pub use worker::Device;

use crate::domain::{Embedding, Lane, Lanes, Prepared};
use crate::telemetry::Metrics;
use job::{Job, Message, Reply, Trace, Wait, WarmUp};
use worker::Worker;

const STOPPING: &str = "the service is stopping";
const STOPPED: &str = "the batch worker has stopped";

/// The handle to the queue and its device. Cheap to clone.
#[derive(Clone)]
pub struct Batcher {
    inner: Arc<Inner>,
}

struct Inner {
    messages: mpsc::UnboundedSender<Message>,
    lost: watch::Receiver<Option<String>>,
    closing: AtomicBool,
    metrics: Arc<Metrics>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Batcher {
    /// Starts the worker of `devices`, each with the lanes that it serves; every lane needs one. `share` is one for all
    /// models. Must be called inside a tokio runtime.
    pub fn spawn<D: Device>(
        devices: Vec<(D, Lanes)>,
        policy: BatchPolicy,
        share: Arc<CpuShare>,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Not bounded: admission bounds the inputs in the house before any of them is prepared.
        let (messages, inbox) = mpsc::unbounded_channel();
        let (lost_sender, lost) = watch::channel(None);
        let worker = Worker::new(devices, policy, inbox, lost_sender, share, metrics.clone());
        let worker = Mutex::new(Some(tokio::spawn(worker.run())));
        Self { inner: Arc::new(Inner { messages, lost, closing: AtomicBool::new(false), metrics, worker }) }
    }

    /// The vector of one input, computed in a batch with others.
    ///
    /// # Errors
    /// [`BatchError`]: the deadline passed while it waited, its batch failed, or the device is gone.
    ///
    /// # Cancel safety
    /// Dropping the future takes the input out of the queue; a batch that already runs is not stopped.
    pub async fn submit(
        &self,
        prepared: Prepared,
        lane: Lane,
        deadline: Instant,
    ) -> Result<Embedding, BatchError> {
        self.submit_with(prepared, lane, deadline, Box::new(|| ())).await
    }

    /// The same; `on_pass` is called once the batch begins, within the worker: it should take no time. From then on the
    /// input is computed whether anybody waits or not.
    ///
    /// # Errors
    /// # Cancel safety
    /// As [`Self::submit`].
    pub async fn submit_with(
        &self,
        prepared: Prepared,
        lane: Lane,
        deadline: Instant,
        on_pass: OnPass,
    ) -> Result<Embedding, BatchError> {
        let (sender, answer) = oneshot::channel();
        let reply = Reply::new(sender).with_on_pass(on_pass);
        let seconds = self.inner.metrics.queue_wait_seconds.with_label_values(&[lane.as_str()]);
        let (wait, trace) = (Wait::new(Instant::now(), seconds), Trace::begin_wait(lane));
        let job = Job { prepared, lane, wait, deadline, trace, reply };
        self.inner.messages.send(Message::Job(job)).map_err(|_| self.unavailable())?;
        answer.await.unwrap_or_else(|_| Err(self.unavailable()))
    }

    /// Has every engine go through the sizes of batches, up to `most`, that it wants to know before the first input, filled
    /// with `input`. Engines that are busy are left out.
    ///
    /// # Errors
    /// [`BatchError`] of one that could not.
    pub async fn warm_up(&self, input: Prepared, most: usize) -> Result<(), BatchError> {
        let (reply, mut answers) = mpsc::unbounded_channel();
        let warm_up = WarmUp { input: Arc::new(input), most, reply };
        self.inner.messages.send(Message::WarmUp(warm_up)).map_err(|_| self.unavailable())?;
        while let Some(answer) = answers.recv().await {
            answer?;
        }
        Ok(())
    }

    /// Resolves with the reason once the device is lost, else never.
    pub async fn device_lost(&self) -> String {
        let mut lost = self.inner.lost.clone();
        let reason = match lost.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            // The worker is gone without a reason: stopped as asked, or it panicked.
            Err(_) => (!self.inner.closing.load(Ordering::Acquire)).then(|| STOPPED.to_string()),
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Takes no more inputs, finishes what is queued, and ends the worker and its device.
    pub async fn shut_down(&self) {
        self.inner.closing.store(true, Ordering::Release);
        let _ = self.inner.messages.send(Message::Close);
        if let Some(worker) = self.inner.worker.lock().await.take() {
            // A worker that panicked has nothing left to finish.
            let _ = worker.await;
        }
    }

    fn unavailable(&self) -> BatchError {
        let lost = self.inner.lost.borrow().clone();
        let stopped = if self.inner.closing.load(Ordering::Acquire) { STOPPING } else { STOPPED };
        BatchError::Unavailable(lost.unwrap_or_else(|| stopped.to_string()))
    }
}
