//! CPU work beside the device: decoding and tokenising on tokio's blocking threads, a bounded number at once.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::domain::Lane;
use crate::runtime::cores;

/// Who may use the CPU. Each lane has permits of its own, so that a search does not wait behind four hundred
/// pictures of an indexing run.
pub(super) struct PreparePool {
    bulk: Arc<Semaphore>,
    search: Arc<Semaphore>,
}

/// The work panicked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Panicked;

impl PreparePool {
    /// `threads` is `image.threads`; 0 means one per core.
    pub fn new(threads: usize) -> Self {
        let threads = match threads {
            0 => cores(),
            n => n,
        };
        Self { bulk: Arc::new(Semaphore::new(threads)), search: Arc::new(Semaphore::new(threads)) }
    }

    /// Runs `work` once a permit of the lane is free.
    ///
    /// # Errors
    /// [`Panicked`], with the house unharmed.
    ///
    /// # Cancel safety
    /// Work that waits for a permit is never begun; work that runs ends by itself and keeps its permit until
    /// then.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        let permits = match lane {
            Lane::Search => &self.search,
            Lane::Bulk => &self.bulk,
        };
        let permit = permits.clone().acquire_owned().await.expect("the semaphores are never closed");
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
        // The only other cause is a runtime that shuts down, where nobody reads the answer.
        .map_err(|_| Panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_gives_its_permit_back() {
        let pool = PreparePool::new(1);
        assert_eq!(pool.run(Lane::Bulk, || panic!("told to panic")).await, Err::<(), _>(Panicked));
        assert_eq!(pool.run(Lane::Bulk, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_search_does_not_wait_for_bulk() {
        let pool = Arc::new(PreparePool::new(1));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let bulk = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(Lane::Bulk, move || held.recv()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(pool.bulk.available_permits(), 0);
        assert_eq!(pool.run(Lane::Search, || 7).await, Ok(7));
        release.send(()).unwrap();
        bulk.await.unwrap().unwrap().unwrap();
    }
}
