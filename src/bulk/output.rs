//! Where a shard is written: a directory, or what passes for one in a bucket.

use std::{fmt, fs, io, path::PathBuf};

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::BulkError;
use crate::{
    cache::{remove_parts, replace_file},
    config::{FetchConfig, ObjectUrl},
    fetch::{BucketFolder, FetchSetupError},
};

/// A place for a few files, each of which appears whole or not at all. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    name: String,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Directory(PathBuf),
    Bucket(BucketFolder),
}

/// Keeps other processes on this machine out of an output while it lives.
#[derive(Debug)]
pub struct Claim {
    _lock: Option<fs::File>,
}

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Neither a path nor an address that is known.
    #[error("the output {name} looks like an address, and {reason}")]
    Address {
        /// What it is called.
        name: String,
        /// How addresses are written.
        reason: String,
    },
    /// A bucket's settings cannot be used.
    #[error(transparent)]
    Bucket(#[from] FetchSetupError),
}

impl Output {
    /// `name` is a directory's path, or begins with `s3://`, `gs://` or `az://`; reaches nothing yet.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn new(name: &str, config: &FetchConfig) -> Result<Self, OutputError> {
        let has_scheme = name.split_once(":/").is_some_and(|(scheme, _)| !scheme.contains('/'));
        let place = match name.parse::<ObjectUrl>() {
            Ok(url) => Place::Bucket(BucketFolder::open(&url, config)?),
            Err(reason) if has_scheme => return Err(OutputError::Address { name: name.into(), reason }),
            Err(_) => Place::Directory(name.into()),
        };
        Ok(Self { name: name.into(), place })
    }

    /// Makes the directory, and keeps other processes out of it; what one that was killed had half written goes. A
    /// bucket has no such lock, and not every network file system.
    ///
    /// # Errors
    /// [`BulkError::Taken`], [`BulkError::Output`].
    pub fn claim(&self) -> Result<Claim, BulkError> {
        let Place::Directory(dir) = &self.place else { return Ok(Claim { _lock: None }) };
        let unwritten = |source| BulkError::Output { output: self.name.clone(), source };
        fs::create_dir_all(dir).map_err(unwritten)?;
        let lock = fs::File::open(dir).map_err(unwritten)?;
        match lock.try_lock() {
            Ok(()) => {
                remove_parts(dir).map_err(unwritten)?;
                Ok(Claim { _lock: Some(lock) })
            }
            Err(fs::TryLockError::WouldBlock) => Err(BulkError::Taken { output: self.name.clone() }),
            Err(fs::TryLockError::Error(error)) => {
                tracing::debug!(%error, "the directory cannot be locked");
                Ok(Claim { _lock: None })
            }
        }
    }

    /// The content of a file; `None` if there is none of this name.
    pub(super) async fn read(&self, name: &'static str) -> io::Result<Option<Bytes>> {
        match &self.place {
            Place::Directory(dir) => match fs::read(dir.join(name)) {
                Ok(content) => Ok(Some(content.into())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Place::Bucket(folder) => folder.get(name).await,
        }
    }

    /// Writes a file, in the place of any of this name.
    pub(super) async fn write(&self, name: &str, content: Vec<u8>) -> io::Result<()> {
        match &self.place {
            Place::Directory(dir) => {
                let path = dir.join(name);
                let write = move || replace_file(&path, |file| io::Write::write_all(file, &content));
                spawn_blocking(write).await.map_err(io::Error::other)?
            }
            Place::Bucket(folder) => folder.put(name, content.into()).await,
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    #[test]
    fn an_address_that_is_not_known_is_no_directory() {
        let Config { fetch: config, .. } = toml::from_str(DEFAULT_TOML).unwrap();
        for name in ["s3a://bucket/x", "gcs://bucket/x", "s3:/bucket/x", "file:///tmp/x", "s3://"] {
            let refused = Output::new(name, &config).err().unwrap().to_string();
            assert!(refused.contains(name) && refused.contains("s3://bucket/key"), "{refused}");
        }
        for name in ["out", "/a/b:/c", "out/a:b", "c:"] {
            assert!(matches!(Output::new(name, &config).unwrap().place, Place::Directory(_)), "{name}");
        }
    }
}
