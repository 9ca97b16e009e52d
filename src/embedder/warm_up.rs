//! The first passes, before any request: they touch every weight, let the engine pick its kernels for real
//! shapes, and give the calibration set of the placeholder.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{Embedder, calibration, placeholder};
use crate::domain::{EmbedError, Embedding, Lane, Modality, Prepared};

/// A cold start on a slow machine is still a start.
const PATIENCE: Duration = Duration::from_secs(600);

impl Embedder {
    /// Runs batches of one and of `max_batch_size` for each modality, computes the placeholder vector, and
    /// begins to take requests.
    ///
    /// # Errors
    /// [`EmbedError`] when the model cannot compute: the service should not start then.
    pub async fn warm_up(&self) -> Result<(), EmbedError> {
        let started = Instant::now();
        let mut vectors = Vec::new();
        for modality in Modality::ALL {
            let inputs = self.calibration(modality)?;
            if let Some(first) = inputs.first().cloned() {
                vectors.extend(self.compute(vec![first], Lane::Search).await?);
            }
            vectors.extend(self.compute(inputs, Lane::Bulk).await?);
        }
        let expected = self.inner.info.spec.dimensions;
        if let Some(found) = vectors.iter().map(Embedding::dimensions).find(|found| *found != expected) {
            return Err(EmbedError::Internal(format!(
                "the model gives {found} dimensions where its configuration says {expected}"
            )));
        }
        let Some(placeholder) = placeholder::placeholder(&vectors) else {
            return Err(EmbedError::Internal("the model has neither a text nor an image tower".into()));
        };
        // A second warm-up computes the same one.
        let _ = self.inner.placeholder.set(placeholder);
        self.set_ready(true);
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "the model is warmed up");
        Ok(())
    }

    /// Inputs for every tower of the model: none for a modality without one.
    fn calibration(&self, modality: Modality) -> Result<Vec<Prepared>, EmbedError> {
        let pipeline = &self.inner.pipeline;
        let n_inputs = self.inner.max_batch_size.max(calibration::MIN_INPUTS);
        match (modality, &pipeline.tokenizer, &pipeline.spec.image) {
            (Modality::Text, Some(tokenizer), _) => {
                // The longest text the tower takes is a shape of its own.
                let longest = "photo ".repeat(pipeline.spec.text.as_ref().map_or(1, |text| text.max_length));
                (0..n_inputs)
                    .map(calibration::text)
                    .chain([longest])
                    .map(|text| tokenizer.encode(&text).map(Prepared::Tokens))
                    .collect::<Result<_, _>>()
                    .map_err(|error| EmbedError::Internal(error.to_string()))
            }
            (Modality::Image, _, Some(spec)) => {
                Ok((0..n_inputs).map(|i| Prepared::Pixels(calibration::picture(i, spec))).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn compute(&self, inputs: Vec<Prepared>, lane: Lane) -> Result<Vec<Embedding>, EmbedError> {
        let pipeline = &self.inner.pipeline;
        let deadline = Instant::now() + PATIENCE;
        let jobs = inputs.into_iter().map(|input| pipeline.batcher.submit(input, lane, deadline));
        try_join_all(jobs).await.map_err(|error| pipeline.request_error(error))
    }
}
