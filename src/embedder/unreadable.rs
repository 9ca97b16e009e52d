//! Files that are no pictures, by their digest: one is not downloaded or decoded again each time that it is asked for.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::domain::{ContentDigest, Fault, ItemErrorKind};

/// Files that are remembered; some hundred bytes each.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// For how long. The same bytes fail the same way, but a decoder may also have been stopped from outside, which must not
/// condemn a picture for good.
const TTL: Duration = Duration::from_secs(600);

/// The files that lately could not be decoded.
pub(super) struct Unreadable {
    files: Mutex<LruCache<ContentDigest, Entry>>,
}

struct Entry {
    kind: ItemErrorKind,
    message: String,
    until: Instant,
}

impl Unreadable {
    pub fn new() -> Self {
        Self { files: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// Remembers why a file could not be decoded, if that was the file's own fault.
    pub fn remember(&self, file: ContentDigest, kind: ItemErrorKind, message: &str, now: Instant) {
        if kind.fault() == Fault::Caller {
            let entry = Entry { kind, message: message.into(), until: now + TTL };
            self.files.lock().unwrap_or_else(PoisonError::into_inner).put(file, entry);
        }
    }

    /// Why a file cannot be decoded, while that is remembered.
    pub fn recall(&self, file: &ContentDigest, now: Instant) -> Option<(ItemErrorKind, String)> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = files.get(file).filter(|entry| now < entry.until)?;
        Some((entry.kind, entry.message.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_own_fault_is_remembered_for_a_while() {
        let (unreadable, now) = (Unreadable::new(), Instant::now());
        let [broken, unlucky, fine] = [b"broken", b"unluck", b"fine  "].map(|file| ContentDigest::of(file));
        unreadable.remember(broken, ItemErrorKind::Corrupt, "it ends early", now);
        unreadable.remember(unlucky, ItemErrorKind::Internal, "our own bug", now);
        let expected = Some((ItemErrorKind::Corrupt, "it ends early".to_owned()));
        assert_eq!(unreadable.recall(&broken, now + TTL - Duration::from_secs(1)), expected);
        assert_eq!(unreadable.recall(&broken, now + TTL), None);
        assert_eq!(unreadable.recall(&unlucky, now), None);
        assert_eq!(unreadable.recall(&fine, now), None);
    }
}
