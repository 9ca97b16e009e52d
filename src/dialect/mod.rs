//! Wire formats: bytes in, an [`EmbedRequest`] out, and back. Serde only, no server.
//!
//! A dialect says which routes it answers, how a body is read, and how vectors and failures are
//! written. The bodies are the same for all of them so far (`request.rs`, `item.rs`, uploads in `upload.rs`); the
//! answers differ.
//! A new dialect is one file and one line in [`DIALECTS`].

mod cuts;
mod item;
mod json;
mod meilisearch;
mod plain;
mod request;
mod tei;
mod upload;
mod write;

use std::fmt;

use bytes::BytesMut;

use crate::domain::{EmbedError, EmbedRequest, EmbedResponse, Fault, ItemErrorKind};

pub use meilisearch::Meilisearch;
pub use plain::Plain;
pub use tei::Tei;

/// Most inputs of one request. Meilisearch sends 10.
pub const MAX_INPUTS: usize = 2048;
/// Most parts of one input.
pub const MAX_PARTS: usize = 64;

/// Every dialect that is spoken.
pub static DIALECTS: [&dyn Dialect; 3] = [&Meilisearch, &Tei, &Plain];

/// One wire format.
pub trait Dialect: fmt::Debug + Sync {
    /// The paths it answers, each served with and without a trailing slash.
    fn routes(&self) -> &[&str];

    /// Reads a body. Its pictures are parts of it still: it stays in memory until the last of them is gone.
    ///
    /// # Errors
    /// [`EmbedError::InvalidRequest`], naming the item and never showing what it holds.
    fn parse(&self, body: BytesMut) -> Result<Call, EmbedError>;

    /// Writes the vectors as JSON, dressed as the [`Call`] asked.
    fn render(&self, response: &EmbedResponse, answer: Answer) -> Vec<u8>;

    /// Writes a failure as JSON. Meilisearch copies it whole into its tasks and logs, so it is short.
    fn render_error(&self, failure: &Failure) -> Vec<u8>;
}

/// A body that has been read.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What is asked for.
    pub request: EmbedRequest,
    /// How the caller expects the answer, as far as its body tells.
    pub answer: Answer,
}

/// How an answer is dressed where one route serves several templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `{"data": [{"embedding": [...]}]}`.
    Data,
    /// `{"data": [{"embedding": "..."}]}`, little-endian f32 in base64: the body had OpenAI's `encoding_format` for it.
    Base64,
    /// As [`Self::Data`], and `"embeddings": [[...]]` beside it: the body had Cohere's `texts`.
    DataAndEmbeddings,
    /// `{"embedding": [...]}`: the body was an upload, or the route is [`Plain`]'s.
    Plain,
}

impl Answer {
    /// Bytes that so many vectors take at most, and what is around them.
    pub fn max_bytes(self, n_vectors: usize, dimensions: usize) -> usize {
        let copies = if self == Self::DataAndEmbeddings { 2 } else { 1 };
        write::max_bytes(copies * n_vectors, dimensions)
    }
}

/// What reads a body, by its type.
#[derive(Debug, Clone)]
pub enum Reader {
    /// The dialect of the route.
    Dialect(&'static dyn Dialect),
    /// A form with pictures, on whatever route, by the boundary between its parts.
    Form(String),
}

impl Reader {
    /// The form's where one of the `content_types` (there may be several, see the contract) is a form's.
    pub fn new<'a>(dialect: &'static dyn Dialect, content_types: impl Iterator<Item = &'a str>) -> Self {
        content_types.filter_map(upload::boundary).next().map_or(Self::Dialect(dialect), Self::Form)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// As [`Dialect::parse`].
    pub fn parse(&self, body: BytesMut) -> Result<Call, EmbedError> {
        match self {
            Self::Dialect(dialect) => dialect.parse(body),
            Self::Form(boundary) => upload::parse(boundary, body),
        }
    }
}

/// A failure, ready to be written: no payload, at most [`Failure::MAX_MESSAGE`] bytes of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The stable name of its class: `invalid_request`, `item_failed`, `overloaded`, `upstream`, ...
    pub class: &'static str,
    /// Lower case; names the thing, the limit and the next step.
    pub message: String,
    /// The item that decided, and why it failed.
    pub item: Option<(usize, ItemErrorKind)>,
}

impl Failure {
    /// Longest message in bytes; what is longer loses its end.
    pub const MAX_MESSAGE: usize = 400;

    /// A failure without an item.
    pub fn new(class: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Self::MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(Self::MAX_MESSAGE - 3));
            message.push_str("...");
        }
        Self { class, message, item: None }
    }
}

impl From<&EmbedError> for Failure {
    fn from(error: &EmbedError) -> Self {
        let (class, item) = match error {
            EmbedError::Items(items) => {
                let leading = EmbedError::leading(items);
                let class = match leading.kind.fault() {
                    Fault::Caller => "item_failed",
                    Fault::Upstream => "upstream",
                    Fault::Overload => "overloaded",
                    Fault::Bug => "internal",
                };
                (class, Some((leading.index, leading.kind)))
            }
            EmbedError::InvalidRequest(_) | EmbedError::Dimensions { .. } => ("invalid_request", None),
            EmbedError::QueueFull { .. } | EmbedError::Deadline { .. } | EmbedError::Unavailable(_) => {
                ("overloaded", None)
            }
            EmbedError::Internal(_) => ("internal", None),
        };
        Self { item, ..Self::new(class, error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::ItemError;

    #[test]
    fn every_route_belongs_to_one_dialect() {
        let routes: Vec<_> = DIALECTS.iter().flat_map(|dialect| dialect.routes()).collect();
        assert_eq!(routes.iter().collect::<BTreeSet<_>>().len(), routes.len());
        // The edge adds the trailing slash itself.
        assert!(
            routes.iter().all(|r| r.starts_with('/') && (r.len() == 1 || !r.ends_with('/'))),
            "{routes:?}"
        );
    }

    #[test]
    fn failures_stay_short_on_a_character_boundary() {
        let failure = Failure::from(&EmbedError::InvalidRequest("é".repeat(1000)));
        assert!(failure.message.len() <= Failure::MAX_MESSAGE && failure.message.ends_with("é..."));
        for dialect in DIALECTS {
            assert!(dialect.render_error(&failure).len() <= 500);
        }
    }

    #[test]
    fn an_item_failure_carries_the_deciding_item() {
        let item = |index, kind| ItemError { index, kind, message: "m".into() };
        let error =
            EmbedError::Items(vec![item(1, ItemErrorKind::NotFound), item(4, ItemErrorKind::HostError)]);
        let failure = Failure::from(&error);
        assert_eq!((failure.class, failure.item), ("upstream", Some((4, ItemErrorKind::HostError))));
    }
}
