//! The way of a picture: fetched unless its vector is held, decoded, computed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use tracing::{Span, field::Empty};

use super::pipeline::{INLINE_DIGEST_BYTES, PartError, Pipeline, Turn};
use super::prepare::Panicked;
use crate::cache::{CacheKey, CachedVector, Source};
use crate::domain::{
    ContentDigest, EmbedError, ImageSource, ImageSpec, ItemErrorKind, Lane, Modality, OnItemError, Pixels,
    Prepared,
};
use crate::fetch::{FetchError, Fetched};
use crate::imaging::{self, ImagingError, ImagingOptions};
use crate::telemetry::{metrics::TIERS, traces::trace_span_below};

/// Base64 up to this many bytes is decoded where it is, as with digests.
const INLINE_ENCODED_BYTES: usize = 512 << 10;

/// The pauses before a picture's host is asked once more, beside the download's own second attempt.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// The part of a request's time that is kept for computing: one of this many.
const RESERVED: u32 = 5;

/// A file that need not be seen again.
struct Held {
    digest: ContentDigest,
    vector: Result<CachedVector, PartError>,
}

impl Pipeline {
    pub async fn image(
        self: &Arc<Self>,
        picture: ImageSource,
        source: &Source,
        turn: Turn,
    ) -> Result<(CacheKey, CachedVector), PartError> {
        let spec = self.spec.image.as_ref().ok_or_else(|| self.no_tower(Modality::Image))?;
        let held = self.held(&picture).await;
        let digest = held.as_ref().map(|held| held.digest);
        let (encoded, digest) = match (self.fetched(picture, digest, turn).await?, held) {
            (Fetched::File { bytes, digest: Some(digest) }, _) => (bytes, digest),
            (Fetched::File { bytes, digest: None }, _) => {
                let digest = self.digest(&bytes, turn.lane).await?;
                (bytes, digest)
            }
            (Fetched::Unchanged, held) => {
                let Held { digest, vector } = held.expect("only what is held can be unchanged");
                let vector = vector?;
                self.metrics.cache_hits.with_label_values(&[TIERS[0]]).inc();
                Span::current().record("sidelens.cache", TIERS[0]);
                return Ok((self.image_key(&digest), vector));
            }
        };
        if let Some(error) = self.unreadable(&digest) {
            return Err(error);
        }
        let key = self.image_key(&digest);
        // Taken by the computation, so that nothing holds the file once it is pixels.
        let encoded = Arc::new(Mutex::new(Some(encoded)));
        self.cached(key, turn, |go_on| {
            let (pipeline, encoded) = (self.clone(), encoded.clone());
            let (spec, source) = (spec.clone(), source.clone());
            async move {
                let _room = match turn.lane {
                    Lane::Bulk => {
                        Some(pipeline.pixels.acquire().await.expect("the semaphore is never closed"))
                    }
                    Lane::Search => None,
                };
                let encoded = encoded.lock().unwrap_or_else(PoisonError::into_inner).take();
                let encoded = encoded.expect("an input that was computed is not computed again");
                let pixels = pipeline.decode(digest, encoded, spec, turn.lane).await?;
                let embedding = pipeline.submit(pixels, turn, go_on).await?;
                Ok(CachedVector::of_image(embedding, source))
            }
        })
        .await
    }

    /// What became of the file that an address last led to: if it still does, nothing need be downloaded.
    async fn held(&self, source: &ImageSource) -> Option<Held> {
        let digest = self.fetcher.recall(source)?;
        let vector = match self.unreadable(&digest) {
            Some(error) => Err(error),
            None => Ok(self.cache.peek(&self.image_key(&digest)).await?),
        };
        Some(Held { digest, vector })
    }

    /// Why a file is no picture, if that is known.
    fn unreadable(&self, file: &ContentDigest) -> Option<PartError> {
        self.unreadable.recall(file).map(|error| PartError::Item(error.kind(), error.to_string()))
    }

    /// The encoded file, unless it is the one that is held; what was base64 stands where the base64 stood.
    async fn fetched(
        &self,
        source: ImageSource,
        held: Option<ContentDigest>,
        turn: Turn,
    ) -> Result<Fetched, PartError> {
        let lane = turn.lane;
        let fetched = match &source {
            ImageSource::Url(_) => {
                let timer = self.metrics.fetch_seconds.start_timer();
                let fetched = self.fetched_patiently(source, held, turn).await;
                match &fetched {
                    // Mostly without a word to its host.
                    Ok(Fetched::Unchanged) => drop(timer.stop_and_discard()),
                    _ => timer.observe_duration(),
                }
                fetched
            }
            // Without the space around it: what is left then is no address, and waits for no host.
            ImageSource::Encoded(text) if text.trim_ascii().len() > INLINE_ENCODED_BYTES => {
                let (fetcher, handle) = (self.fetcher.clone(), Handle::current());
                let work = move || handle.block_on(fetcher.fetch_unless_held(source, held, lane));
                self.pool.run(lane, work).await?
            }
            ImageSource::Encoded(_) | ImageSource::Bytes(_) => {
                self.fetcher.fetch_unless_held(source, held, lane).await
            }
        };
        fetched.map_err(|error: FetchError| PartError::Item(error.kind(), error.to_string()))
    }

