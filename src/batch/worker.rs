//! The task that owns the queue and feeds the engines.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tracing::Span;

use super::job::{BatchError, Job, Message, Reply, WarmUp};
use super::policy::BatchPolicy;
use super::queue::{Demand, Kind, Next, Queue};
use super::share::CpuShare;
use crate::domain::{Lane, Lanes, Modality, Prepared};
use crate::runtime::{BackendError, Caps, DeviceThread, Results};
use crate::telemetry::Metrics;

/// Where batches are computed, one at a time.
///
/// A seam: the service has a [`DeviceThread`] here, tests of timing a device on tokio's paused clock.
pub trait Device: Send + 'static {
    /// One vector or error per input, in order.
    fn embed(&mut self, batch: Vec<Prepared>) -> impl Future<Output = Results> + Send;

    /// Passes over `input` in the sizes, up to `most`, that are worth one before the first request.
    fn warm_up(
        &mut self,
        input: Arc<Prepared>,
        most: usize,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// How long the last batch waited for those of other models that are computed there, too.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    /// What fits into its memory, if that is known ever.
    fn caps(&self) -> Option<&Caps> {
        None
    }

    /// What traces call it: `cpu`, `cuda:0`, ...
    fn name(&self) -> &str {
        "none"
    }
}

impl Device for DeviceThread {
    async fn embed(&mut self, batch: Vec<Prepared>) -> Results {
        DeviceThread::embed(self, batch).await
    }

    async fn warm_up(&mut self, input: Arc<Prepared>, most: usize) -> Result<(), BackendError> {
        DeviceThread::warm_up(self, input, most).await
    }

    fn waited(&self) -> Duration {
        DeviceThread::waited(self)
    }

    fn caps(&self) -> Option<&Caps> {
        Some(DeviceThread::caps(self))
    }

    fn name(&self) -> &str {
        DeviceThread::name(self)
    }
}

/// A device, and whom it works for.
struct Engine<D> {
    device: D,
    /// Those of one device have one number.
    device_id: usize,
    lanes: Lanes,
}

impl<D: Device> Engine<D> {
    fn cap(&self, modality: Modality) -> Option<usize> {
        self.device.caps()?.get(modality)
    }
}

/// A warm-up that takes longer will never end: the device hangs, or what was loaded computes in circles. So does a pass of the
/// CPU, which may have to wait for it.
const MAX_WARM_UP: Duration = Duration::from_secs(600);
/// The same of a pass of another device, which takes a second at most. Meilisearch repeats a request for five minutes: the
/// process has to be there again by then.
const MAX_PASS: Duration = Duration::from_secs(60);

pub(super) struct Worker<D> {
    idle: Vec<Engine<D>>,
    n_devices: usize,
    passes: FuturesUnordered<Pin<Box<dyn Future<Output = Ended<D>> + Send>>>,
    inbox: Inbox,
    lost: watch::Sender<Option<String>>,
    /// Batches begun, by which traces of several requests show that they shared one.
    n_batches: u64,
    share: Arc<CpuShare>,
    metrics: Arc<Metrics>,
}

/// What an engine did that is idle again.
struct Ended<D> {
    engine: Engine<D>,
    work: Work,
}

enum Work {
    Batch(Pass),
    WarmUp { result: Result<(), BackendError>, reply: mpsc::UnboundedSender<Result<(), BatchError>> },
}

/// A batch that has been computed.
struct Pass {
    kind: Kind,
    lane: Lane,
    started: Instant,
    /// The inputs' spans, open until they are answered.
    spans: Vec<Span>,
    replies: Vec<Reply>,
    results: Results,
}

