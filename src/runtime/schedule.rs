//! Which cores a thread runs on, and who goes first on them.

use crate::config::CoreList;

/// How much a thread that computes bulk steps back: the kernel gives it what searches leave over, within a
/// scheduling tick, so that a search waits for no bulk batch on the CPU.
pub(super) const BULK_NICENESS: i32 = 19;

/// How many passes of bulk run side by side on the CPU where nothing is set. One per core measures best on two
/// cores: nobody waits at a barrier for a thread that is decoding a picture, and passes of one thread have no helpers,
/// beside which searches would wait asleep (`search.rs`). Each pass streams all weights through the caches, so there is
/// an end to it: with AMX, where one of a ViT-B/32 takes a tenth of a second, so many read some 240 GB a second (reckoned),
/// which is about what hosts of that many cores can.
#[cfg(any(feature = "torch", test))]
const MAX_REPLICAS: usize = 128;

/// The threads of the CPU, dealt out.
#[cfg(any(feature = "torch", test))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Threads of a search's pass.
    pub search: usize,
    /// Threads of each pass of bulk that runs beside the others.
    pub bulk: Vec<usize>,
}

#[cfg(any(feature = "torch", test))]
impl Layout {
    /// Deals out `threads` (1 or more) to `replicas` passes of bulk, 0 for as many as do well.
    pub fn new(threads: usize, replicas: usize) -> Self {
        let bulk = match replicas.min(threads) {
            // Without helpers, whatever that leaves over.
            0 => vec![1; threads.min(MAX_REPLICAS)],
            n => (0..n).map(|i| threads / n + usize::from(i < threads % n)).collect(),
        };
        Self { search: threads, bulk }
    }
}

/// Where and with how many threads an engine computes.
#[cfg(feature = "torch")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    pub threads: usize,
    pub niceness: i32,
    pub cores: CoreList,
}

#[cfg(feature = "torch")]
impl Schedule {
    /// Makes it the calling thread's, before its first parallel region: helpers inherit it.
    pub fn enter(&self) {
        enter(&self.cores, self.niceness);
        // libtorch keeps the number per thread, but a thread's first look at it takes over whatever any thread has
        // set last. So it is made to look before it is set.
        tch::get_num_threads();
        set_threads(self.threads);
    }
}

/// How many threads libtorch computes with where the calling thread asks it to.
#[cfg(feature = "torch")]
pub(super) fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// Puts the calling thread, and those that it starts later, on `cores` (all where there are none), `niceness`
/// steps back. What the system refuses is left as it is, with a warning.
fn enter(cores: &CoreList, niceness: i32) {
    #[cfg(target_os = "linux")]
    {
        use rustix::{
            process::setpriority_process,
            thread::{CpuSet, sched_setaffinity},
        };
        if !cores.is_empty() {
            let mut set = CpuSet::new();
            cores.iter().filter(|core| *core < CpuSet::MAX_CPU).for_each(|core| set.set(core));
            if let Err(error) = sched_setaffinity(None, &set) {
                tracing::warn!(%error, %cores, "cannot pin a thread to `model.cores`");
            }
        }
        // On Linux niceness is a thread's own; stepping back needs no right.
        if niceness > 0
            && let Err(error) = setpriority_process(None, niceness)
        {
            tracing::warn!(%error, niceness, "cannot let searches go before bulk");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (cores, niceness);
}

/// Puts the calling thread behind everybody who does not do bulk work.
pub fn step_back() {
    enter(&CoreList::default(), BULK_NICENESS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_dealt_out_evenly() {
        let layout = |threads, replicas| Layout::new(threads, replicas).bulk;
        assert_eq!(layout(2, 0), [1, 1]);
        assert_eq!(layout(1, 0), [1]);
        assert_eq!(layout(2, 1), [2]);
        assert_eq!(layout(16, 0), [1; 16]);
        assert_eq!(layout(11, 8), [2, 2, 2, 1, 1, 1, 1, 1]);
        assert_eq!(layout(64, 0), [1; 64]);
        assert_eq!(layout(192, 0), [1; 128], "two to a pass would be helpers");
        assert_eq!(layout(192, 96), [2; 96]);
        assert_eq!(layout(2, 5), [1, 1], "no pass is without a thread");
        assert_eq!(Layout::new(6, 3).search, 6);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_steps_back_alone() {
        let of_thread = || rustix::process::getpriority_process(None).unwrap();
        let before = of_thread();
        let inside = std::thread::spawn(move || {
            enter(&CoreList::default(), BULK_NICENESS);
            of_thread()
        });
        assert_eq!(inside.join().unwrap(), BULK_NICENESS);
        assert_eq!(of_thread(), before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_pinned() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..1024).find(|core| allowed.is_set(*core)).unwrap();
        let pinned = std::thread::spawn(move || {
            enter(&core.to_string().parse().unwrap(), 0);
            rustix::thread::sched_getaffinity(None).unwrap()
        });
        let pinned = pinned.join().unwrap();
        assert_eq!((pinned.count(), pinned.is_set(core)), (1, true));
    }
}
