//! Batches that do not fit into the device's memory: split until they do, and not tried so large again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{Backend, BackendError};
use crate::domain::{Embedding, Modality, Prepared};

/// The largest batch of each modality that is still tried, and how often one was too large.
#[derive(Debug, Default)]
pub(super) struct Caps {
    /// 0 where nothing is known.
    largest: [AtomicUsize; Modality::ALL.len()],
    splits: AtomicU64,
}

impl Caps {
    /// The cap, once one was learnt.
    pub fn get(&self, modality: Modality) -> Option<usize> {
        Some(self.largest[modality as usize].load(Ordering::Relaxed)).filter(|cap| *cap > 0)
    }

    /// The batches that were split since this was last asked.
    pub fn take_splits(&self) -> u64 {
        self.splits.swap(0, Ordering::Relaxed)
    }

    /// Keeps the cap of a batch that is split.
    fn split(&self, modality: Modality, cap: usize) {
        self.largest[modality as usize].store(cap, Ordering::Relaxed);
        self.splits.fetch_add(1, Ordering::Relaxed);
    }
}

/// A backend whose batches are as large as its memory allows.
pub(super) struct Splitter {
    backend: Box<dyn Backend>,
    caps: Arc<Caps>,
}

impl Splitter {
    /// Writes what it learns to `caps`.
    pub fn new(backend: Box<dyn Backend>, caps: Arc<Caps>) -> Self {
        Self { backend, caps }
    }

    /// As [`Backend::enter_thread`].
    pub fn enter_thread(&mut self) {
        self.backend.enter_thread();
    }

    /// One vector per input, in order, in as many passes as it takes. What ran out of memory is tried again
    /// in halves, down to one input, and no later batch of the modality is larger than what then fitted: memory
    /// that others took may come back, but each try costs everybody a pass.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] where one input alone does not fit; else as the backend says.
    pub fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        let mut vectors = Vec::with_capacity(batch.len());
        while let rest = &batch[vectors.len()..]
            && let Some(first) = rest.first()
        {
            let modality = first.modality();
            let size = self.caps.get(modality).unwrap_or(usize::MAX).min(rest.len());
            match run_guarded(self.backend.as_mut(), &rest[..size]) {
                Ok(more) => vectors.extend(more),
                Err(BackendError::OutOfMemory(reason)) if size > 1 => {
                    let cap = size / 2;
                    let modality_name = modality.as_str();
                    tracing::warn!(reason, size, cap, modality = modality_name, "a batch is split");
                    self.caps.split(modality, cap);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }
}

/// One pass in which a panic, and a wrong number of vectors, are errors of this batch alone.
pub(crate) fn run_guarded(
    backend: &mut (impl Backend + ?Sized),
    batch: &[Prepared],
) -> Result<Vec<Embedding>, BackendError> {
    // A backend holds weights, which a pass only reads: a broken-off one leaves nothing half done.
    let result = catch_unwind(AssertUnwindSafe(|| backend.embed(batch)))
        .unwrap_or_else(|panic| Err(BackendError::Failed(format!("panicked: {}", text_of(panic.as_ref())))));
    match result {
        Ok(vectors) if vectors.len() != batch.len() => {
            let (n_vectors, n_inputs) = (vectors.len(), batch.len());
            Err(BackendError::Failed(format!("{n_vectors} vectors for {n_inputs} inputs")))
        }
        other => other,
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Pixels, Tokens};
    use crate::runtime::stub::{StubBackend, StubFault, StubRecord};

    fn texts(ids: std::ops::Range<u32>) -> Vec<Prepared> {
        ids.map(|id| Prepared::Tokens(Tokens { ids: vec![id], n_tokens: 1, truncated: false })).collect()
    }

    /// A backend with room for `room` inputs, and the sizes that it was asked for.
    struct Cramped {
        inner: StubBackend,
        room: usize,
    }

    impl Backend for Cramped {
        fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
            let vectors = self.inner.embed(batch);
            if batch.len() > self.room { Err(BackendError::OutOfMemory("full".into())) } else { vectors }
        }
    }

    fn cramped(room: usize) -> (Splitter, StubRecord) {
        let inner = StubBackend::new(4);
        let record = inner.record();
        (Splitter::new(Box::new(Cramped { inner, room }), Arc::default()), record)
    }

    #[test]
    fn a_batch_that_does_not_fit_is_split_and_the_cap_is_kept() {
        let (mut splitter, record) = cramped(3);
        let expected = StubBackend::new(4).embed(&texts(0..10)).unwrap();
        assert_eq!(splitter.embed(&texts(0..10)), Ok(expected));
        let sizes = || record.batches().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(), [10, 5, 2, 2, 2, 2, 2]);
        assert_eq!((splitter.caps.take_splits(), splitter.caps.take_splits()), (2, 0));
        record.clear();
        splitter.embed(&texts(0..4)).unwrap();
        assert_eq!(sizes(), [2, 2]);
        assert_eq!(splitter.caps.get(Modality::Text), Some(2));
        assert_eq!(splitter.caps.get(Modality::Image), None, "pictures have a cap of their own");
        let pixels = || Prepared::Pixels(Pixels { rgb8: vec![0; 3], height: 1, width: 1 });
        splitter.embed(&[pixels(), pixels(), pixels()]).unwrap();
        assert_eq!(splitter.caps.get(Modality::Image), None);
    }

    #[test]
    fn one_input_that_does_not_fit_is_an_error() {
        let (mut splitter, record) = cramped(0);
        assert_eq!(splitter.embed(&texts(0..3)), Err(BackendError::OutOfMemory("full".into())));
        assert_eq!(record.batches().iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn other_faults_are_passed_on() {
        let backend = StubBackend::new(4).with_faults(|_| Some(StubFault::Lose));
        let mut splitter = Splitter::new(Box::new(backend), Arc::default());
        assert!(matches!(splitter.embed(&texts(0..2)), Err(BackendError::DeviceLost(_))));
        assert_eq!(splitter.caps.get(Modality::Text), None);
    }
}
