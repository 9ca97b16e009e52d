//! The task that owns the queue and feeds one device.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::job::{BatchError, Job, Message, Reply};
use super::policy::BatchPolicy;
use super::queue::{Next, Queue};
use crate::domain::{Embedding, Prepared};
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
}

impl Device for DeviceThread {
    async fn embed(&mut self, batch: Vec<Prepared>) -> Result<Vec<Embedding>, BackendError> {
        self.run(batch).await
    }
}

pub(super) struct Worker<D> {
    device: D,
    inbox: Inbox,
    lost: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
}

/// The queue, and the channel that fills it.
struct Inbox {
    messages: mpsc::UnboundedReceiver<Message>,
    queue: Queue,
    /// What this queue counts for in the gauge.
    shown_depth: i64,
    metrics: Arc<Metrics>,
}

impl<D: Device> Worker<D> {
    pub fn new(
        device: D,
        policy: BatchPolicy,
        messages: mpsc::UnboundedReceiver<Message>,
        lost: watch::Sender<Option<String>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let inbox = Inbox { messages, queue: Queue::new(policy), shown_depth: 0, metrics: metrics.clone() };
        Self { device, inbox, lost, metrics }
    }

    /// Runs until told to close (and all is answered), or until the device is lost.
    pub async fn run(mut self) {
        loop {
            self.inbox.receive_all();
            match self.inbox.next_batch() {
                Next::Batch(jobs) => {
                    if let Err(reason) = self.compute(jobs).await {
                        return self.give_up(reason);
                    }
                }
                Next::WaitUntil(moment) => {
                    tokio::select! {
                        _ = self.inbox.receive() => {}
                        () = tokio::time::sleep_until(moment) => {}
                    }
                }
                Next::Empty => {
                    if !self.inbox.receive().await {
                        return;
                    }
                }
            }
        }
    }

    /// Computes and answers one batch while the queue keeps filling; `Err` when the device is lost.
    async fn compute(&mut self, jobs: Vec<Job>) -> Result<(), String> {
        let started = Instant::now();
        let modality = jobs[0].prepared.modality().as_str();
        self.metrics.batch_size.with_label_values(&[modality]).observe(jobs.len() as f64);
        let (batch, mut replies): (Vec<Prepared>, Vec<Reply>) = jobs
            .into_iter()
            .map(|job| {
                let wait = started.duration_since(job.enqueued_at).as_secs_f64();
                self.metrics.queue_wait_seconds.with_label_values(&[job.lane.as_str()]).observe(wait);
                (job.prepared, job.reply)
            })
            .unzip();
        let mut pass = pin!(self.device.embed(batch));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut pass => break result,
                open = self.inbox.receive() => if !open { break pass.await },
            }
        };
        self.metrics
            .inference_seconds
            .with_label_values(&[modality])
            .observe(started.elapsed().as_secs_f64());
        let (error, lost) = match result {
            Ok(vectors) => {
                replies.iter_mut().zip(vectors).for_each(|(reply, vector)| reply.send(Ok(vector)));
                return Ok(());
            }
            Err(error @ BackendError::Failed(_)) => {
                tracing::error!(%error, modality, inputs = replies.len(), "a batch failed");
                (BatchError::Failed(error.to_string()), Ok(()))
            }
            Err(error @ BackendError::DeviceLost(_)) => {
                (BatchError::Unavailable(error.to_string()), Err(error.to_string()))
            }
        };
        // The reason is known before the first answer, so that whoever sees one can ask for it.
        if let Err(reason) = &lost {
            self.lost.send_replace(Some(reason.clone()));
        }
        replies.iter_mut().for_each(|reply| reply.send(Err(error.clone())));
        lost
    }

    /// Answers all that wait; dropping the receiver refuses all that come.
    fn give_up(mut self, reason: String) {
        tracing::error!(reason, "the device is lost");
        self.inbox.messages.close();
        self.inbox.receive_all();
        for mut job in self.inbox.queue.drain() {
            job.reply.send(Err(BatchError::Unavailable(reason.clone())));
        }
        self.inbox.show_depth();
    }
}

impl Inbox {
    /// Waits for one message; false once closed and empty.
    ///
    /// Cancel safe, as the channel is.
    async fn receive(&mut self) -> bool {
        let message = self.messages.recv().await;
        message.map(|message| self.accept(message)).is_some()
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

    fn next_batch(&mut self) -> Next {
        let next = self.queue.next_batch(Instant::now());
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
