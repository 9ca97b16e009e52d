//! The task that owns the queue and feeds the engines.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::Span;

use super::job::{BatchError, Job, Message, Reply};
use super::policy::BatchPolicy;
use super::queue::{Demand, Kind, Next, Queue};
use super::share::CpuShare;
use crate::domain::{Embedding, Lane, Lanes, Modality, Prepared};
use crate::runtime::{BackendError, DeviceThread};
use crate::telemetry::Metrics;

/// Where batches are computed, one at a time.
///
/// A seam: the service has a [`DeviceThread`] here, tests of timing a device on tokio's paused clock.
pub trait Device: Send + 'static {
    /// One vector per input, in order.
    fn embed(
        &mut self,
        batch: Vec<Prepared>,
    ) -> impl Future<Output = Result<Vec<Embedding>, BackendError>> + Send;

    /// Most inputs of `modality` that it has memory for, once that is known.
    fn cap(&self, _modality: Modality) -> Option<usize> {
        None
    }

    /// How many batches were too large for its memory and were halved since this was last asked.
    fn take_splits(&mut self) -> u64 {
        0
    }

    /// What traces call it: `cpu`, `cuda:0`, ...
    fn name(&self) -> &str {
        "none"
    }
}

impl Device for DeviceThread {
    async fn embed(&mut self, batch: Vec<Prepared>) -> Result<Vec<Embedding>, BackendError> {
        self.run(batch).await
    }

    fn cap(&self, modality: Modality) -> Option<usize> {
        DeviceThread::cap(self, modality)
    }

    fn take_splits(&mut self) -> u64 {
        DeviceThread::take_splits(self)
    }

    fn name(&self) -> &str {
        DeviceThread::name(self)
    }
}

/// A device, and whom it works for.
struct Engine<D> {
    device: D,
    lanes: Lanes,
}

pub(super) struct Worker<D> {
    idle: Vec<Engine<D>>,
    passes: FuturesUnordered<Pin<Box<dyn Future<Output = Pass<D>> + Send>>>,
    inbox: Inbox,
    lost: watch::Sender<Option<String>>,
    /// Batches begun, by which traces of several requests show that they shared one.
    n_batches: u64,
    share: Arc<CpuShare>,
    metrics: Arc<Metrics>,
}

/// A batch that has been computed, by an engine that is idle again.
struct Pass<D> {
    engine: Engine<D>,
    kind: Kind,
    lane: Lane,
    started: Instant,
    /// The inputs' spans, open until they are answered.
    spans: Vec<Span>,
    replies: Vec<Reply>,
    result: Result<Vec<Embedding>, BackendError>,
}

/// The queue, and the channel that fills it.
struct Inbox {
    messages: mpsc::UnboundedReceiver<Message>,
    is_open: bool,
    queue: Queue,
    /// What this queue counts for in the gauge.
    shown_depth: i64,
    metrics: Arc<Metrics>,
}

impl<D: Device> Worker<D> {
    pub fn new(
        devices: Vec<(D, Lanes)>,
        policy: BatchPolicy,
        messages: mpsc::UnboundedReceiver<Message>,
        lost: watch::Sender<Option<String>>,
        share: Arc<CpuShare>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let idle = devices.into_iter().map(|(device, lanes)| Engine { device, lanes }).collect();
        let queue = Queue::new(policy);
        let inbox = Inbox { messages, is_open: true, queue, shown_depth: 0, metrics: metrics.clone() };
        Self { idle, passes: FuturesUnordered::new(), inbox, lost, n_batches: 0, share, metrics }
    }