/// The queue, and the channel that fills it.
struct Inbox {
    messages: mpsc::UnboundedReceiver<Message>,
    is_open: bool,
    queue: Queue,
    warm_ups: Vec<WarmUp>,
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
        let mut names = Vec::new();
        let engine = |(device, lanes): (D, Lanes)| {
            let known = names.iter().position(|name| name == device.name());
            let device_id = known.unwrap_or_else(|| {
                names.push(device.name().to_owned());
                names.len() - 1
            });
            Engine { device, device_id, lanes }
        };
        let idle = devices.into_iter().map(engine).collect();
        let queue = Queue::new(policy);
        let inbox = Inbox {
            messages,
            is_open: true,
            queue,
            warm_ups: Vec::new(),
            shown_depth: 0,
            metrics: metrics.clone(),
        };
        let n_devices = names.len();
        Self { idle, n_devices, passes: FuturesUnordered::new(), inbox, lost, n_batches: 0, share, metrics }
    }

    /// Runs until told to close (and all is answered), or until a device is lost.
    pub async fn run(mut self) {
        loop {
            self.inbox.receive_all();
            self.warm_up();
            let due = self.feed();
            if !self.inbox.is_open && self.passes.is_empty() && due.is_none() {
                return;
            }
            tokio::select! {
                Some(ended) = self.passes.next() => if let Err(reason) = self.finish(ended) {
                    return self.give_up(reason).await;
                },
                () = self.inbox.receive(), if self.inbox.is_open => {}
                // The value is looked at even where the branch is off.
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// Has every idle engine warm up, if that is asked for.
    fn warm_up(&mut self) {
        for WarmUp { input, most, reply } in self.inbox.warm_ups.drain(..) {
            for mut engine in self.idle.drain(..) {
                let (input, reply) = (input.clone(), reply.clone());
                self.passes.push(Box::pin(async move {
                    let result = timeout(MAX_WARM_UP, engine.device.warm_up(input, most)).await;
                    let result = result.unwrap_or_else(|_| Err(hangs(MAX_WARM_UP)));
                    Ended { engine, work: Work::WarmUp { result, reply } }
                }));
            }
        }
    }

    /// Gives every idle engine its next batch; the moment when there will be one for an engine that is left.
    fn feed(&mut self) -> Option<Instant> {
        let mut due: Option<Instant> = None;
        let mut idle = std::mem::take(&mut self.idle);
        if self.n_devices > 1 {
            // The last goes first, one of the device that has most of them idle: two batches would share a GPU else, beside
            // one that does nothing.
            let mut n_idle = vec![0; self.n_devices];
            idle.sort_by_cached_key(|engine| {
                n_idle[engine.device_id] += 1;
                n_idle[engine.device_id]
            });
        }
        while let Some(engine) = idle.pop() {
            // Engines for both lanes take what they can: who comes second waits for work, not for a person.
            let sharers = idle.iter().filter(|other| other.lanes == Lanes::Only(Lane::Bulk)).count() + 1;
            let demand = Demand {
                lanes: engine.lanes,
                caps: Modality::ALL.map(|modality| engine.cap(modality).unwrap_or(usize::MAX)),
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
        for mut job in jobs {
            job.reply.begin_pass();
            spans.push(job.trace.begin_forward(self.n_batches, n_inputs, engine.device.name()));
            batch.push(job.prepared);
            replies.push(job.reply);
        }
        self.passes.push(Box::pin(async move {
            let time = if engine.device.name() == "cpu" { MAX_WARM_UP } else { MAX_PASS };
            let results = timeout(time, engine.device.embed(batch)).await;
            let results = results.unwrap_or_else(|_| vec![Err(hangs(time)); n_inputs]);
            Ended { engine, work: Work::Batch(Pass { kind, lane, started, spans, replies, results }) }
        }));
    }

    /// Answers what an engine did; `Err` when its device is lost.
    fn finish(&mut self, ended: Ended<D>) -> Result<(), String> {
        let Ended { engine, work } = ended;
        let outcome = match work {
            Work::Batch(pass) => self.finish_batch(&engine, pass),
            Work::WarmUp { result, reply } => self.finish_warm_up(result, &reply),
        };
        self.idle.push(engine);
        outcome
    }

    fn finish_batch(&mut self, engine: &Engine<D>, pass: Pass) -> Result<(), String> {
        let Pass { kind, lane, started, spans, mut replies, results } = pass;
        let elapsed = started.elapsed();
        // The passes of other models say nothing of this one's pace.
        let computed = elapsed.saturating_sub(engine.device.waited());
        if engine.lanes == Lanes::Only(Lane::Search) {
            self.share.spend(started, started + elapsed);
        }
        // Before the answers, whose callers close the spans around these.
        drop(spans);
        let modality = kind.modality().as_str();
        self.metrics.inference_seconds.with_label_values(&[modality]).observe(computed.as_secs_f64());
        let item_seconds = elapsed.as_secs_f64() * replies.len() as f64;
        self.metrics.input_compute_seconds.with_label_values(&[lane.as_str()]).inc_by(item_seconds);
        if let Some(caps) = engine.device.caps() {
            self.count_errors("oom", caps.take_splits());
        }
        if let Some(cap) = engine.cap(kind.modality()) {
            // The smallest of all models and devices.
            let shown = self.metrics.batch_size_cap.with_label_values(&[modality]);
            shown.set(Some(shown.get()).filter(|shown| *shown > 0).map_or(cap as i64, |s| s.min(cap as i64)));
        }
        let errors: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        let lost = self.look_for_loss(errors.iter().copied());
        match (&errors[..], &lost) {
            ([], _) => self.inbox.queue.learn(lane, kind, replies.len(), computed),
            (_, Err(_)) => {}
            ([error, ..], Ok(())) => {
                let n_failed = errors.len();
                tracing::error!(%error, modality, inputs = replies.len(), n_failed, "inputs have no vector");
                let n_oom = errors.iter().filter(|e| matches!(e, BackendError::OutOfMemory(_))).count();
                self.count_errors("oom", n_oom as u64);
                self.count_errors("other", (n_failed - n_oom) as u64);
            }
        }
        replies.iter_mut().zip(results).for_each(|(reply, result)| reply.send(result.map_err(Into::into)));
        lost
    }

    fn finish_warm_up(
        &mut self,
        result: Result<(), BackendError>,
        reply: &mpsc::UnboundedSender<Result<(), BatchError>>,
    ) -> Result<(), String> {
        let lost = self.look_for_loss(result.as_ref().err());
        // Who waits may have had enough.
        let _ = reply.send(result.map_err(Into::into));
        lost
    }

    /// `Err` with the reason when one of the errors of a pass is the loss of its device. To be called before the pass is
    /// answered, so that whoever sees an answer can ask for the reason.
    fn look_for_loss<'a>(&self, errors: impl IntoIterator<Item = &'a BackendError>) -> Result<(), String> {
        match errors.into_iter().find(|error| matches!(error, BackendError::DeviceLost(_))) {
            None => Ok(()),
            Some(error) => {
                self.count_errors("lost", 1);
                let reason = error.to_string();
                self.lost.send_replace(Some(reason.clone()));
                Err(reason)
            }
        }
    }

    fn count_errors(&self, kind: &str, n: u64) {
        self.metrics.device_errors.with_label_values(&[kind]).inc_by(n);
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
        while let Some(ended) = self.passes.next().await {
            // Lost as well, or fine: the first reason stands.
            let _ = self.finish(ended);
        }
        // An engine ends with its thread. One that hangs never does, and this thread has others to run.
        thread::spawn(move || drop(self));
    }
}

fn hangs(time: Duration) -> BackendError {
    BackendError::DeviceLost(format!("a pass has not ended after {} s", time.as_secs()))
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
            Message::WarmUp(warm_up) => self.warm_ups.push(warm_up),
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