    /// Asks again where a placeholder would cover a fault that may pass, as long as that leaves the time to compute:
    /// Meilisearch takes the placeholder for good, and a request that is late altogether is asked for again whole.
    async fn fetched_patiently(
        &self,
        source: ImageSource,
        held: Option<ContentDigest>,
        turn: Turn,
    ) -> Result<Fetched, FetchError> {
        let latest = turn.deadline.checked_sub(self.fetcher.timeout() + self.deadline / RESERVED);
        let mut pauses = match turn.on_item_error {
            OnItemError::Placeholder => PAUSES.iter(),
            // Meilisearch tries again by itself, and with more patience.
            OnItemError::Fail => [].iter(),
        };
        loop {
            let failed = match self.fetcher.fetch_unless_held(source.clone(), held, turn.lane).await {
                Err(error) if error.kind().is_transient() => error,
                outcome => return outcome,
            };
            let again = pauses.next().map(|pause| Instant::now() + *pause);
            let Some(again) = again.filter(|again| latest.is_some_and(|latest| *again < latest)) else {
                return Err(failed);
            };
            sleep_until(again).await;
        }
    }

    async fn digest(&self, encoded: &Bytes, lane: Lane) -> Result<ContentDigest, PartError> {
        if encoded.len() <= INLINE_DIGEST_BYTES {
            return Ok(ContentDigest::of(encoded));
        }
        let encoded = encoded.clone();
        Ok(self.pool.run(lane, move || ContentDigest::of(&encoded)).await?)
    }

    fn image_key(&self, file: &ContentDigest) -> CacheKey {
        let ImagingOptions { decode, background, icc, .. } = self.imaging;
        CacheKey::image(self.fingerprint, decode, background, icc, file)
    }

    async fn decode(
        &self,
        digest: ContentDigest,
        encoded: Bytes,
        spec: ImageSpec,
        lane: Lane,
    ) -> Result<Prepared, PartError> {
        let seconds = self.metrics.decode_seconds.clone();
        let (options, part) = (self.imaging.clone(), Span::current());
        let work = move || {
            // Begins with its turn: what is before it is a wait for the others.
            let _span = trace_span_below!(&part, "decode", sidelens.format = Empty, sidelens.pixels = Empty)
                .entered();
            let _timer = seconds.start_timer();
            imaging::prepare(&encoded, &spec, &options)
        };
        let outcome = self.pool.run(lane, work).await;
        if let Ok(Err(error)) = &outcome {
            self.unreadable.remember(digest, error);
        }
        pixels(outcome)
    }
}

/// What decoding came to. A picture that makes a decoder panic would do so again: it is the picture's fault, not one
/// that passes. That there is no decoder passes, but no placeholder is to stay for it: the request fails and comes again.
fn pixels(outcome: Result<Result<Pixels, ImagingError>, Panicked>) -> Result<Prepared, PartError> {
    match outcome {
        Ok(Ok(pixels)) => Ok(Prepared::Pixels(pixels)),
        Ok(Err(error @ ImagingError::NoDecoder { .. })) => {
            Err(PartError::Request(EmbedError::Internal(error.to_string())))
        }
        Ok(Err(error)) => Err(PartError::Item(error.kind(), error.to_string())),
        Err(Panicked) => {
            let message =
                "the picture makes its decoder fail; save it anew, and report it as a bug".to_owned();
            Err(PartError::Item(ItemErrorKind::Corrupt, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_decoder_is_the_pictures_fault() {
        let Err(PartError::Item(kind, _)) = pixels(Err(Panicked)) else { panic!("an item's error") };
        assert_eq!((kind, kind.is_transient()), (ItemErrorKind::Corrupt, false));
    }

    #[test]
    fn that_there_is_no_decoder_fails_the_request() {
        let error = ImagingError::NoDecoder { format: "AVIF", reason: "no process".into() };
        let Err(PartError::Request(EmbedError::Internal(message))) = pixels(Ok(Err(error))) else {
            panic!("the request's error")
        };
        assert!(message.contains("no process"), "{message}");
    }
}
