//! What runs in a process that decodes: one picture after the other, until nobody asks any more.
//!
//! It can open no file, gain no right, and take no more memory and CPU time than a picture may. Its standard input is a
//! socket, which it answers on; nothing is ever written to standard output.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::super::{ImagingOptions, prepare};
use super::wire::{self, Ready, Request, Response};

/// Bytes that a picture may take beside what is reckoned: resampling, tables, what the allocator holds.
const SLACK: u64 = 64 << 20;
/// By so many bytes may the process grow, by what its pictures leave behind, before another takes its place.
const MAX_GROWTH: u64 = 128 << 20;

/// Why a process that decodes ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot be held back.
    #[error("cannot limit what decoding takes: {0}")]
    Limits(#[source] io::Error),
    /// Whoever started it is not Sidelens, or gone.
    #[error("standard input is not a socket of Sidelens: {0}")]
    Wire(#[from] io::Error),
}

/// Prepares pictures that are asked for on standard input, which is a socket, until it is closed.
///
/// # Errors
/// [`ServeError`].
pub fn serve() -> Result<(), ServeError> {
    let mut wire = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let cell = Cell::enter().map_err(ServeError::Limits)?;
    wire::send(&mut wire, &Ready, &[])?;
    while let Some((request, bytes)) = wire::head::<Request>(&mut wire)? {
        cell.make_room(&request.options, bytes).map_err(ServeError::Limits)?;
        let encoded = wire::body(&mut wire, bytes)?;
        let outcome = prepare(&encoded, &request.spec, &request.options);
        drop(encoded);
        let is_last = cell.has_grown().map_err(ServeError::Limits)?;
        match outcome {
            Ok(pixels) => {
                let outcome = Ok([pixels.height, pixels.width]);
                wire::send(&mut wire, &Response { outcome, is_last }, &pixels.rgb8)?;
            }
            Err(error) => wire::send(&mut wire, &Response { outcome: Err(error), is_last }, &[])?,
        }
        if is_last {
            break;
        }
    }
    Ok(())
}

/// What the process is held in.
struct Cell {
    /// Where Linux tells the process's size; opened before nothing can be.
    status: Option<File>,
    /// Bytes of addresses at the start: libraries, mostly.
    at_start: u64,
}

impl Cell {
    fn enter() -> io::Result<Self> {
        // Whoever ends the service may tell all of its processes, as systemd does, but pictures are waited for. This one
        // ends with its socket.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: It sets no handler, which could run in the middle of anything.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let mut cell = Self { status: None, at_start: 0 };
        #[cfg(target_os = "linux")]
        {
            rustix::thread::set_no_new_privs(true)?;
            // Where memory runs out it is to be this process, not the service; fails where `/proc` is read-only.
            let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
            cell.status = Some(File::open("/proc/self/status")?);
            cell.at_start = cell.addresses()?;
        }
        for resource in [Resource::Core, Resource::Nofile] {
            setrlimit(resource, Rlimit { current: Some(0), maximum: Some(0) })?;
        }
        Ok(cell)
    }

    /// Allows what one picture may take, from now on.
    fn make_room(&self, options: &ImagingOptions, encoded_bytes: u64) -> io::Result<()> {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32);
        // The kernel counts whole seconds, and the decoder is to end by itself where it can.
        let seconds = used.saturating_add(Duration::from_millis(options.timeout_ms)).as_secs();
        allow(Resource::Cpu, seconds.saturating_add(2))?;
        // The file is there twice.
        let picture = options.max_memory_bytes.saturating_add(encoded_bytes.saturating_mul(2));
        match self.addresses()? {
            0 => Ok(()),
            addresses => allow(Resource::As, addresses.saturating_add(picture).saturating_add(SLACK)),
        }
    }

    fn has_grown(&self) -> io::Result<bool> {
        Ok(self.addresses()? > self.at_start + MAX_GROWTH)
    }

    /// Bytes of addresses now; 0 where the system does not tell.
    fn addresses(&self) -> io::Result<u64> {
        let Some(status) = &self.status else { return Ok(0) };
        let mut text = [0; 4096];
        let n = status.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..n]);
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB"));
        let kilobytes = kilobytes.and_then(|number| number.trim().parse::<u64>().ok());
        Ok(kilobytes.ok_or_else(|| io::Error::other("/proc/self/status has no VmSize"))? << 10)
    }
}

/// Sets a limit that can be raised again.
fn allow(resource: Resource, most: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = Some(maximum.map_or(most, |maximum| most.min(maximum)));
    Ok(setrlimit(resource, Rlimit { current, maximum })?)
}