    /// Runs until told to close (and all is answered), or until a device is lost.
    pub async fn run(mut self) {
        loop {
            self.inbox.receive_all();
            let due = self.feed();
            if !self.inbox.is_open && self.passes.is_empty() && due.is_none() {
                return;
            }
            tokio::select! {
                Some(pass) = self.passes.next() => if let Err(reason) = self.finish(pass) {
                    return self.give_up(reason).await;
                },
                () = self.inbox.receive(), if self.inbox.is_open => {}
                // The value is looked at even where the branch is off.
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// Gives every idle engine its next batch; the moment when there will be one for an engine that is left.
    fn feed(&mut self) -> Option<Instant> {
        let mut due: Option<Instant> = None;
        let mut idle = std::mem::take(&mut self.idle);
        while let Some(engine) = idle.pop() {
            // Engines for both lanes take what they can: who comes second waits for work, not for a person.
            let sharers = idle.iter().filter(|other| other.lanes == Lanes::Only(Lane::Bulk)).count() + 1;
            let demand = Demand {
                lanes: engine.lanes,
                caps: Modality::ALL.map(|modality| engine.device.cap(modality).unwrap_or(usize::MAX)),
                sharers,
                rests_until: match engine.lanes {
                    Lanes::Only(Lane::Search) => self.share.searches_rest_until(Instant::now()),
                    _ => None,
                },
            };
            match self.inbox.next_batch(&demand) {
                Next::Batch(jobs) => self.start(engine, jobs),
                Next::WaitUntil(moment) => {
                    due = Some(due.map_or(moment, |due| due.min(moment)));
                    self.idle.push(engine);
                }
                Next::Empty => self.idle.push(engine),
            }
        }
        due
    }

    /// Begins one batch.
    fn start(&mut self, mut engine: Engine<D>, jobs: Vec<Job>) {
        let started = Instant::now();
        let (kind, lane) = (Kind::of(&jobs[0].prepared), jobs[0].lane);
        let modality = kind.modality().as_str();
        self.metrics.batch_size.with_label_values(&[modality]).observe(jobs.len() as f64);
        self.n_batches += 1;
        let n_inputs = jobs.len();
        let (mut batch, mut replies, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            spans.push(job.trace.begin_forward(self.n_batches, n_inputs, engine.device.name()));
            batch.push(job.prepared);
            replies.push(job.reply);
        }
        self.passes.push(Box::pin(async move {
            let result = engine.device.embed(batch).await;
            Pass { engine, kind, lane, started, spans, replies, result }
        }));
    }

    /// Answers one batch; `Err` when its device is lost.
    fn finish(&mut self, pass: Pass<D>) -> Result<(), String> {
        let Pass { mut engine, kind, lane, started, spans, mut replies, result } = pass;
        let elapsed = started.elapsed();
        if engine.lanes == Lanes::Only(Lane::Search) {
            self.share.spend(started, started + elapsed);
        }
        // Before the answers, whose callers close the spans around these.
        drop(spans);
        let modality = kind.modality().as_str();
        self.metrics.inference_seconds.with_label_values(&[modality]).observe(elapsed.as_secs_f64());
        let item_seconds = elapsed.as_secs_f64() * replies.len() as f64;
        self.metrics.input_compute_seconds.with_label_values(&[lane.as_str()]).inc_by(item_seconds);
        self.count_errors(engine.device.take_splits(), result.as_ref().err());
        if let Some(cap) = engine.device.cap(kind.modality()) {
            self.metrics.batch_size_cap.with_label_values(&[modality]).set(cap as i64);
        }
        self.idle.push(engine);
        let (error, lost) = match result {
            Ok(vectors) => {
                if lane == Lane::Bulk {
                    self.inbox.queue.learn(kind, replies.len(), elapsed);
                }
                replies.iter_mut().zip(vectors).for_each(|(reply, vector)| reply.send(Ok(vector)));
                return Ok(());
            }
            Err(error @ BackendError::DeviceLost(_)) => {
                let reason = error.to_string();
                (BatchError::Unavailable(reason.clone()), Err(reason))
            }
            Err(error) => {
                tracing::error!(%error, modality, inputs = replies.len(), "a batch failed");
                (BatchError::Failed(error.to_string()), Ok(()))
            }
        };
        // The reason is known before the first answer, so that whoever sees one can ask for it.
        if let Err(reason) = &lost {
            self.lost.send_replace(Some(reason.clone()));
        }
        replies.iter_mut().for_each(|reply| reply.send(Err(error.clone())));
        lost
    }

    /// Counts what a pass met with on its device.
    fn count_errors(&self, n_splits: u64, error: Option<&BackendError>) {
        let errors = |kind| self.metrics.device_errors.with_label_values(&[kind]);
        errors("oom").inc_by(n_splits);
        match error {
            Some(BackendError::OutOfMemory(_)) => errors("oom").inc(),
            Some(BackendError::DeviceLost(_)) => errors("lost").inc(),
            Some(BackendError::Failed(_)) => errors("other").inc(),
            None => {}
        }
    }

    /// Answers all that wait, then those whose batch still runs on another engine; dropping the receiver refuses
    /// all that come.
    async fn give_up(mut self, reason: String) {
        tracing::error!(reason, "the device is lost");
        self.inbox.messages.close();
        self.inbox.receive_all();
        for mut job in self.inbox.queue.drain() {
            job.reply.send(Err(BatchError::Unavailable(reason.clone())));
        }
        self.inbox.show_depth();
        while let Some(pass) = self.passes.next().await {
            // Lost as well, or fine: the first reason stands.
            let _ = self.finish(pass);
        }
    }
}

impl Inbox {
    /// Waits for one message, or for the end of them.
    ///
    /// Cancel safe, as the channel is.
    async fn receive(&mut self) {
        match self.messages.recv().await {
            Some(message) => self.accept(message),
            // Every handle is gone.
            None => self.is_open = false,
        }
    }

    fn receive_all(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.accept(message);
        }
    }

    fn accept(&mut self, message: Message) {
        match message {
            Message::Job(job) => {
                self.queue.push(job);
                self.show_depth();
            }
            Message::Close => {
                self.messages.close();
                self.queue.stop_waiting();
            }
        }
    }

    fn next_batch(&mut self, demand: &Demand) -> Next {
        let next = self.queue.next_batch(Instant::now(), demand);
        self.show_depth();
        next
    }

    /// Moves the gauge by what changed: other models' queues count into it too.
    fn show_depth(&mut self) {
        let depth = self.queue.len() as i64;
        self.metrics.queue_depth.add(depth - self.shown_depth);
        self.shown_depth = depth;
    }
}

#[cfg(test)]
mod tests;
