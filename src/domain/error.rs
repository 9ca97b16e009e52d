//! What went wrong, and whose fault it is. Status codes are chosen from this in `http/error.rs`.

use std::{error::Error as StdError, fmt, iter::successors};

use serde::{Deserialize, Serialize};

/// Whose fault a failure is. The caller's is permanent (Meilisearch gives up on it), the others pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The request or item can never succeed as it is.
    Caller,
    /// A picture's host failed or was slow; the same request may succeed later.
    Upstream,
    /// More work than can be done in time.
    Overload,
    /// Ours.
    Bug,
}

/// Why one item has no vector. The names are stable: callers, metrics and logs see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemErrorKind {
    /// An empty picture: a null field in a Meilisearch template renders so.
    EmptyImage,
    /// The model has no tower for this item.
    UnsupportedModality,
    /// Not a URL that can be fetched.
    InvalidUrl,
    /// Not a data URI or base64 that can be decoded.
    InvalidBase64,
    /// The address, bucket or file is not one that Sidelens may reach.
    BlockedAddress,
    /// The host answered 404 or 410, or there is no such file.
    NotFound,
    /// The host answered 401, 403 or another final refusal.
    Forbidden,
    /// More bytes than allowed.
    TooLarge,
    /// More pixels than allowed.
    TooManyPixels,
    /// Not a picture, or a format that Sidelens does not read.
    NotAnImage,
    /// A picture that breaks off or contradicts itself.
    Corrupt,
    /// The host did not answer in time.
    Timeout,
    /// The host failed: no name, no connection, 5xx, 429, a broken body.
    HostError,
    /// Our own failure, such as a decoder's panic.
    Internal,
}

impl ItemErrorKind {
    /// Every kind, in the order of the metrics' label values.
    pub const ALL: [Self; 14] = [
        Self::EmptyImage,
        Self::UnsupportedModality,
        Self::InvalidUrl,
        Self::InvalidBase64,
        Self::BlockedAddress,
        Self::NotFound,
        Self::Forbidden,
        Self::TooLarge,
        Self::TooManyPixels,
        Self::NotAnImage,
        Self::Corrupt,
        Self::Timeout,
        Self::HostError,
        Self::Internal,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptyImage => "empty_image",
            Self::UnsupportedModality => "unsupported_modality",
            Self::InvalidUrl => "invalid_url",
            Self::InvalidBase64 => "invalid_base64",
            Self::BlockedAddress => "blocked_address",
            Self::NotFound => "not_found",
            Self::Forbidden => "forbidden",
            Self::TooLarge => "too_large",
            Self::TooManyPixels => "too_many_pixels",
            Self::NotAnImage => "not_an_image",
            Self::Corrupt => "corrupt",
            Self::Timeout => "timeout",
            Self::HostError => "host_error",
            Self::Internal => "internal",
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::Timeout | Self::HostError => Fault::Upstream,
            Self::Internal => Fault::Bug,
            _ => Fault::Caller,
        }
    }

    /// Whether the same item may succeed later.
    pub fn is_transient(self) -> bool {
        self.fault() == Fault::Upstream
    }
}

impl fmt::Display for ItemErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One item that has no vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("item {index}: {kind}: {message}")]
pub struct ItemError {
    /// The item's place in the request, from 0.
    pub index: usize,
    /// What kind of failure.
    pub kind: ItemErrorKind,
    /// Lower case, short; names a URL's host but never its path, query or payload.
    pub message: String,
}

/// What happens to a request with a failed item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnItemError {
    /// The whole request fails, naming the items.
    Fail,
    /// The item gets the placeholder vector, which ranks last, and is listed in the answer.
    Placeholder,
}

/// Why a whole request has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmbedError {
    /// The body or one of its items has a shape that no dialect knows.
    #[error("{0}")]
    InvalidRequest(String),
    /// The caller expects vectors of another length.
    #[error(
        "the request asks for {requested} dimensions, but model `{model}` gives {actual}; \
         set `dimensions` to {actual} in the embedder's settings"
    )]
    Dimensions {
        /// What the caller asked for.
        requested: usize,
        /// What the model gives.
        actual: usize,
        /// The model.
        model: String,
    },
    /// Some items failed, in the order of the request. Never empty.
    #[error("{}", describe_items(.0))]
    Items(Vec<ItemError>),
    /// The queue holds as much as it may.
    #[error("the queue is full: {waiting} items wait, `batch.max_queue_items` is {limit}; try again")]
    QueueFull {
        /// Items in the queue.
        waiting: usize,
        /// Its limit.
        limit: usize,
    },
    /// The answer would come too late to be of use.
    #[error("no answer within `batch.deadline_ms` ({deadline_ms} ms); try again, or lower the load")]
    Deadline {
        /// The deadline of a request.
        deadline_ms: u64,
    },
    /// The service is starting, stopping, or has lost its device.
    #[error("{0}")]
    Unavailable(String),
    /// Our own failure.
    #[error("{0}")]
    Internal(String),
}

impl EmbedError {
    /// Whose fault it is. Where items failed for different reasons the transient one wins, so that
    /// Meilisearch tries again; then ours, then the caller's.
    pub fn fault(&self) -> Fault {
        match self {
            Self::InvalidRequest(_) | Self::Dimensions { .. } => Fault::Caller,
            Self::Items(items) => Self::leading(items).kind.fault(),
            Self::QueueFull { .. } | Self::Deadline { .. } | Self::Unavailable(_) => Fault::Overload,
            Self::Internal(_) => Fault::Bug,
        }
    }

    /// The item that decides what becomes of the request: the first transient one, else the first of
    /// our own failures, else the first.
    ///
    /// # Panics
    /// When `items` is empty.
    pub fn leading(items: &[ItemError]) -> &ItemError {
        let first = |fault| items.iter().find(|item| item.kind.fault() == fault);
        first(Fault::Upstream).or_else(|| first(Fault::Bug)).unwrap_or(&items[0])
    }
}

/// One sentence for a request's failed items, short however many there are: Meilisearch copies it whole.
fn describe_items(items: &[ItemError]) -> String {
    let leading = EmbedError::leading(items);
    match items.len() {
        1 => leading.to_string(),
        n => format!("{leading} (and {} more of {n} failed items)", n - 1),
    }
}

/// An error and what caused it, outermost first.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    successors(Some(error), |&cause| cause.source())
}

/// The innermost cause. The sentences around it repeat what was asked for, address and all.
pub fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    causes(error).last().expect("the error itself is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(index: usize, kind: ItemErrorKind) -> ItemError {
        ItemError { index, kind, message: "x".into() }
    }

    #[test]
    fn transient_faults_win() {
        let error = EmbedError::Items(vec![
            item(0, ItemErrorKind::NotFound),
            item(1, ItemErrorKind::Internal),
            item(2, ItemErrorKind::Timeout),
        ]);
        assert_eq!(error.fault(), Fault::Upstream);
        assert_eq!(error.to_string(), "item 2: timeout: x (and 2 more of 3 failed items)");
    }

    #[test]
    fn kinds_are_listed_once() {
        let names: std::collections::BTreeSet<_> = ItemErrorKind::ALL.iter().map(|k| k.as_str()).collect();
        assert_eq!(names.len(), ItemErrorKind::ALL.len());
    }
}
