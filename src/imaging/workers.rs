//! Pictures decoded in processes of their own, which may be ended: AVIF, as rav1d ends the process where it panics, and what
//! may take more memory than it should and does not tell before.
//!
//! A thread that decodes takes a process which is idle, or starts one, and hands it the file (`wire.rs`); there `prepare`
//! runs as it would here (`serve.rs`) and pixels of the model's size come back. What ends the process fails one picture
//! (`worker.rs`). A process costs half a second and sixty megabytes, for libtorch comes with the program: hence none is
//! started before it is needed, it is used again, and one that was idle for a while goes.

mod serve;
mod wire;
mod worker;

use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rustix::process::getpriority_process;

use super::{ImagingError, ImagingOptions};
use crate::domain::{ImageSpec, Pixels};

pub use serve::{ServeError, serve};
use worker::{Ask, Worker};

/// How long a process may take to start: half a second, but on a machine that has other things to do.
const START: Duration = Duration::from_secs(30);

/// How a process is started that calls [`serve()`]. Of the environment it gets nothing but what finds libraries.
pub type WorkerCommand = fn() -> Command;

/// The processes that decode. They end with it.
#[derive(Debug)]
pub struct Workers {
    command: WorkerCommand,
    retire_after: Duration,
    lost: IntCounter,
    shelf: Arc<Mutex<Shelf>>,
}

/// What is idle.
#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Idle>,
    /// Whether a thread looks after them.
    is_watched: bool,
}

#[derive(Debug)]
struct Idle {
    worker: Worker,
    /// Of the thread that started it, which it has inherited: bulk must not compute beside a search as its equal.
    niceness: i32,
    since: Instant,
}

impl Workers {
    /// No process yet. One that was idle for `retire_after` is ended; `lost` counts those that did not answer
    /// for a picture, whoever is to blame.
    pub fn new(command: WorkerCommand, retire_after: Duration, lost: IntCounter) -> Self {
        Self { command, retire_after, lost, shelf: Arc::default() }
    }

    /// [`prepare`](super::prepare) in a process of its own; waits for it.
    pub(super) fn prepare(
        &self,
        format: &'static str,
        encoded: &[u8],
        spec: &ImageSpec,
        options: &ImagingOptions,
    ) -> Result<Pixels, ImagingError> {
        let niceness = getpriority_process(None).unwrap_or(0);
        loop {
            let idle = self.take(niceness);
            let was_idle = idle.is_some();
            let mut worker = match idle {
                Some(worker) => worker,
                None => Worker::start((self.command)(), Instant::now() + START)
                    .map_err(|error| ImagingError::NoDecoder { format, reason: error.to_string() })?,
            };
            let until = Instant::now() + patience(options.timeout_ms);
            match worker.ask(&Ask { encoded, spec, options, until }) {
                Ok(answer) => {
                    if !answer.is_last {
                        self.put_back(Idle { worker, niceness, since: Instant::now() });
                    }
                    return answer.outcome;
                }
                // Killed while it was idle, it has not read the picture to its end: no fault of the picture's.
                Err(error) if was_idle && matches!(error.kind(), ConnectionReset | BrokenPipe) => {}
                Err(error) => {
                    self.lost.inc();
                    return Err(worker.loss(error, format, options));
                }
            }
        }
    }

    /// The one that was used last, so that those above the need grow old.
    fn take(&self, niceness: i32) -> Option<Worker> {
        let mut shelf = lock(&self.shelf);
        let at = shelf.idle.iter().rposition(|idle| idle.niceness == niceness)?;
        Some(shelf.idle.remove(at).worker)
    }

    fn put_back(&self, idle: Idle) {
        let mut shelf = lock(&self.shelf);
        shelf.idle.push(idle);
        if !shelf.is_watched {
            let (weak, after) = (Arc::downgrade(&self.shelf), self.retire_after);
            let watch = move || watch(&weak, after);
            // Without a thread they stay; the next one to come back tries again.
            shelf.is_watched = thread::Builder::new().name("retire".into()).spawn(watch).is_ok();
        }
    }
}

/// Ends what was idle for so long, until nothing is idle.
fn watch(shelf: &Weak<Mutex<Shelf>>, after: Duration) {
    loop {
        thread::sleep(after);
        let Some(shelf) = shelf.upgrade() else { return };
        let mut shelf = lock(&shelf);
        let old: Vec<_> = shelf.idle.extract_if(.., |idle| idle.since.elapsed() >= after).collect();
        shelf.is_watched = !shelf.idle.is_empty();
        let is_watched = shelf.is_watched;
        drop(shelf);
        drop(old);
        if !is_watched {
            return;
        }
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a picture is waited for. The kernel ends a process whose CPU time is over: this is for one that does not get
/// any, and so says nothing about the picture.
fn patience(timeout_ms: u64) -> Duration {
    Duration::from_secs(5) + Duration::from_millis(timeout_ms.saturating_mul(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Filter, ItemErrorKind, Resize};

    fn prepare(command: WorkerCommand, timeout_ms: u64) -> (ImagingError, u64) {
        let lost = IntCounter::new("lost", "Lost.").unwrap();
        let workers = Workers::new(command, Duration::from_secs(60), lost.clone());
        let workers = Some(Arc::new(workers));
        let options = ImagingOptions { workers, timeout_ms, ..ImagingOptions::REFERENCE };
        let spec = ImageSpec {
            resize: Resize::ShortestEdge(8),
            crop: Some([8, 8]),
            filter: Filter::Bilinear,
            rescale_factor: 1.0,
            mean: [0.0; 3],
            std: [1.0; 3],
        };
        let encoded = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf";
        (super::super::prepare(encoded, &spec, &options).unwrap_err(), lost.get())
    }

    #[test]
    fn a_program_that_is_no_worker_is_our_fault() {
        // Not there, ends at once, does not answer in this language.
        let programs: [(WorkerCommand, &str); 3] = [
            (|| Command::new("/nonexistent/sidelens"), "No such file"),
            (|| Command::new("/bin/false"), "exit status: 1"),
            (
                || {
                    let mut command = Command::new("/bin/sh");
                    command.args([
                        "-c",
                        "seq 20000 >&2; echo what is to be said >&2; echo hello hello hello >&0",
                    ]);
                    command
                },
                "what is to be said",
            ),
        ];
        for (command, words) in programs {
            let (error, n_lost) = prepare(command, 10);
            assert_eq!((error.kind(), n_lost), (ItemErrorKind::Internal, 0), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
