//! A model that becomes slow when told to: the warm-up would take too long otherwise.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use sidelens::{
    domain::{Embedding, Prepared},
    runtime::{Backend, BackendError, Engine, LoadedModel, stub::stub_model},
};

/// Sets how long each forward pass takes.
pub struct Brake(Arc<AtomicU64>);

impl Brake {
    /// From now on each forward pass takes this much longer.
    pub fn set(&self, delay: Duration) {
        let delay_ms = delay.as_millis().try_into().expect("a delay of this life");
        self.0.store(delay_ms, Ordering::Relaxed);
    }
}

/// The stub model, quick until its brake is set.
pub fn slow_model(dimensions: usize) -> (LoadedModel, Brake) {
    let delay_ms = Arc::new(AtomicU64::new(0));
    let model = stub_model(dimensions);
    let slow = |engine: Engine| {
        let backend = Box::new(SlowBackend { inner: engine.backend, delay_ms: delay_ms.clone() });
        Engine { backend, ..engine }
    };
    let engines = model.engines.into_iter().map(slow).collect();
    (LoadedModel { engines, ..model }, Brake(delay_ms))
}

struct SlowBackend {
    inner: Box<dyn Backend>,
    delay_ms: Arc<AtomicU64>,
}

impl Backend for SlowBackend {
    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed)));
        self.inner.embed(batch)
    }
}
