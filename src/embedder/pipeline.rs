//! The way of one item: its parts looked up, prepared and computed, then averaged. Pictures are in `picture.rs`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytestring::ByteString;
use futures_util::{TryFutureExt, future::try_join_all};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument;

use super::failures::Failures;
use super::prepare::{Panicked, PreparePool};
use super::spans::{mark_failed, part_span};
use super::unreadable::Unreadable;
use crate::batch::{BatchError, Batcher};
use crate::cache::{CacheKey, CachedVector, GoOn, Lookup, Source, VectorCache};
use crate::domain::{
    Content, EmbedError, EmbedInput, Embedding, EmbeddingError, Fingerprint, InputType, ItemError,
    ItemErrorKind, Lane, Modality, ModelSpec, OnItemError, Part, Prepared, Tokens, Usage,
};
use crate::fetch::Fetcher;
use crate::imaging::ImagingOptions;
use crate::telemetry::Metrics;
use crate::text::Tokenizer;

/// Of requests whose texts are below this many bytes together, they are tokenised where they are: that takes a millisecond,
/// and hops to the pool cost more. It is the sum that counts: thousands of short texts would hold up all other requests.
const INLINE_TEXT_BYTES: usize = 4 << 10;

/// Digests over up to this many bytes are made where these are: that takes a tenth of a millisecond, and a hop to the pool
/// costs more.
pub(super) const INLINE_DIGEST_BYTES: usize = 512 << 10;

/// Everything that an item passes through.
pub(super) struct Pipeline {
    pub spec: ModelSpec,
    pub fingerprint: Fingerprint,
    pub imaging: ImagingOptions,
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub fetcher: Fetcher,
    pub cache: VectorCache,
    pub pool: Arc<PreparePool>,
    /// Bulk pictures that may be pixels at once: those that wait for their turn stay as small as they came.
    pub pixels: Semaphore,
    pub batcher: Batcher,
    /// The most that a request may take.
    pub deadline: Duration,
    pub failures: Arc<Failures>,
    pub unreadable: Unreadable,
    pub metrics: Arc<Metrics>,
}

/// A request's place in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub lane: Lane,
    pub deadline: Instant,
    /// Bytes of all texts of the request.
    pub n_text_bytes: usize,
    /// What becomes of the request if this item fails.
    pub on_item_error: OnItemError,
}

/// The vector of an item, and what it counts for.
pub(super) struct ItemVector {
    pub embedding: Embedding,
    pub usage: Usage,
}

/// Why a part has no vector.
#[derive(Debug, Clone)]
pub(super) enum PartError {
    /// Its own fault, or its host's: a placeholder may stand for it.
    Item(ItemErrorKind, String),
    /// Nothing to do with this item: the whole request fails.
    Request(EmbedError),
}

impl Pipeline {
    /// Embeds one item. The inner error is the item's own, the outer one the request's.
    pub async fn item(
        self: &Arc<Self>,
        index: usize,
        input: EmbedInput,
        turn: Turn,
    ) -> Result<Result<ItemVector, ItemError>, EmbedError> {
        let has_image = input.parts.iter().any(|part| matches!(part.content, Content::Image(_)));
        let modality = if has_image { Modality::Image } else { Modality::Text };
        let EmbedInput { parts, input_type } = input;
        let parts = parts.into_iter().map(|part| {
            let span = part_span(index, &part);
            self.part(part, input_type, turn).inspect_err(mark_failed).instrument(span)
        });
        let result = match try_join_all(parts).await {
            Ok(parts) => combine(&parts),
            Err(error) => Err(error),
        };
        let (result, outcome) = match result {
            Ok(vector) => (Ok(vector), "ok"),
            Err(PartError::Item(kind, message)) => (Err(ItemError { index, kind, message }), kind.as_str()),
            Err(PartError::Request(error)) => return Err(error),
        };
        self.metrics.items.with_label_values(&[modality.as_str(), outcome]).inc();
        Ok(result)
    }

