//! Files that are no pictures, by their digest: one is not downloaded or decoded again each time that it is asked for.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use crate::domain::ContentDigest;
use crate::imaging::ImagingError;

/// Files that are remembered; some hundred bytes each.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// The files that lately could not be decoded.
pub(super) struct Unreadable {
    files: Mutex<LruCache<ContentDigest, ImagingError>>,
}

impl Unreadable {
    pub fn new() -> Self {
        Self { files: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// Remembers why a file could not be decoded, if its bytes alone are to blame.
    pub fn remember(&self, file: ContentDigest, error: &ImagingError) {
        if error.comes_again() {
            self.files.lock().unwrap_or_else(PoisonError::into_inner).put(file, error.clone());
        }
    }

    /// Why a file cannot be decoded, if that is remembered.
    pub fn recall(&self, file: &ContentDigest) -> Option<ImagingError> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(file).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_bytes_are_to_blame_for_is_remembered() {
        let unreadable = Unreadable::new();
        let [broken, unlucky] = [b"broken", b"unluck"].map(|file| ContentDigest::of(file));
        let error = ImagingError::Corrupt { format: "PNG", detail: "it ends early".into() };
        unreadable.remember(broken, &error);
        unreadable.remember(unlucky, &ImagingError::DecoderDied { format: "AVIF", how: "signal: 6".into() });
        assert_eq!((unreadable.recall(&broken), unreadable.recall(&unlucky)), (Some(error), None));
    }
}
