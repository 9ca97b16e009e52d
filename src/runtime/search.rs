//! The thread that computes the searches of all models on the CPU.
//!
//! libgomp keeps helpers for every thread that computes with several, for as long as that lives. While all threads and
//! their helpers are no more than the cores they spin where they wait for each other; else each wait is a sleep, a pass
//! has a hundred of them, and a search takes twice as long. So models that search with as many threads on the same cores
//! share one thread and its helpers. They would share the cores anyway.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::schedule::Schedule;

/// Those that are still in use. For the whole process, as libgomp counts.
static SHARED: Mutex<Vec<(Schedule, Weak<ThreadPool>)>> = Mutex::new(Vec::new());

/// A handle; the thread ends with the last one.
#[derive(Clone)]
pub(super) struct SearchThread(Arc<ThreadPool>);

impl SearchThread {
    /// The one with this schedule.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn shared(schedule: &Schedule) -> io::Result<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, thread)| thread.strong_count() > 0);
        let same = shared.iter().find(|(other, _)| other == schedule);
        if let Some(thread) = same.and_then(|(_, thread)| thread.upgrade()) {
            return Ok(Self(thread));
        }
        let own = schedule.clone();
        let thread = ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "search".into())
            .start_handler(move |_| own.enter())
            .build()
            .map_err(io::Error::other)?;
        let thread = Arc::new(thread);
        shared.push((schedule.clone(), Arc::downgrade(&thread)));
        Ok(Self(thread))
    }

    /// Runs `pass` there, after those that came before, and waits. Its panic is the caller's.
    pub fn run<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        self.0.install(pass)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::config::CoreList;

    #[test]
    fn a_thread_is_shared_by_those_of_the_same_schedule_and_ends_with_the_last() {
        // No other test has as many.
        let schedule = |threads| Schedule { threads, niceness: 0, cores: CoreList::default() };
        let id = |search: &SearchThread| search.run(|| thread::current().id());
        let first = SearchThread::shared(&schedule(91)).unwrap();
        let second = SearchThread::shared(&schedule(91)).unwrap();
        let other = SearchThread::shared(&schedule(92)).unwrap();
        assert_eq!(id(&first), id(&second));
        assert_ne!(id(&first), id(&other));
        assert_ne!(id(&first), thread::current().id());
        assert_eq!((first.run(tch::get_num_threads), other.run(tch::get_num_threads)), (91, 92));

        let before = id(&first);
        drop(first);
        assert_eq!(id(&second), before);
        drop(second);
        assert_ne!(id(&SearchThread::shared(&schedule(91)).unwrap()), before);
    }
}