    async fn part(
        self: &Arc<Self>,
        part: Part,
        input_type: Option<InputType>,
        turn: Turn,
    ) -> Result<PartVector, PartError> {
        let is_image = matches!(part.content, Content::Image(_));
        let (_, vector) = self.vector(part.content, input_type, turn).await?;
        Ok(PartVector { vector, weight: part.weight, is_image })
    }

    /// The vector of one text or picture, and what it is kept under.
    pub async fn vector(
        self: &Arc<Self>,
        content: Content,
        input_type: Option<InputType>,
        turn: Turn,
    ) -> Result<(CacheKey, CachedVector), PartError> {
        let (found, source) = match content {
            Content::Text(text) => (self.text(text, input_type, turn).await, Source::Text),
            Content::Image(picture) => {
                let source = Source::of_picture(&picture);
                (self.image(picture, &source, turn).await, source)
            }
        };
        if let Err(PartError::Item(kind, message)) = &found {
            self.failures.record(source, *kind, message, &self.spec.name, SystemTime::now());
        }
        let (key, vector) = found?;
        self.metrics.truncated_texts.inc_by(u64::from(vector.truncated));
        Ok((key, vector))
    }

    async fn text(
        self: &Arc<Self>,
        text: ByteString,
        input_type: Option<InputType>,
        turn: Turn,
    ) -> Result<(CacheKey, CachedVector), PartError> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| self.no_tower(Modality::Text))?;
        let prompt = self.spec.text.as_ref().map_or("", |spec| spec.prompts.of(input_type));
        let (fingerprint, prompt) = (self.fingerprint, prompt.to_owned());
        let keyed = move || {
            let text = match &*prompt {
                "" => text,
                prompt => format!("{prompt}{text}").into(),
            };
            (CacheKey::text(fingerprint, &text), text)
        };
        let (key, text) = match turn.n_text_bytes > INLINE_DIGEST_BYTES {
            true => self.pool.run(turn.lane, keyed).await?,
            false => keyed(),
        };
        self.cached(key, turn, |go_on| {
            let (pipeline, tokenizer, text) = (self.clone(), tokenizer.clone(), text.clone());
            async move {
                let tokens = pipeline.tokenize(&tokenizer, &text, turn).await?;
                let (text_tokens, truncated) = (tokens.n_tokens as u32, tokens.truncated);
                let embedding = pipeline.submit(Prepared::Tokens(tokens), turn, go_on).await?;
                Ok(CachedVector::of_text(embedding, text_tokens, truncated))
            }
        })
        .await
    }

    async fn tokenize(
        &self,
        tokenizer: &Arc<Tokenizer>,
        text: &ByteString,
        turn: Turn,
    ) -> Result<Tokens, PartError> {
        let tokens = if turn.n_text_bytes < INLINE_TEXT_BYTES {
            tokenizer.encode(text)
        } else {
            let (tokenizer, text) = (tokenizer.clone(), text.clone());
            self.pool.run(turn.lane, move || tokenizer.encode(&text)).await?
        };
        tokens.map_err(|error| PartError::Item(ItemErrorKind::Internal, error.to_string()))
    }

    /// Looks up or computes, at most once. An input joined to another request's computation is not bound to
    /// that request's deadline: it tries again for itself while its own has not passed.
    pub async fn cached<F>(
        &self,
        key: CacheKey,
        turn: Turn,
        compute: impl Fn(GoOn) -> F,
    ) -> Result<(CacheKey, CachedVector), PartError>
    where
        F: Future<Output = Result<CachedVector, PartError>> + Send + 'static,
    {
        let lookup = Lookup { key, dimensions: self.spec.dimensions, lane: turn.lane };
        loop {
            let failed = match self.cache.get_or_compute(lookup, &compute).await {
                Ok(vector) => return Ok((key, vector)),
                Err(failed) => failed,
            };
            let is_deadline = matches!(*failed.error, PartError::Request(EmbedError::Deadline { .. }));
            if !(failed.was_joined && is_deadline && Instant::now() < turn.deadline) {
                return Err((*failed.error).clone());
            }
        }
    }

    /// Once the pass has begun the vector is paid for: it is kept although its caller leaves, and who asks again waits
    /// for it. Under overload, where every answer is late, retries would find nothing for ever otherwise.
    pub async fn submit(&self, prepared: Prepared, turn: Turn, go_on: GoOn) -> Result<Embedding, PartError> {
        let on_pass = Box::new(|| go_on.alone());
        let submitted = self.batcher.submit_with(prepared, turn.lane, turn.deadline, on_pass);
        submitted.await.map_err(|error| match error {
            BatchError::Unusable(reason) => PartError::Item(ItemErrorKind::Internal, reason),
            error => PartError::Request(self.request_error(error)),
        })
    }

    pub fn request_error(&self, error: BatchError) -> EmbedError {
        match error {
            BatchError::Deadline => EmbedError::Deadline { deadline_ms: self.deadline.as_millis() as u64 },
            BatchError::Unavailable(reason) => EmbedError::Unavailable(reason),
            BatchError::Failed(reason) | BatchError::Unusable(reason) => EmbedError::Internal(reason),
        }
    }

    pub fn no_tower(&self, modality: Modality) -> PartError {
        let message = format!("model `{}` has no {} tower", self.spec.name, modality.as_str());
        PartError::Item(ItemErrorKind::UnsupportedModality, message)
    }
}

