//! The OS thread that owns one backend.
//!
//! Engines bind state to the thread they run on and block it for as long as a forward pass takes, so each
//! gets one of its own; the others talk to it by channel.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::memory::{Caps, Splitter};
use super::{Backend, BackendError};
use crate::domain::{Embedding, Prepared};

/// One vector or error per input of a batch, in order.
pub type Results = Vec<Result<Embedding, BackendError>>;

/// What the thread is asked for.
enum Order {
    Embed { batch: Vec<Prepared>, reply: oneshot::Sender<(Results, Duration)> },
    WarmUp { input: Arc<Prepared>, most: usize, reply: oneshot::Sender<Result<(), BackendError>> },
}

/// A backend on its own thread. Dropping it waits for the pass that runs, then for the thread's end.
pub struct DeviceThread {
    // An Option, so that dropping can close the channel before joining.
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    device: String,
    caps: Arc<Caps>,
    waited: Duration,
}

impl DeviceThread {
    /// Moves `backend` to a new thread, named after the device, whose memory holds what `caps` says.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(backend: Box<dyn Backend>, device: &str, caps: Arc<Caps>) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let mut splitter = Splitter::new(backend, caps.clone());
        let thread = std::thread::Builder::new().name(format!("device-{device}")).spawn(move || {
            splitter.enter_thread();
            for order in inbox {
                // A caller that has left is not missed.
                match order {
                    Order::Embed { batch, reply } => {
                        let results = splitter.embed(&batch);
                        let _ = reply.send((results, splitter.waited()));
                    }
                    Order::WarmUp { input, most, reply } => _ = reply.send(splitter.warm_up(&input, most)),
                }
            }
        })?;
        let device = device.to_owned();
        Ok(Self { orders: Some(orders), thread: Some(thread), device, caps, waited: Duration::ZERO })
    }

    /// The device, as it was given.
    pub fn name(&self) -> &str {
        &self.device
    }

    /// What fits into the device's memory.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// How long the passes of the last batch waited for those of other models.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// One forward pass, or several where the batch does not fit into memory or fails: one vector or error per input, in
    /// order. A panic of the backend is [`BackendError::Failed`].
    ///
    /// # Cancel safety
    /// A pass that was begun runs to its end; its vectors are dropped.
    pub async fn embed(&mut self, batch: Vec<Prepared>) -> Results {
        let n_inputs = batch.len();
        let answer = self.ask(|reply| Order::Embed { batch, reply }).await;
        let (results, waited) = answer.unwrap_or_else(|ended| (vec![Err(ended); n_inputs], Duration::ZERO));
        self.waited = waited;
        results
    }

    /// Passes over `input` in the sizes, up to `most`, that the backend names.
    ///
    /// # Errors
    /// [`BackendError`], of the first pass that failed.
    pub async fn warm_up(&self, input: Arc<Prepared>, most: usize) -> Result<(), BackendError> {
        self.ask(|reply| Order::WarmUp { input, most, reply }).await.unwrap_or_else(Err)
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, BackendError> {
        let ended = || BackendError::DeviceLost("its thread has ended".into());
        let (reply, answer) = oneshot::channel();
        self.orders.as_ref().ok_or_else(ended)?.send(order(reply)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and answered.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::domain::Tokens;
    use crate::runtime::stub::{StubBackend, StubFault};

    fn text(id: u32) -> Prepared {
        Prepared::Tokens(Tokens { ids: vec![id], n_tokens: 1, truncated: false })
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_the_thread_lives_on() {
        let backend =
            StubBackend::new(4).with_faults(|input| (*input == text(9)).then_some(StubFault::Panic));
        let mut thread = DeviceThread::spawn(Box::new(backend), "stub", Arc::default()).unwrap();
        let results = thread.embed(vec![text(1), text(9)]).await;
        let [Ok(_), Err(BackendError::Failed(reason))] = &results[..] else { panic!("{results:?}") };
        assert!(reason.starts_with("panicked: "), "{reason}");
        let vectors = thread.embed(vec![text(1), text(2), text(1)]).await;
        assert_eq!(vectors[0], vectors[2]);
        assert_ne!(vectors[0], vectors[1]);
    }

    struct Forgetful;

    impl Backend for Forgetful {
        fn embed(&mut self, _: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn a_wrong_number_of_vectors_is_a_failure() {
        let mut thread = DeviceThread::spawn(Box::new(Forgetful), "stub", Arc::default()).unwrap();
        let results = thread.embed(vec![text(1)]).await;
        assert_eq!(results, [Err(BackendError::Failed("0 vectors for 1 inputs".into()))]);
    }

    /// Waits a second before each pass.
    struct Patient(StubBackend);

    impl Backend for Patient {
        fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
            self.0.embed(batch)
        }

        fn waited(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    #[tokio::test]
    async fn it_tells_how_long_all_passes_of_the_last_batch_waited() {
        let backend = StubBackend::new(4).with_faults(|input| (*input == text(9)).then_some(StubFault::Fail));
        let mut thread = DeviceThread::spawn(Box::new(Patient(backend)), "stub", Arc::default()).unwrap();
        thread.warm_up(text(1).into(), 1).await.unwrap();
        assert_eq!(thread.waited(), Duration::ZERO, "that was no batch");
        for (batch, passes) in [(vec![text(1), text(9)], 3), (vec![text(1), text(2)], 1)] {
            thread.embed(batch).await;
            assert_eq!(thread.waited(), Duration::from_secs(passes));
        }
    }

    struct SetOnDrop(Arc<AtomicBool>);

    impl Backend for SetOnDrop {
        fn embed(&mut self, _: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
            Ok(Vec::new())
        }
    }

    impl Drop for SetOnDrop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn dropping_joins_the_thread() {
        let gone = Arc::new(AtomicBool::new(false));
        drop(DeviceThread::spawn(Box::new(SetOnDrop(gone.clone())), "stub", Arc::default()).unwrap());
        assert!(gone.load(Ordering::SeqCst));
    }
}
