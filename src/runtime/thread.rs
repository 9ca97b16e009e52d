//! The OS thread that owns one backend.
//!
//! Engines bind state to the thread they run on and block it for as long as a forward pass takes, so each
//! gets one of its own; the others talk to it by channel.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::memory::{Caps, Splitter};
use super::{Backend, BackendError};
use crate::domain::{Embedding, Modality, Prepared};

struct Pass {
    batch: Vec<Prepared>,
    reply: oneshot::Sender<Result<Vec<Embedding>, BackendError>>,
}

/// A backend on its own thread. Dropping it waits for the pass that runs, then for the thread's end.
pub struct DeviceThread {
    // An Option, so that dropping can close the channel before joining.
    passes: Option<mpsc::Sender<Pass>>,
    thread: Option<JoinHandle<()>>,
    device: String,
    caps: Arc<Caps>,
}

impl DeviceThread {
    /// Moves `backend` to a new thread, named after the device.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(backend: Box<dyn Backend>, device: &str) -> std::io::Result<Self> {
        let (passes, inbox) = mpsc::channel::<Pass>();
        let caps = Arc::new(Caps::default());
        let mut splitter = Splitter::new(backend, caps.clone());
        let thread = std::thread::Builder::new().name(format!("device-{device}")).spawn(move || {
            splitter.enter_thread();
            for pass in inbox {
                // A caller that has left is not missed.
                let _ = pass.reply.send(splitter.embed(&pass.batch));
            }
        })?;
        Ok(Self { passes: Some(passes), thread: Some(thread), device: device.to_owned(), caps })
    }

    /// The device, as it was given.
    pub fn name(&self) -> &str {
        &self.device
    }

    /// The largest batch of `modality` that is tried, once a larger one did not fit into the device's memory.
    pub fn cap(&self, modality: Modality) -> Option<usize> {
        self.caps.get(modality)
    }

    /// How many batches did not fit into memory and were halved since this was last asked.
    pub fn take_splits(&mut self) -> u64 {
        self.caps.take_splits()
    }

    /// One forward pass, or several where the batch does not fit into memory: one vector per input, in order.
    ///
    /// # Errors
    /// [`BackendError`]; a panic of the backend is [`BackendError::Failed`].
    ///
    /// # Cancel safety
    /// A pass that was begun runs to its end; its vectors are dropped.
    pub async fn run(&self, batch: Vec<Prepared>) -> Result<Vec<Embedding>, BackendError> {
        let ended = || BackendError::DeviceLost("its thread has ended".into());
        let (reply, answer) = oneshot::channel();
        let passes = self.passes.as_ref().ok_or_else(ended)?;
        passes.send(Pass { batch, reply }).map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        drop(self.passes.take());
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
        let thread = DeviceThread::spawn(Box::new(backend), "stub").unwrap();
        let error = thread.run(vec![text(1), text(9)]).await.unwrap_err();
        assert!(matches!(&error, BackendError::Failed(text) if text.starts_with("panicked: ")), "{error}");
        let vectors = thread.run(vec![text(1), text(2), text(1)]).await.unwrap();
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
        let thread = DeviceThread::spawn(Box::new(Forgetful), "stub").unwrap();
        let error = thread.run(vec![text(1)]).await.unwrap_err();
        assert_eq!(error, BackendError::Failed("0 vectors for 1 inputs".into()));
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
        drop(DeviceThread::spawn(Box::new(SetOnDrop(gone.clone())), "stub").unwrap());
        assert!(gone.load(Ordering::SeqCst));
    }
}
