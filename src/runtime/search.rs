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
#[cfg(target_os = "linux")]
use super::{device::cores, schedule::set_threads, team::Team};

/// Those that are still in use. For the whole process, as libgomp counts.
static SHARED: Mutex<Vec<(Schedule, Weak<Thread>)>> = Mutex::new(Vec::new());

/// A handle; the thread ends with the last one.
#[derive(Clone)]
pub(super) struct SearchThread(Arc<Thread>);

struct Thread {
    /// Of one.
    pool: ThreadPool,
    /// It and its helpers, where they have a core each.
    #[cfg(target_os = "linux")]
    team: Mutex<Option<Team>>,
}

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
        let thread = Arc::new(Thread::start(schedule)?);
        shared.push((schedule.clone(), Arc::downgrade(&thread)));
        Ok(Self(thread))
    }

    /// Runs `pass` there, after those that came before, and waits. Its panic is the caller's.
    pub fn run<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        self.0.pool.install(|| {
            #[cfg(target_os = "linux")]
            self.0.look_after_team();
            pass()
        })
    }
}

impl Thread {
    fn start(schedule: &Schedule) -> io::Result<Self> {
        let own = schedule.clone();
        let pool = ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "search".into())
            .start_handler(move |_| own.enter())
            .build()
            .map_err(io::Error::other)?;
        Ok(Self {
            #[cfg(target_os = "linux")]
            team: Mutex::new(pool.install(|| Team::pin(schedule.threads))),
            pool,
        })
    }

    /// For good once it has come apart: it would again.
    #[cfg(target_os = "linux")]
    fn look_after_team(&self) {
        let mut team = self.team.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(team) = team.take_if(|team| !team.is_in_place()) {
            team.release();
            // Somebody may have taken cores away.
            let threads = tch::get_num_threads().unsigned_abs() as usize;
            set_threads(threads.min(cores()));
            tracing::debug!(threads, cores = cores(), "no thread of a search has a core of its own any more");
        }
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

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_have_a_core_each_until_somebody_moves_them() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let home = sched_getaffinity(None).unwrap();
        let n_cores = home.count() as usize;
        // No other test has this niceness.
        let schedule = Schedule { threads: n_cores, niceness: 3, cores: CoreList::default() };
        let search = SearchThread::shared(&schedule).unwrap();
        let state =
            || search.run(|| (sched_getaffinity(None).unwrap().count() as usize, tch::get_num_threads()));
        let has_team = || search.0.team.lock().unwrap().is_some();
        assert_eq!([state(), state()], [(1, n_cores as i32); 2]);
        assert_eq!(has_team(), n_cores > 1);
        let last = (0..CpuSet::MAX_CPU).rfind(|core| home.is_set(*core)).unwrap();
        let mut only_last = CpuSet::new();
        only_last.set(last);
        search.run(|| sched_setaffinity(None, &only_last)).unwrap();
        assert_eq!(state(), (1, 1), "it stays on the one core, with one thread");
        assert!(!has_team());
    }
}