impl From<Panicked> for PartError {
    fn from(_: Panicked) -> Self {
        Self::Item(ItemErrorKind::Internal, "preparing the item panicked; this is a bug".into())
    }
}

struct PartVector {
    vector: CachedVector,
    weight: f32,
    is_image: bool,
}

/// The weighted mean of the parts; the first part alone where they cancel each other out, since there is no
/// direction between opposites and a zero vector must never leave the house.
fn combine(parts: &[PartVector]) -> Result<ItemVector, PartError> {
    let [first, rest @ ..] = parts else {
        return Err(PartError::Item(ItemErrorKind::Internal, "the item has no part".into()));
    };
    let mut usage = Usage::default();
    for part in parts {
        usage.text_tokens += u64::from(part.vector.text_tokens);
        usage.images += u64::from(part.is_image);
    }
    let embedding = if rest.is_empty() {
        first.vector.embedding.clone()
    } else {
        // By the largest weight, so that the sum of large ones stays finite.
        let largest = parts.iter().map(|part| part.weight).fold(f32::MIN_POSITIVE, f32::max);
        let weighted = parts.iter().map(|part| (&part.vector.embedding, part.weight / largest));
        match Embedding::weighted_mean(weighted) {
            Err(EmbeddingError::Zero) => first.vector.embedding.clone(),
            mean => mean.map_err(|error| PartError::Item(ItemErrorKind::Internal, error.to_string()))?,
        }
    };
    Ok(ItemVector { embedding, usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(values: [f32; 2], weight: f32) -> PartVector {
        let embedding = Embedding::normalized(values.to_vec()).unwrap();
        let vector = CachedVector::of_text(embedding, 3, false);
        PartVector { vector, weight, is_image: false }
    }

    #[test]
    fn parts_that_cancel_out_give_the_first() {
        let item = combine(&[part([1.0, 0.0], 1.0), part([-1.0, 0.0], 1.0)]).ok().unwrap();
        assert_eq!(item.embedding.as_slice(), [1.0, 0.0]);
        assert_eq!(item.usage, Usage { text_tokens: 6, images: 0 });
    }

    #[test]
    fn huge_weights_stay_finite() {
        let item = combine(&[part([1.0, 0.0], f32::MAX), part([0.0, 1.0], f32::MAX)]).ok().unwrap();
        let diagonal = Embedding::normalized(vec![1.0, 1.0]).unwrap();
        assert!(item.embedding.cosine(&diagonal) > 0.999_999);
    }
}
