//! The threads that compute a pass together: one, and the helpers that libgomp keeps for it.

use std::{
    ffi::{c_int, c_uint, c_void},
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The calling thread and its helpers, each on a core of its own.
///
/// Now and then the kernel puts two of them on one core, and leaves them there while bulk keeps the other cores busy.
/// They meet a hundred times in a pass, and each time one waits asleep until the other has had its turn.
#[derive(Debug)]
pub(super) struct Team {
    /// The core of each, the calling thread's first.
    cores: Vec<usize>,
    /// Where they might run before.
    home: CpuSet,
}

impl Team {
    /// Of `threads`, 2 or more, where they may run on just as many cores: all that is settled then is who sits where.
    pub fn pin(threads: usize) -> Option<Self> {
        let home = sched_getaffinity(None).ok()?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| home.is_set(*core)).collect();
        if threads < 2 || threads != cores.len() {
            return None;
        }
        Self { cores, home }.pinned()
    }

    fn pinned(self) -> Option<Self> {
        if self.all(|core| sched_setaffinity(None, &only(core)).is_ok()) {
            return Some(self);
        }
        tracing::warn!(cores = ?self.cores, "cannot give each thread of a search one of these cores");
        self.release();
        None
    }

    /// Whether each is where it was put. libgomp ends helpers where a product wants fewer and starts others later, which
    /// inherit the calling thread's core.
    pub fn is_in_place(&self) -> bool {
        self.all(|core| sched_getaffinity(None).is_ok_and(|set| set == only(core)))
    }

    /// Lets each run where it might before; but for those whom somebody else has put elsewhere meanwhile, which shows by the
    /// calling thread: libgomp leaves that alone.
    pub fn release(self) {
        if sched_getaffinity(None).is_ok_and(|set| set == only(self.cores[0])) {
            // What cannot be put back has not been moved.
            self.all(|_| sched_setaffinity(None, &self.home).is_ok());
        }
    }

    /// Whether `holds` does for each thread, which it is called on with its core, all at once.
    fn all(&self, holds: impl Fn(usize) -> bool + Sync) -> bool {
        let n_holding = AtomicUsize::new(0);
        on_each(self.cores.len(), &|i| {
            if holds(self.cores[i]) {
                n_holding.fetch_add(1, Ordering::Relaxed);
            }
        });
        n_holding.into_inner() == self.cores.len()
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

// libgomp's, which libtorch computes with and torch-sys links: what compilers make of OpenMP's `parallel`.
unsafe extern "C" {
    fn GOMP_parallel(body: extern "C" fn(*mut c_void), data: *mut c_void, n_threads: c_uint, flags: c_uint);
    fn omp_get_thread_num() -> c_int;
}

/// Calls `visit` on the calling thread, which is 0, and on its helpers, `n_threads` in all, or fewer where the system
/// gives no more.
fn on_each(n_threads: usize, visit: &(dyn Fn(usize) + Sync)) {
    extern "C" fn body(visit: *mut c_void) {
        // SAFETY: It is the reference below, which outlives the call, to what may be called from all threads.
        let visit = unsafe { *visit.cast::<&(dyn Fn(usize) + Sync)>() };
        // SAFETY: It asks nothing of its caller.
        let number = unsafe { omp_get_thread_num() };
        visit(usize::try_from(number).expect("threads are counted from 0"));
    }
    let n_threads = c_uint::try_from(n_threads).unwrap_or(c_uint::MAX);
    // SAFETY: It returns when all threads are through with `body`, which ends the process rather than unwind.
    unsafe { GOMP_parallel(body, (&raw const visit).cast_mut().cast(), n_threads, 0) };
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, thread};

    use super::*;

    /// On a thread whose helpers end with it.
    fn alone<R: Send>(test: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| scope.spawn(test).join().unwrap())
    }

    fn cores_of_each(n_threads: usize) -> Vec<CpuSet> {
        let sets = Mutex::new(vec![CpuSet::new(); n_threads]);
        on_each(n_threads, &|i| sets.lock().unwrap()[i] = sched_getaffinity(None).unwrap());
        sets.into_inner().unwrap()
    }

    #[test]
    fn each_thread_has_a_core_of_its_own_and_gets_back_what_it_had() {
        let home = sched_getaffinity(None).unwrap();
        let n_cores = home.count() as usize;
        let (apart, released) = alone(|| {
            let team = Team::pin(n_cores);
            let apart = cores_of_each(n_cores);
            if let Some(team) = team {
                assert!(team.is_in_place());
                team.release();
            }
            (apart, cores_of_each(n_cores))
        });
        let cores = (0..CpuSet::MAX_CPU).filter(|core| home.is_set(*core));
        assert_eq!(apart, cores.map(only).collect::<Vec<_>>());
        assert_eq!(released, vec![home; n_cores]);
    }

    #[test]
    fn threads_that_are_not_as_many_as_cores_stay_where_they_are() {
        let n_cores = sched_getaffinity(None).unwrap().count() as usize;
        assert!(alone(|| Team::pin(n_cores + 1)).is_none());
        assert!(alone(|| Team::pin(1)).is_none());
    }

    #[test]
    fn a_helper_that_was_started_anew_is_noticed() {
        let home = sched_getaffinity(None).unwrap();
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| home.is_set(*core)).collect();
        // A core more than once, as tests run on two.
        let [first, last] = [cores[0], cores[cores.len() - 1]];
        alone(|| {
            let team = Team { cores: vec![first, last, last], home }.pinned().unwrap();
            assert!(team.is_in_place());
            on_each(2, &|_| {});
            assert_eq!(team.is_in_place(), first == last);
            team.release();
            assert_eq!(cores_of_each(3), [home; 3]);
        });
    }

    #[test]
    fn threads_that_somebody_else_has_moved_stay_there() {
        let home = sched_getaffinity(None).unwrap();
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| home.is_set(*core)).collect();
        let [first, last] = [cores[0], cores[cores.len() - 1]];
        if first == last {
            return;
        }
        alone(|| {
            let team = Team { cores: vec![first, last], home }.pinned().unwrap();
            on_each(2, &|_| sched_setaffinity(None, &only(last)).unwrap());
            assert!(!team.is_in_place());
            team.release();
            assert_eq!(cores_of_each(2), [only(last); 2]);
        });
    }
}
