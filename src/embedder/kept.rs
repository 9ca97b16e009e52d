//! Vectors to be kept rather than answered: for bulk work inside the process, one input after another.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Embedder,
    pipeline::{PartError, Turn},
};
use crate::{
    cache::{CacheKey, CachedVector},
    domain::{Content, EmbedError, ItemErrorKind, Lane, OnItemError},
    imaging::ImagingOptions,
};

/// Longer than any run: nobody waits for one input, and whoever stops drops it.
const NO_DEADLINE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why an input has no vector.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KeptError {
    /// It is at fault itself, or the host of its picture.
    #[error("{kind}: {message}")]
    Item {
        /// What kind of failure.
        kind: ItemErrorKind,
        /// Lower case, short; names a URL's host but never its path, query or payload.
        message: String,
    },
    /// The work on it failed, for reasons of its own.
    #[error(transparent)]
    Work(#[from] EmbedError),
}

impl Embedder {
    /// The vector of one text or picture, and what caches keep it under. It is computed in batches with whatever else
    /// is asked for at once, behind any search; how much that is bounds the caller, see [`Self::max_kept`].
    ///
    /// # Errors
    /// [`KeptError`]. Nothing is asked for a second time but what the download itself does.
    ///
    /// # Cancel safety
    /// Dropping the future takes the input out of every queue.
    pub async fn kept(&self, content: Content) -> Result<(CacheKey, CachedVector), KeptError> {
        let turn = Turn {
            n_text_bytes: content.n_text_bytes(),
            lane: Lane::Bulk,
            deadline: Instant::now() + NO_DEADLINE,
            on_item_error: OnItemError::Fail,
        };
        self.inner.pipeline.vector(content, None, turn).await.map_err(|error| match error {
            PartError::Item(kind, message) => KeptError::Item { kind, message },
            PartError::Request(error) => KeptError::Work(error),
        })
    }

    /// The settings that change a picture's vector, beside the model: `image.decode`, `image.background`, `image.icc`.
    pub fn picture_settings(&self) -> String {
        let ImagingOptions { decode, background, icc, .. } = self.inner.pipeline.imaging;
        format!("{}, {}, {}", decode.as_str(), String::from(background), icc.as_str())
    }

    /// Pictures that can be pixels at once: with fewer inputs under way the device may wait.
    pub fn max_kept(&self) -> usize {
        self.inner.max_pixels
    }
}
