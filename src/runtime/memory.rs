//! Batches that cannot be computed as they are: what does not fit into the device's memory is split until it does, and
//! not tried so large again; what fails for one of its inputs is split until that one is alone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::{Backend, BackendError};
use crate::domain::{Embedding, Modality, Prepared};

/// What fits into the memory of one device for one model: learnt by any of its engines there, minded by all.
#[derive(Debug, Default)]
pub struct Caps {
    /// Pictures, or tokens of texts with their padding; 0 where nothing is known.
    largest: [AtomicUsize; Modality::ALL.len()],
    splits: AtomicU64,
}

impl Caps {
    /// The largest batch of `modality` that is tried, once a larger one did not fit: in pictures, or in tokens, each text
    /// as long as the longest.
    pub fn get(&self, modality: Modality) -> Option<usize> {
        Some(self.largest[modality as usize].load(Ordering::Relaxed)).filter(|cap| *cap > 0)
    }

    /// How many batches were split for want of memory since this was last asked.
    pub fn take_splits(&self) -> u64 {
        self.splits.swap(0, Ordering::Relaxed)
    }

    /// How many of these inputs of one modality, at least 1, are tried at once.
    fn most(&self, batch: &[Prepared]) -> usize {
        let cap = batch.first().and_then(|first| self.get(first.modality()));
        cap.map_or(usize::MAX, |cap| (cap / size_of_each(batch)).max(1))
    }

    /// Keeps that `batch` was too large, and no more than half of its inputs may be tried.
    fn split(&self, batch: &[Prepared], modality: Modality) -> usize {
        let cap = (batch.len() / 2).max(1) * size_of_each(batch);
        // Another engine may have learnt a smaller one meanwhile.
        let keep = |known| (known == 0 || known > cap).then_some(cap);
        let largest = &self.largest[modality as usize];
        let _is_smaller = largest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, keep);
        self.splits.fetch_add(1, Ordering::Relaxed);
        cap
    }
}

/// What each input of a batch of one modality counts for: 1 for a picture, for texts the tokens of the longest.
fn size_of_each(batch: &[Prepared]) -> usize {
    batch.iter().map(Prepared::length).max().unwrap_or(1).max(1)
}

/// A backend whose batches are as large as its memory allows, and whose inputs do not fail for each other.
pub(super) struct Splitter {
    backend: Box<dyn Backend>,
    caps: Arc<Caps>,
    waited: Duration,
}

impl Splitter {
    /// Writes what it learns to `caps`.
    pub fn new(backend: Box<dyn Backend>, caps: Arc<Caps>) -> Self {
        Self { backend, caps, waited: Duration::ZERO }
    }

    /// As [`Backend::enter_thread`].
    pub fn enter_thread(&mut self) {
        self.backend.enter_thread();
    }

    /// Computes batches of `input` alone, in each of [`Backend::warm_sizes`].
    ///
    /// # Errors
    /// As the backend says.
    pub fn warm_up(&mut self, input: &Prepared, most: usize) -> Result<(), BackendError> {
        for size in self.backend.warm_sizes(most) {
            self.embed(&vec![input.clone(); size]).into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        Ok(())
    }

    /// One vector or error per input, in order, in as many passes as it takes. What ran out of memory is tried again
    /// in halves, down to one input, and no later batch of the modality is larger than what then fitted: memory
    /// that others took may come back, but each try costs everybody a pass. What failed otherwise is halved, too, since
    /// one input can make a whole batch fail, whose others are strangers to it.
    pub fn embed(&mut self, batch: &[Prepared]) -> Vec<Result<Embedding, BackendError>> {
        let mut results = Vec::with_capacity(batch.len());
        // Behind a failure; it grows again with each pass.
        let mut most = usize::MAX;
        self.waited = Duration::ZERO;
        while let rest = &batch[results.len()..]
            && let Some(first) = rest.first()
        {
            let size = self.caps.most(rest).min(most).min(rest.len());
            let part = &rest[..size];
            let result = run_guarded(self.backend.as_mut(), part);
            self.waited += self.backend.waited();
            match result {
                Ok(vectors) => {
                    results.extend(vectors.into_iter().map(Ok));
                    most = most.saturating_mul(2);
                }
                Err(BackendError::OutOfMemory(reason)) if size > 1 => {
                    let modality = first.modality();
                    let cap = self.caps.split(part, modality);
                    tracing::warn!(reason, size, cap, modality = modality.as_str(), "a batch is split");
                }
                Err(BackendError::Failed(reason) | BackendError::Unusable(reason)) if size > 1 => {
                    tracing::warn!(reason, size, "a batch failed: it is tried in halves");
                    most = size / 2;
                }
                Err(error @ BackendError::DeviceLost(_)) => results.resize(batch.len(), Err(error)),
                Err(error) => {
                    results.push(Err(error));
                    most = most.saturating_mul(2);
                }
            }
        }
        results
    }

    /// As [`Backend::waited`], for all passes of the last batch.
    pub fn waited(&self) -> Duration {
        self.waited
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

    fn all(results: Vec<Result<Embedding, BackendError>>) -> Result<Vec<Embedding>, BackendError> {
        results.into_iter().collect()
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
        assert_eq!(all(splitter.embed(&texts(0..10))), Ok(expected));
        let sizes = || record.batches().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(), [10, 5, 2, 2, 2, 2, 2]);
        assert_eq!((splitter.caps.take_splits(), splitter.caps.take_splits()), (2, 0));
        record.clear();
        all(splitter.embed(&texts(0..4))).unwrap();
        assert_eq!(sizes(), [2, 2]);
        assert_eq!(splitter.caps.get(Modality::Text), Some(2));
        assert_eq!(splitter.caps.get(Modality::Image), None, "pictures have a cap of their own");
        let pixels = || Prepared::Pixels(Pixels { rgb8: vec![0; 3], height: 1, width: 1 });
        all(splitter.embed(&[pixels(), pixels(), pixels()])).unwrap();
        assert_eq!(splitter.caps.get(Modality::Image), None);
    }

    #[test]
    fn one_input_that_does_not_fit_is_an_error() {
        let (mut splitter, record) = cramped(0);
        let full = || Err(BackendError::OutOfMemory("full".into()));
        assert_eq!(splitter.embed(&texts(0..3)), [full(), full(), full()]);
        assert_eq!(record.batches().iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1, 1]);
    }

