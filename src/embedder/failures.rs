//! The items that failed lately, so that somebody can find the documents that need repair: Meilisearch's own
//! message names none.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use lru::LruCache;
use serde::{Serialize, Serializer};

use crate::cache::Source;
use crate::domain::ItemErrorKind;

/// Sources that are remembered; two kilobytes each at most.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// What failed lately: the last thousand sources, the latest first.
pub struct Failures {
    entries: Mutex<LruCache<(Source, ItemErrorKind), Entry>>,
}

struct Entry {
    model: String,
    message: String,
    first_at: SystemTime,
    last_at: SystemTime,
    count: u64,
}

/// A source that failed in one way, once or often.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailedSource {
    /// The picture's address without credentials, query and fragment; `image` or `text` for what came in the request
    /// itself.
    pub source: String,
    /// What kind of failure.
    pub kind: ItemErrorKind,
    /// Whether the same item may succeed later.
    pub is_transient: bool,
    /// The last failure's message.
    pub message: String,
    /// The model that was asked for last.
    pub model: String,
    /// Failed items.
    pub count: u64,
    /// The first failure that is remembered.
    #[serde(serialize_with = "rfc3339")]
    pub first_at: SystemTime,
    /// The last failure.
    #[serde(serialize_with = "rfc3339")]
    pub last_at: SystemTime,
}

impl Failures {
    /// Nothing has failed yet.
    pub(super) fn new() -> Self {
        Self { entries: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// Remembers a failure of `model` at `now`.
    pub(super) fn record(
        &self,
        source: Source,
        kind: ItemErrorKind,
        message: &str,
        model: &str,
        now: SystemTime,
    ) {
        let fresh =
            || Entry { model: String::new(), message: String::new(), first_at: now, last_at: now, count: 0 };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_or_insert_mut((source, kind), fresh);
        model.clone_into(&mut entry.model);
        message.clone_into(&mut entry.message);
        entry.last_at = now;
        entry.count += 1;
    }

    /// At most `limit` sources, the one that failed last first.
    pub fn latest(&self, limit: usize) -> Vec<FailedSource> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = entries.iter().take(limit).map(|((source, kind), entry)| FailedSource {
            source: source.as_str().to_owned(),
            kind: *kind,
            is_transient: kind.is_transient(),
            message: entry.message.clone(),
            model: entry.model.clone(),
            count: entry.count,
            first_at: entry.first_at,
            last_at: entry.last_at,
        });
        listed.collect()
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_latest_come_first_and_are_counted() {
        let failures = Failures::new();
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let record = |source: &str, kind, message, s| {
            failures.record(Source::Url(source.into()), kind, message, "clip", at(s));
        };
        record("a", ItemErrorKind::NotFound, "gone", 1);
        record("b", ItemErrorKind::Timeout, "slow", 2);
        record("a", ItemErrorKind::Timeout, "slow", 3);
        record("a", ItemErrorKind::NotFound, "still gone", 4);
        let listed = failures.latest(2);
        assert_eq!(listed, failures.latest(10)[..2]);
        let gone = &listed[0];
        assert_eq!((gone.source.as_str(), gone.kind, gone.count), ("a", ItemErrorKind::NotFound, 2));
        assert_eq!((gone.message.as_str(), gone.is_transient), ("still gone", false));
        assert_eq!((gone.first_at, gone.last_at), (at(1), at(4)));
        assert!(listed[1].is_transient);
        let json = serde_json::to_value(gone).unwrap();
        assert_eq!((&json["last_at"], &json["kind"]), (&"1970-01-01T00:00:04Z".into(), &"not_found".into()));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let failures = Failures::new();
        for i in 0..=CAPACITY.get() {
            failures.record(
                Source::Url(i.to_string().into()),
                ItemErrorKind::Corrupt,
                "",
                "clip",
                SystemTime::now(),
            );
        }
        let listed = failures.latest(usize::MAX);
        assert_eq!(listed.len(), CAPACITY.get());
        assert!(listed.iter().all(|failed| failed.source != "0"));
    }
}
