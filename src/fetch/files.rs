//! Files below one directory, `fetch.files_root`: by `file://` URL, or by a path relative to it.
//!
//! The kernel resolves the path and refuses to leave the directory while it does, by `..` or by symbolic
//! link: there is no check that a change of the directory could come after.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::io::Errno;
use tokio::{task::spawn_blocking, time::timeout};
use url::Url;

use super::backlog::Backlog;
use super::places::{Bound, Places, SEARCHES};
use super::{FetchError, FetchSetupError, Fetched, HostFailure, Source, has_scheme};
use crate::config::FetchConfig;
use crate::domain::{ContentDigest, Lane};

/// The most characters of a file's name in a message.
const MAX_NAME_CHARS: usize = 40;

/// The directory and its limits.
pub(super) struct Files {
    /// Absolute; `None` where no file is read.
    root: Option<PathBuf>,
    max_bytes: usize,
    timeout_ms: u64,
    /// Files read at once: half of the places, so that files which hang leave room for what does not.
    readers: Bound,
    places: Places,
    backlog: Backlog,
}

impl Files {
    /// Tries the directory, so that a mistake in its name is found at the start.
    pub(super) fn new(
        config: &FetchConfig,
        places: Places,
        backlog: Backlog,
    ) -> Result<Self, FetchSetupError> {
        let root = match config.files_root.as_str() {
            "" => None,
            root => {
                let wrong = |source| FetchSetupError::FilesRoot { path: root.into(), source };
                let root = std::path::absolute(root).map_err(wrong)?;
                open_beneath(&root, Path::new(".")).map_err(wrong)?;
                Some(root)
            }
        };
        let &FetchConfig { max_bytes, timeout_ms, max_concurrent, .. } = config;
        let readers = Bound::new(max_concurrent / 2, SEARCHES / 2);
        Ok(Self { root, max_bytes, timeout_ms, readers, places, backlog })
    }

    /// Whether any file may be read.
    pub(super) fn are_on(&self) -> bool {
        self.root.is_some()
    }

    async fn get(&self, address: &str, lane: Lane) -> Result<Bytes, FetchError> {
        let root = self.root.clone().ok_or(FetchError::FilesOff)?;
        let path = below(&root, address)?;
        let name = shown(&path);
        let reader = self.readers.take(lane).await;
        let _place = self.places.take(lane).await;
        let share = self.backlog.share(lane).await;
        let max_bytes = self.max_bytes;
        let reading = spawn_blocking(move || {
            // Kept by a thread that hangs in a dead network file system; the place is free once nobody waits for it.
            let _reader = reader;
            read(&root, &path, max_bytes)
        });
        match timeout(Duration::from_millis(self.timeout_ms), reading).await {
            Ok(read) => {
                let read = read.unwrap_or_else(|panic| Err(unreadable(&name, &io::Error::other(panic))));
                read.map(|bytes| share.hold(bytes))
            }
            Err(_) => Err(FetchError::Timeout { host: name, limit_ms: self.timeout_ms }),
        }
    }
}

impl Source for Files {
    fn fetch<'a>(
        &'a self,
        address: &'a str,
        _held: Option<ContentDigest>,
        lane: Lane,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move { Ok(self.get(address, lane).await?.into()) })
    }
}

/// The path relative to `root` that a `file://` URL (percent-decoded) or a path (as it stands) names.
fn below(root: &Path, address: &str) -> Result<PathBuf, FetchError> {
    let path = match has_scheme(address.as_bytes(), "file") {
        // An error is another host's file.
        true => Url::parse(address)?.to_file_path().map_err(|()| FetchError::Outside)?,
        false => PathBuf::from(address),
    };
    match path.is_absolute() {
        true => path.strip_prefix(root).map(Path::to_owned).map_err(|_| FetchError::Outside),
        false => Ok(path),
    }
}

/// At least one byte, at most `max_bytes`. Blocks.
fn read(root: &Path, path: &Path, max_bytes: usize) -> Result<Bytes, FetchError> {
    let failed = |error| refusal(path, &error);
    let too_large = || FetchError::TooLarge { host: Some(shown(path)), limit: max_bytes };
    let file = open_beneath(root, path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FetchError::NoFile { name: shown(path) });
    }
    let announced = usize::try_from(metadata.len()).map_err(|_| too_large())?;
    if announced > max_bytes {
        return Err(too_large());
    }
    // One byte more, as the file may grow meanwhile.
    let mut bytes = Vec::with_capacity(announced + 1);
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() {
        0 => Err(FetchError::NoBytes { host: shown(path) }),
        n if n > max_bytes => Err(too_large()),
        _ => Ok(bytes.into()),
    }
}

/// Opens what `path` is within `root`, following symbolic links as long as they stay there.
#[cfg(target_os = "linux")]
fn open_beneath(root: &Path, path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

    /// A rename anywhere on the machine while `..` is resolved has the kernel ask for another try.
    const MAX_TRIES: usize = 8;

    // Opened anew each time, since deployments replace directories.
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // A pipe would be waited for, a terminal taken over.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut n_tries = 1;
    loop {
        match openat2(&root, path, flags, Mode::empty(), within) {
            Err(Errno::AGAIN) if n_tries < MAX_TRIES => n_tries += 1,
            opened => return Ok(opened?.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_root: &Path, _path: &Path) -> io::Result<File> {
    Err(io::Error::other("only Linux can open a file so that nothing outside the directory is reachable"))
}

/// Why a file could not be opened or read.
fn refusal(path: &Path, error: &io::Error) -> FetchError {
    let name = shown(path);
    match Errno::from_io_error(error) {
        // What the kernel says of a path that leads out, before it looks at what is there.
        Some(Errno::XDEV) => FetchError::Outside,
        // A name may also hold a zero byte, be too long, be a socket's, go through a file or round in circles.
        Some(
            Errno::NOENT | Errno::INVAL | Errno::NAMETOOLONG | Errno::NXIO | Errno::NOTDIR | Errno::LOOP,
        ) => FetchError::NoFile { name },
        Some(Errno::ACCESS | Errno::PERM) => FetchError::FileRefused { name },
        _ => unreadable(&name, error),
    }
}

/// What may pass: a path that changed while it was resolved, too many open files, a failing disk.
fn unreadable(name: &str, error: &io::Error) -> FetchError {
    tracing::debug!(%name, %error, "a picture's file cannot be read");
    FetchError::Host { host: name.into(), failure: HostFailure::Read }
}

/// The last part of a path as it may stand in a message.
fn shown(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_NAME_CHARS).collect()
}

#[cfg(all(test, target_os = "linux"))]
#[path = "files_tests.rs"]
mod tests;
