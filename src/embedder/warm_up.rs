//! The first passes, before any request: they touch every weight, let the engine pick its kernels for real
//! shapes, and give the calibration set of the placeholder.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{Embedder, calibration, placeholder};
use crate::domain::{EmbedError, Embedding, Lane, Modality, Prepared};

/// Searches of up to so many words are computed once: on the CPU kernels are made for each number of tokens, which takes as
/// long as half a search.
const SEARCH_WORDS: usize = 16;

/// A cold start on a slow machine is still a start.
const PATIENCE: Duration = Duration::from_secs(600);

impl Embedder {
    /// Has every engine compute the shapes that it wants to know before the first request, computes the placeholder
    /// vector, and begins to take requests.
    ///
    /// # Errors
    /// [`EmbedError`] when the model cannot compute: the service should not start then.
    pub async fn warm_up(&self) -> Result<(), EmbedError> {
        let started = Instant::now();
        let mut vectors = Vec::new();
        for modality in Modality::ALL {
            let inputs = self.calibration(modality)?;
            for (input, most) in self.shapes(modality, &inputs)? {
                let warm = self.inner.pipeline.batcher.warm_up(input, most);
                warm.await.map_err(|error| self.inner.pipeline.request_error(error))?;
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

    /// An input of every shape that a tower knows beside the size of the batch, and how many make the largest batch of it.
    /// Pictures have one shape, that of `calibration`.
    fn shapes(
        &self,
        modality: Modality,
        calibration: &[Prepared],
    ) -> Result<Vec<(Prepared, usize)>, EmbedError> {
        let policy = &self.inner.policy;
        match modality {
            Modality::Image => Ok(calibration
                .first()
                .map(|picture| (picture.clone(), policy.max_pictures))
                .into_iter()
                .collect()),
            Modality::Text => {
                let Some(text) = &self.inner.pipeline.spec.text else { return Ok(Vec::new()) };
                // A word is a token at least; more than the tower takes is cut.
                let lengths =
                    std::iter::successors(Some(1), |n| Some(n * 2).filter(|n| n / 2 < text.max_length));
                let batches = lengths.map(|n| (n, (policy.max_tokens / n).clamp(1, policy.max_texts)));
                // Last, as what a search needs is not to make room for what bulk does. The others are among the batches.
                let searches = (1..=SEARCH_WORDS.min(text.max_length)).filter(|n| !n.is_power_of_two());
                let searches = searches.map(|n| (n, 1));
                let of_length = |(n_words, n_texts): (usize, usize)| {
                    let tokens = self.encode(&"photo ".repeat(n_words))?;
                    Ok((tokens, n_texts))
                };
                batches.chain(searches).map(of_length).collect()
            }
        }
    }

    /// Inputs for a tower of the model: none for a modality without one.
    fn calibration(&self, modality: Modality) -> Result<Vec<Prepared>, EmbedError> {
        let (n_inputs, spec) = (calibration::N_INPUTS, &self.inner.pipeline.spec);
        match (modality, &spec.text, &spec.image) {
            (Modality::Text, Some(_), _) => {
                (0..n_inputs).map(|i| self.encode(&calibration::text(i))).collect()
            }
            (Modality::Image, _, Some(spec)) => {
                Ok((0..n_inputs).map(|i| Prepared::Pixels(calibration::picture(i, spec))).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn encode(&self, text: &str) -> Result<Prepared, EmbedError> {
        let tokenizer = self.inner.pipeline.tokenizer.as_ref();
        let tokens = tokenizer.expect("a model with a text tower has one").encode(text);
        tokens.map(Prepared::Tokens).map_err(|error| EmbedError::Internal(error.to_string()))
    }

    async fn compute(&self, inputs: Vec<Prepared>, lane: Lane) -> Result<Vec<Embedding>, EmbedError> {
        let pipeline = &self.inner.pipeline;
        let deadline = Instant::now() + PATIENCE;
        let jobs = inputs.into_iter().map(|input| pipeline.batcher.submit(input, lane, deadline));
        try_join_all(jobs).await.map_err(|error| pipeline.request_error(error))
    }
}
