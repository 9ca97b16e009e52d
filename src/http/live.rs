//! Values made of files, made anew when the files change: keys and certificates, without a restart.
//!
//! The files are read every second rather than watched: what Kubernetes mounts changes by a link two directories
//! up, network file systems tell nobody, and a few kilobytes cost nothing.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::task::{AbortHandle, spawn_blocking};

use super::tls::CertificateError;
use crate::{config::KeysError, telemetry::Metrics};

const INTERVAL: Duration = Duration::from_secs(1);
/// A path that leads to something else, such as a device, must not fill the memory.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why a file that the settings name is of no use; never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Not there, not readable, or far too large.
    #[error("`{key}` {} cannot be read: {source}", path.display())]
    Read {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `auth.keys_file` has no list of keys.
    #[error("the keys in {} cannot be used: {source}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeysError,
    },
    /// `server.tls_cert` and `server.tls_key` are no pair.
    #[error("the certificate {} with the key {} cannot be used: {source}", cert.display(), key.display())]
    Certificate {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
}

/// The setting that names a file, and the file.
pub(super) type NamedFile = (&'static str, PathBuf);

/// A value that may be replaced while others read it.
#[derive(Debug)]
pub(super) struct Live<T> {
    current: Arc<RwLock<Arc<T>>>,
    follower: Option<AbortHandle>,
}

impl<T: Send + Sync + 'static> Live<T> {
    /// A value that stays.
    pub(super) fn fixed(value: T) -> Self {
        Self { current: Arc::new(RwLock::new(Arc::new(value))), follower: None }
    }

    /// A value that `make` makes of the contents of files, each named by a setting, in their order. From now on, until this
    /// is dropped, it is made anew when they change; what cannot be used is logged, counted under `label`, and changes
    /// nothing. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`FilesError`] when there is no value to start with.
    pub(super) fn of_files(
        label: &'static str,
        files: Vec<NamedFile>,
        metrics: Arc<Metrics>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, FilesError> + Send + 'static,
    ) -> Result<Self, FilesError> {
        let contents = read(&files)?;
        let mut seen = Ok(digest(&contents));
        let mut live = Self::fixed(make(&contents)?);
        let note = move |is_ok: bool| {
            metrics.last_reload_successful.with_label_values(&[label]).set(is_ok.into());
            if is_ok {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                metrics.last_reload_success_timestamp.with_label_values(&[label]).set(now.as_secs() as i64);
            }
            metrics.reloads.with_label_values(&[label, if is_ok { "ok" } else { "failed" }])
        };
        // Not a change, so it is not counted as one.
        note(true);
        let current = live.current.clone();
        let follow = async move {
            let mut every = tokio::time::interval(INTERVAL);
            loop {
                every.tick().await;
                let files = files.clone();
                // A network file system may take its time.
                let Ok(read) = spawn_blocking(move || read(&files)).await else { continue };
                let found = read.as_ref().map(|contents| digest(contents)).map_err(ToString::to_string);
                if found == seen {
                    continue;
                }
                seen = found;
                let counter = match read.and_then(|contents| make(&contents)) {
                    Ok(value) => {
                        *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                        tracing::info!("{label}: changed on disk, in force from now on");
                        note(true)
                    }
                    Err(error) => {
                        tracing::error!("{label}: {error}; what held before still holds");
                        note(false)
                    }
                };
                counter.inc();
            }
        };
        live.follower = Some(tokio::spawn(follow).abort_handle());
        Ok(live)
    }

    /// The value as it is now.
    pub(super) fn get(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<T> Drop for Live<T> {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

fn read(files: &[NamedFile]) -> Result<Vec<Vec<u8>>, FilesError> {
    let read_one = |path: &Path| {
        let mut contents = Vec::new();
        File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut contents)?;
        if contents.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
        }
        Ok(contents)
    };
    let named = |(key, path): &NamedFile| {
        read_one(path).map_err(|source| FilesError::Read { key, path: path.clone(), source })
    };
    files.iter().map(named).collect()
}

/// Tells contents apart; keeps nothing of them.
fn digest(contents: &[Vec<u8>]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for file in contents {
        hasher.update(&(file.len() as u64).to_le_bytes()).update(file);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn text(path: &Path, metrics: &Arc<Metrics>) -> Result<Live<String>, FilesError> {
        let files = vec![("auth.keys_file", path.to_path_buf())];
        let make = |contents: &[Vec<u8>]| match &contents[0][..] {
            b"" => Err(FilesError::Keys { path: "x".into(), source: KeysError::Empty }),
            text => Ok(String::from_utf8(text.to_vec()).unwrap()),
        };
        Live::of_files("keys", files, metrics.clone(), make)
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..2000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("waited 10 s, in vain, until {what}");
    }

    #[tokio::test]
    async fn follows_a_file_and_keeps_the_last_good_value() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let path = dir.path().join("file");
        let failed = || metrics.reloads.with_label_values(&["keys", "failed"]).get();
        let successful = || metrics.last_reload_successful.with_label_values(&["keys"]).get();
        let read_at = || metrics.last_reload_success_timestamp.with_label_values(&["keys"]).get();
        assert!(text(&path, &metrics).is_err());
        assert_eq!((successful(), read_at()), (1, 0), "nothing is in force");
        fs::write(&path, "one").unwrap();
        let live = text(&path, &metrics).unwrap();
        assert!(successful() == 1 && read_at() > 0);
        fs::write(&path, "two").unwrap();
        until("two is there", || *live.get() == "two").await;
        fs::write(&path, "").unwrap();
        until("the empty file was seen", || failed() == 1).await;
        fs::remove_file(&path).unwrap();
        until("the gap was seen", || failed() == 2).await;
        assert_eq!(successful(), 0);
        assert_eq!(*live.get(), "two");
        fs::write(&path, "three").unwrap();
        until("three is there", || *live.get() == "three").await;
        assert_eq!(failed(), 2);
        assert_eq!(metrics.reloads.with_label_values(&["keys", "ok"]).get(), 2);
        assert_eq!(successful(), 1);
    }

    #[tokio::test]
    async fn follows_links_that_are_swapped_above_the_file() {
        // As Kubernetes mounts a secret: file -> ..data/file, ..data -> a directory with a date.
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let at = |name: &str| dir.path().join(name);
        for (version, contents) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("file"), contents).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/file", at("file")).unwrap();
        let live = text(&at("file"), &metrics).unwrap();
        assert_eq!(*live.get(), "one");
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        fs::remove_dir_all(at("..1")).unwrap();
        until("two is there", || *live.get() == "two").await;
        assert_eq!(metrics.reloads.with_label_values(&["keys", "failed"]).get(), 0);
    }

    #[test]
    fn what_is_too_large_is_not_read_to_its_end() {
        let error = read(&[("auth.keys_file", "/dev/zero".into())]).unwrap_err().to_string();
        assert!(error.starts_with("`auth.keys_file` /dev/zero cannot be read: it has more"), "{error}");
    }
}
