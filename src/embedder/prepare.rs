//! CPU work beside the device, decoding and tokenising: a bounded number at once.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, oneshot};

use crate::domain::Lane;
use crate::runtime::{cores, step_back};

/// Who may use the CPU. Each lane has permits of its own, so that a search does not wait behind four hundred
/// pictures of an indexing run; and threads of its own, so that bulk can step back. A search's pass meets at a
/// barrier a hundred times: a thread that decodes on one of its cores costs it a scheduling tick each time.
pub(super) struct PreparePool {
    bulk: Arc<Semaphore>,
    bulk_threads: ThreadPool,
    search: Arc<Semaphore>,
}

/// The work panicked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Panicked;

impl PreparePool {
    /// `threads` is `image.threads`; 0 means one per core.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let threads = match threads {
            0 => cores(),
            n => n,
        };
        let bulk_threads = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("prepare-{i}"))
            .start_handler(|_| step_back())
            .build()
            .map_err(io::Error::other)?;
        let permits = || Arc::new(Semaphore::new(threads));
        Ok(Self { bulk: permits(), bulk_threads, search: permits() })
    }

    /// How much of a lane's work runs at once.
    pub fn threads(&self) -> usize {
        self.bulk_threads.current_num_threads()
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
        let (sender, answer) = oneshot::channel();
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked);
            drop(permit);
            // A caller that has left is not missed.
            let _ = sender.send(result);
        };
        match lane {
            Lane::Search => drop(tokio::task::spawn_blocking(work)),
            Lane::Bulk => self.bulk_threads.spawn(work),
        }
        // Dropped unanswered only by a runtime that shuts down, where nobody reads the answer.
        answer.await.unwrap_or(Err(Panicked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_gives_its_permit_back() {
        let pool = PreparePool::new(1).unwrap();
        assert_eq!(pool.run(Lane::Bulk, || panic!("told to panic")).await, Err::<(), _>(Panicked));
        assert_eq!(pool.run(Lane::Bulk, || 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_search_does_not_wait_for_bulk() {
        let pool = Arc::new(PreparePool::new(1).unwrap());
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

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn bulk_steps_back_and_a_search_does_not() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let pool = PreparePool::new(2).unwrap();
        let here = niceness();
        assert_eq!(pool.run(Lane::Search, niceness).await, Ok(here));
        assert!(pool.run(Lane::Bulk, niceness).await.unwrap() > here);
    }
}
