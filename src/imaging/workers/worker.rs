//! One process that decodes, seen from outside.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::{ImagingError, ImagingOptions, crop};
use super::wire::{self, Ready, Request, Response};
use crate::domain::{ImageSpec, Pixels};

/// Of the environment, where libraries may lie.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
/// The most bytes that are kept of a process's last words.
const LAST_WORDS: usize = 2048;
/// The signals that a decoder brings upon itself. All others come from outside.
const ITS_OWN: [Signal; 8] = [
    Signal::ABORT,
    Signal::BUS,
    Signal::FPE,
    Signal::ILL,
    Signal::SEGV,
    Signal::SYS,
    Signal::TRAP,
    Signal::XCPU,
];

/// Killed when dropped, and waited for.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    wire: UnixStream,
    /// Reads what it says, so that it never waits for that.
    listener: Option<JoinHandle<LastWords>>,
}

/// A picture that is asked for.
pub(super) struct Ask<'a> {
    pub encoded: &'a [u8],
    pub spec: &'a ImageSpec,
    pub options: &'a ImagingOptions,
    /// Until when an answer is waited for.
    pub until: Instant,
}

/// What came back.
pub(super) struct Answer {
    pub outcome: Result<Pixels, ImagingError>,
    /// Whether the process is not to be asked again.
    pub is_last: bool,
}

impl Worker {
    /// Starts one, and waits until it is ready.
    pub fn start(mut command: Command, until: Instant) -> io::Result<Self> {
        let (wire, theirs) = UnixStream::pair()?;
        command.env_clear().envs(std::env::var_os(LIBRARY_PATH).map(|path| (LIBRARY_PATH, path)));
        // An interrupt from the terminal is for the service, which has requests to answer first.
        command.process_group(0);
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // Holds their end of the wire, whose close is to be seen.
        drop(command);
        let stderr = child.stderr.take();
        let mut worker = Self { child, wire, listener: None };
        let listen = move || LastWords::of(stderr);
        worker.listener = Some(thread::Builder::new().name("listen".into()).spawn(listen)?);
        match wire::head::<Ready>(&mut Timed { wire: &worker.wire, until }).and_then(there) {
            Ok(_) => Ok(worker),
            Err(error) => {
                let (status, said) = worker.end()?;
                Err(io::Error::new(error.kind(), format!("{error}; {status}; {said}")))
            }
        }
    }

    /// Hands over a picture and waits for what becomes of it.
    ///
    /// # Errors
    /// When there is no answer in time, or none that can be understood. Then nothing can be asked any more.
    pub fn ask(&mut self, ask: &Ask) -> io::Result<Answer> {
        let Ask { encoded, spec, options, until } = *ask;
        let mut wire = Timed { wire: &self.wire, until };
        let request = Request { spec: Cow::Borrowed(spec), options: Cow::Borrowed(options) };
        wire::send(&mut wire, &request, encoded)?;
        let (Response { outcome, is_last }, bytes) = wire::head(&mut wire).and_then(there)?;
        let outcome = match outcome {
            Err(error) => Err(error),
            Ok([height, width]) => {
                let expected = (u64::from(height) * u64::from(width)).saturating_mul(3);
                if bytes != expected || expected / 3 > crop::most_pixels(spec, options.max_pixels) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "pixels of another size"));
                }
                Ok(Pixels { rgb8: wire::body(&mut wire, bytes)?, height, width })
            }
        };
        Ok(Answer { outcome, is_last })
    }

    /// Ends it, and says what that makes of the picture that it did not answer because of `error`.
    pub fn loss(mut self, error: io::Error, format: &'static str, options: &ImagingOptions) -> ImagingError {
        let no_decoder = |error: io::Error| ImagingError::NoDecoder { format, reason: error.to_string() };
        let pid = self.child.id();
        let (status, said) = match self.end() {
            Ok(end) => end,
            Err(error) => return no_decoder(error),
        };
        tracing::warn!(pid, %error, %status, said, "a process that decodes {format} is lost");
        if error.kind() == io::ErrorKind::TimedOut {
            return no_decoder(error);
        }
        // By the system, for want of memory, by whoever ends processes, or by us, for an answer that makes no sense: a picture
        // that takes more than its own share ends otherwise.
        let is_its_own = |signal| ITS_OWN.iter().any(|own| own.as_raw() == signal);
        if status.signal().is_some_and(|signal| !is_its_own(signal)) {
            return no_decoder(io::Error::other(format!("its process was killed ({status}; {error})")));
        }
        if status.signal() == Some(Signal::XCPU.as_raw()) {
            return ImagingError::TooSlow { format, limit_ms: options.timeout_ms };
        }
        // What Rust says before it aborts.
        if said.contains("memory allocation of") {
            let limit = options.max_memory_bytes;
            return ImagingError::TooMuchMemory { format, needed: limit.saturating_add(1), limit };
        }
        ImagingError::DecoderDied { format, how: status.to_string() }
    }

    /// How it ended, by itself or now, and what it said.
    fn end(&mut self) -> io::Result<(ExitStatus, String)> {
        // Closed already where it ended by itself, whose status this does not change.
        self.child.kill()?;
        let status = self.child.wait()?;
        let said = self.listener.take().and_then(|listener| listener.join().ok()).unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&said.0).trim().to_owned()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only where it was waited for before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of what was written.
#[derive(Debug, Default)]
struct LastWords(Vec<u8>);

impl LastWords {
    /// Listens until nobody can say any more.
    fn of(stderr: Option<ChildStderr>) -> Self {
        let mut words = Self::default();
        if let Some(mut stderr) = stderr {
            // What was said before an error is what there is.
            let _ = io::copy(&mut stderr, &mut words);
        }
        words
    }
}

impl Write for LastWords {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(buf);
        let too_many = self.0.len().saturating_sub(LAST_WORDS);
        self.0.drain(..too_many);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn there<T>(message: Option<T>) -> io::Result<T> {
    message.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The wire, with an end to waiting.
struct Timed<'a> {
    wire: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(late()),
            left => Ok(Some(left)),
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "its process got nothing done in time")
}

/// What the system says when the time of a socket is over.
fn in_time(result: io::Result<usize>) -> io::Result<usize> {
    result.map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { late() } else { error })
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wire.set_read_timeout(self.left()?)?;
        in_time(self.wire.read(buf))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.wire.set_write_timeout(self.left()?)?;
        in_time(self.wire.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wire.flush()
    }
}