    #[test]
    fn long_texts_that_do_not_fit_say_little_of_short_ones() {
        let long = || Prepared::Tokens(Tokens { ids: vec![7; 100], n_tokens: 100, truncated: false });
        let (mut splitter, record) = cramped(3);
        all(splitter.embed(&[long(), long(), long(), long()])).unwrap();
        assert_eq!(splitter.caps.get(Modality::Text), Some(200), "tokens");
        record.clear();
        all(splitter.embed(&texts(0..3))).unwrap();
        assert_eq!(record.batches().len(), 1);
    }

    #[test]
    fn what_one_engine_learnt_the_others_mind() {
        let (mut one, _) = cramped(2);
        let inner = StubBackend::new(4);
        let record = inner.record();
        let mut other = Splitter::new(Box::new(inner), one.caps.clone());
        all(one.embed(&texts(0..4))).unwrap();
        all(other.embed(&texts(0..4))).unwrap();
        assert_eq!(record.batches().iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn an_input_that_fails_fails_alone() {
        for fault in [StubFault::Fail, StubFault::Panic] {
            let backend = StubBackend::new(4).with_faults(move |input| {
                [5, 9].map(|id| texts(id..id + 1).remove(0)).contains(input).then_some(fault)
            });
            let record = backend.record();
            let mut splitter = Splitter::new(Box::new(backend), Arc::default());
            let results = splitter.embed(&texts(0..16));
            let failed: Vec<_> = (0..16).filter(|i| results[*i].is_err()).collect();
            assert_eq!((results.len(), failed), (16, vec![5, 9]), "{fault:?}");
            assert_eq!(results[6], Ok(StubBackend::new(4).embed(&texts(6..7)).unwrap().remove(0)));
            assert_eq!(record.batches().len(), 17, "passes, two inputs of 16 being at fault");
            assert_eq!(splitter.caps.get(Modality::Text), None, "its size was not at fault");
        }
    }

    #[test]
    fn a_lost_device_is_tried_no_more() {
        let backend = StubBackend::new(4).with_faults(|_| Some(StubFault::Lose));
        let record = backend.record();
        let mut splitter = Splitter::new(Box::new(backend), Arc::default());
        let results = splitter.embed(&texts(0..2));
        assert!(matches!(&results[..], [Err(BackendError::DeviceLost(_)), Err(BackendError::DeviceLost(_))]));
        assert_eq!((splitter.caps.get(Modality::Text), record.batches().len()), (None, 1));
    }

    struct Picky(StubBackend);

    impl Backend for Picky {
        fn warm_sizes(&self, most: usize) -> Vec<usize> {
            vec![most, 2]
        }

        fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
            self.0.embed(batch)
        }
    }

    #[test]
    fn a_warm_up_goes_through_the_sizes_that_the_backend_names() {
        let sizes = |backend: Box<dyn Backend>, record: StubRecord| {
            Splitter::new(backend, Arc::default()).warm_up(&texts(0..1)[0], 7).unwrap();
            record.batches().iter().map(Vec::len).collect::<Vec<_>>()
        };
        let stub = StubBackend::new(4);
        let record = stub.record();
        assert_eq!(sizes(Box::new(stub), record), [1]);
        let stub = StubBackend::new(4);
        let record = stub.record();
        assert_eq!(sizes(Box::new(Picky(stub)), record), [7, 2]);
    }
}
