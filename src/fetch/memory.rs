//! What addresses led to: the file's digest and how to ask whether it still holds, or why there is no picture.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use reqwest::header::{
    ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use url::{Position, Url};

use super::FetchError;
use crate::domain::ContentDigest;

/// A longer validator is not worth its memory.
const MAX_VALIDATOR_BYTES: usize = 256;

/// A digest in place of an address, which may hold a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct UrlKey([u8; 32]);

impl UrlKey {
    /// The key of `url`, of which the fragment is never sent.
    pub fn of(url: &Url) -> Self {
        Self(*blake3::hash(url[..Position::AfterQuery].as_bytes()).as_bytes())
    }
}

/// What asks a host whether its picture is still the one that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Validator {
    /// The address that gave it, at the end of all redirects: another one knows nothing of it.
    pub of: UrlKey,
    /// `If-None-Match` or `If-Modified-Since`.
    pub condition: (HeaderName, HeaderValue),
}

impl Validator {
    /// Out of the headers of the answer at `url`.
    pub fn new(url: &Url, headers: &HeaderMap) -> Option<Self> {
        let (name, value) = match (headers.get(ETAG), headers.get(LAST_MODIFIED)) {
            (Some(etag), _) => (IF_NONE_MATCH, etag),
            (None, date) => (IF_MODIFIED_SINCE, date?),
        };
        if value.len() > MAX_VALIDATOR_BYTES {
            return None;
        }
        // A copy: the value itself is a view that keeps the connection's whole read buffer alive.
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("it is the value of a header");
        Some(Self { of: UrlKey::of(url), condition: (name, value) })
    }
}

/// What an address led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub digest: ContentDigest,
    pub validator: Option<Validator>,
    /// How long it was fresh, which holds again for an answer that says only that nothing changed.
    pub lifetime: Duration,
    pub fresh_until: Instant,
}

#[derive(Debug)]
enum Entry {
    Picture(Known),
    Dead { error: FetchError, until: Instant },
}

/// The most recently asked addresses.
#[derive(Debug)]
pub(super) struct Memory {
    /// None remembers nothing.
    urls: Option<Mutex<LruCache<UrlKey, Entry>>>,
    dead_ttl: Duration,
}

impl Memory {
    pub fn new(max_urls: usize, dead_ttl: Duration) -> Self {
        Self { urls: NonZeroUsize::new(max_urls).map(|max| Mutex::new(LruCache::new(max))), dead_ttl }
    }

    /// What is known of an address.
    ///
    /// # Errors
    /// Why it has no picture, while that is remembered.
    pub fn recall(&self, key: &UrlKey, now: Instant) -> Result<Option<Known>, FetchError> {
        let known = self.with(|urls| match urls.get(key) {
            Some(Entry::Picture(known)) => Ok(Some(known.clone())),
            Some(Entry::Dead { error, until }) if now < *until => Err(error.clone()),
            Some(Entry::Dead { .. }) | None => Ok(None),
        });
        known.unwrap_or(Ok(None))
    }

    /// Remembers a picture, unless that could never spare anything.
    pub fn remember(&self, key: UrlKey, known: Known) {
        if known.lifetime.is_zero() && known.validator.is_none() {
            self.forget(&key);
        } else {
            self.with(|urls| urls.put(key, Entry::Picture(known)));
        }
    }

    /// Remembers that there is no picture, in place of one that was.
    pub fn bury(&self, key: UrlKey, error: FetchError, now: Instant) {
        self.with(|urls| urls.put(key, Entry::Dead { error, until: now + self.dead_ttl }));
    }

    pub fn forget(&self, key: &UrlKey) {
        self.with(|urls| urls.pop(key));
    }

    fn with<T>(&self, act: impl FnOnce(&mut LruCache<UrlKey, Entry>) -> T) -> Option<T> {
        let urls = self.urls.as_ref()?;
        Some(act(&mut urls.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> UrlKey {
        UrlKey::of(&Url::parse("http://a.example").unwrap().join(path).unwrap())
    }

    fn known(lifetime_s: u64) -> Known {
        let lifetime = Duration::from_secs(lifetime_s);
        let digest = ContentDigest::of(b"picture");
        Known { digest, validator: None, lifetime, fresh_until: Instant::now() + lifetime }
    }

    #[test]
    fn addresses_differ_by_all_but_their_fragment() {
        assert_eq!(key("/a?b#c"), key("/a?b#d"));
        assert_ne!(key("/a?b"), key("/a?c"));
        assert_ne!(key("/a?b"), key("/a"));
    }

    #[test]
    fn the_least_recently_asked_is_forgotten() {
        let memory = Memory::new(2, Duration::from_secs(60));
        let now = Instant::now();
        memory.remember(key("/a"), known(1));
        memory.remember(key("/b"), known(1));
        assert!(memory.recall(&key("/a"), now).unwrap().is_some());
        memory.remember(key("/c"), known(1));
        let is_known = |path| memory.recall(&key(path), now).unwrap().is_some();
        assert!(is_known("/a") && !is_known("/b") && is_known("/c"));
    }

    #[test]
    fn the_dead_are_asked_again_later() {
        let memory = Memory::new(2, Duration::from_secs(60));
        let (now, error) = (Instant::now(), FetchError::NotFound { host: "a.example".into(), status: 404 });
        memory.remember(key("/a"), known(1));
        memory.bury(key("/a"), error.clone(), now);
        assert_eq!(memory.recall(&key("/a"), now + Duration::from_secs(59)), Err(error));
        assert_eq!(memory.recall(&key("/a"), now + Duration::from_secs(60)), Ok(None));
    }

    #[test]
    fn only_what_helps_is_kept() {
        let (memory, now) = (Memory::new(2, Duration::ZERO), Instant::now());
        memory.remember(key("/a"), known(1));
        memory.remember(key("/a"), known(0));
        memory.bury(key("/b"), FetchError::Empty, now);
        assert_eq!(memory.recall(&key("/a"), now), Ok(None));
        assert_eq!(memory.recall(&key("/b"), now), Ok(None));
        let none = Memory::new(0, Duration::from_secs(60));
        none.remember(key("/a"), known(1));
        none.bury(key("/b"), FetchError::Empty, now);
        assert_eq!((none.recall(&key("/a"), now), none.recall(&key("/b"), now)), (Ok(None), Ok(None)));
    }
}
