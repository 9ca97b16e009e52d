//! How much of what was fetched may wait to be decoded: a fast host would fill the memory while the cores are busy.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::places::NEVER_CLOSED;
use crate::domain::Lane;

/// Bytes are counted in units of this many.
const UNIT: usize = 1024;
/// What a file is reckoned with until it is there, as nothing else is known of it: a photo of good quality.
const EXPECTED: usize = 1 << 20;

/// The bound. Clones share it.
///
/// Whoever has a share never waits for more, so nobody can wait for another for ever: a file that is larger than expected
/// is a debt, paid by the next that leave, and until then nobody comes.
#[derive(Clone)]
pub(super) struct Backlog {
    inner: Arc<Inner>,
    /// In units.
    expected: u32,
}

struct Inner {
    free: Semaphore,
    /// In units. What is locked is that both change as one.
    debt: Mutex<usize>,
}

/// The share of one file, given back on drop.
pub(super) struct Share {
    inner: Arc<Inner>,
    n_units: usize,
}

/// A file that has its share for as long as anybody needs it.
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl Backlog {
    pub(super) fn new(max_bytes: usize) -> Self {
        let n_units = (max_bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let inner = Inner { free: Semaphore::new(n_units), debt: Mutex::new(0) };
        Self { inner: Arc::new(inner), expected: n_units.min(EXPECTED / UNIT) as u32 }
    }

    /// Waits for the share of one more file. A search does not wait, there are few of them.
    pub(super) async fn share(&self, lane: Lane) -> Share {
        let n_units = match lane {
            Lane::Search => 0,
            Lane::Bulk => {
                self.inner.free.acquire_many(self.expected).await.expect(NEVER_CLOSED).forget();
                self.expected as usize
            }
        };
        Share { inner: self.inner.clone(), n_units }
    }
}

impl Share {
    /// The same bytes, which now keep the share.
    pub(super) fn hold(mut self, bytes: Bytes) -> Bytes {
        self.resize(bytes.len().div_ceil(UNIT));
        Bytes::from_owner(Held { bytes, _share: self })
    }

    fn resize(&mut self, n_units: usize) {
        let Inner { free, debt } = &*self.inner;
        let mut debt = debt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = n_units.checked_sub(self.n_units) {
            *debt += more - free.forget_permits(more);
        } else {
            let less = self.n_units - n_units;
            let paid = less.min(*debt);
            *debt -= paid;
            free.add_permits(less - paid);
        }
        self.n_units = n_units;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.resize(0);
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn share(backlog: &Backlog, lane: Lane) -> Option<Share> {
        backlog.share(lane).now_or_never()
    }

    fn file(mebibytes: usize) -> Bytes {
        vec![7; mebibytes << 20].into()
    }

    #[test]
    fn a_file_has_its_share_until_nobody_needs_it() {
        let backlog = Backlog::new(2 << 20);
        let files = [share(&backlog, Lane::Bulk), share(&backlog, Lane::Bulk)];
        let mut files = files.map(|share| share.unwrap().hold(file(1)));
        assert_eq!(files[0], file(1));
        assert!(share(&backlog, Lane::Bulk).is_none());
        let part = files[0].split_to(10);
        files[0].clear();
        assert!(share(&backlog, Lane::Bulk).is_none(), "a part of it is still needed");
        drop(part);
        drop(files);
        assert_eq!(backlog.inner.free.available_permits(), 2 << 10);
    }

    #[test]
    fn a_large_file_is_a_debt_and_a_small_one_gives_back() {
        let backlog = Backlog::new(2 << 20);
        let large = share(&backlog, Lane::Bulk).unwrap().hold(file(3));
        let search = share(&backlog, Lane::Search).expect("a search does not wait").hold(file(1));
        assert!(share(&backlog, Lane::Bulk).is_none());
        drop(search);
        assert!(share(&backlog, Lane::Bulk).is_none(), "three of two are still taken");
        drop(large);
        let _small = share(&backlog, Lane::Bulk).unwrap().hold(Bytes::from_static(b"small"));
        assert_eq!(backlog.inner.free.available_permits(), (2 << 10) - 1);
    }

    #[test]
    fn one_file_passes_however_small_the_bound() {
        let backlog = Backlog::new(1);
        let file = share(&backlog, Lane::Bulk).unwrap().hold(file(1));
        assert!(share(&backlog, Lane::Bulk).is_none());
        drop(file);
        assert!(share(&backlog, Lane::Bulk).is_some());
        assert_eq!((backlog.inner.free.available_permits(), *backlog.inner.debt.lock().unwrap()), (1, 0));
    }
}
