//! The cache on disk, in the layout that `huggingface_hub` and other tools share:
//!
//! ```text
//! models--org--name/blobs/ETAG                    contents, and ETAG.incomplete while one arrives
//! models--org--name/snapshots/COMMIT/config.json  links into blobs
//! models--org--name/refs/main                     the commit that a branch or tag stood for
//! .locks/models--org--name/ETAG.lock              held by whoever writes that blob
//! ```
//!
//! Whatever has its final name is whole: it got the name by a rename, after it was verified.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{HubError, plan::Plan};
use crate::config::HubConfig;

/// One model's part of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    folder: String,
}

impl Cache {
    pub(super) fn new(config: &HubConfig, repo: &str) -> Self {
        let root = match config.cache_dir.as_str() {
            "" => hf_hub::resolve_cache_dir(),
            dir => expand_home(dir),
        };
        Self { root, folder: format!("models--{}", repo.replace('/', "--")) }
    }

    /// Where this model is, whether or not anything is there.
    pub(super) fn place(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.place().join("blobs").join(etag)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.place().join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last asked for.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let commit = fs::read_to_string(self.place().join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers what commit a revision stands for.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        // A cache that is whole may be on a disk that is full, or only to be read.
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.place().join("refs").join(revision);
        let scratch = self.scratch();
        create_parent(&path)?;
        fs::write(&scratch, commit).map_err(HubError::io(&scratch))?;
        fs::rename(&scratch, &path).map_err(HubError::io(&path))
    }

    /// Puts a blob into a snapshot under its own name.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        let up = "../".repeat(2 + file.matches('/').count());
        let scratch = self.scratch();
        create_parent(&path)?;
        // Over whatever is there, which may be a link to a blob that is gone.
        symlink(format!("{up}blobs/{etag}"), &scratch).map_err(HubError::io(&scratch))?;
        fs::rename(&scratch, &path).map_err(HubError::io(&path))
    }

    /// A name of nobody else's, for what is renamed at once; outside of what other tools look at.
    fn scratch(&self) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.place().join(format!(".sidelens-{}-{count}", process::id()));
        // Of a process that had this number before and was killed.
        let _absent = fs::remove_file(&path);
        path
    }

    /// Waits until no other process writes this blob; the lock ends with the returned file, or the process.
    pub(super) fn lock(&self, etag: &str, file: &str) -> Result<File, HubError> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let lock = File::create(&path).map_err(HubError::io(&path))?;
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {
                tracing::info!(file, "another process is downloading this file, waiting for it");
            }
            Err(TryLockError::Error(source)) => return Err(HubError::Io { path, source }),
        }
        lock.lock().map_err(HubError::io(path))?;
        Ok(lock)
    }
}

/// What a directory lacks to be a model; nothing when it is whole.
///
/// # Errors
/// [`HubError::Io`], and [`HubError::Malformed`] when a file that names others cannot be read.
pub(super) fn local_plan(dir: &Path) -> Result<Plan, HubError> {
    let mut listed = BTreeSet::new();
    walk(dir, "", &mut listed)?;
    let mut contents = BTreeMap::new();
    loop {
        let plan = Plan::new(&listed, &contents)?;
        if plan.unread.is_empty() {
            return Ok(plan);
        }
        for file in plan.unread {
            let path = dir.join(&file);
            let content = fs::read(&path).map_err(HubError::io(path))?;
            contents.insert(file, content);
        }
    }
}

/// Every file below `dir`, links that lead nowhere left out.
fn walk(dir: &Path, prefix: &str, files: &mut BTreeSet<String>) -> Result<(), HubError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(HubError::io(dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(HubError::io(dir))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_file() {
            files.insert(name);
        } else if path.is_dir() && !path.is_symlink() {
            walk(&path, &format!("{name}/"), files)?;
        }
    }
    Ok(())
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().expect("every path of the cache has a parent");
    fs::create_dir_all(parent).map_err(HubError::io(parent))
}

/// Whether it is a commit in full, and as such safe as the name of a directory.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit())
}

/// Settings may say `~/models`, which no shell has expanded.
fn expand_home(dir: &str) -> PathBuf {
    match (dir.strip_prefix("~/"), env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => dir.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path) -> Cache {
        Cache { root: root.into(), folder: "models--org--name".into() }
    }

    #[test]
    fn links_lead_to_blobs_and_replace_broken_ones() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        create_parent(&cache.blob("abc")).unwrap();
        fs::write(cache.blob("abc"), "content").unwrap();
        for file in ["config.json", "1_Pooling/config.json"] {
            cache.link(COMMIT, file, "gone").unwrap();
            assert!(!cache.snapshot(COMMIT).join(file).exists());
            cache.link(COMMIT, file, "abc").unwrap();
            assert_eq!(fs::read_to_string(cache.snapshot(COMMIT).join(file)).unwrap(), "content");
        }
        let mut files = BTreeSet::new();
        walk(&cache.snapshot(COMMIT), "", &mut files).unwrap();
        assert_eq!(Vec::from_iter(files), ["1_Pooling/config.json", "config.json"]);
    }

    #[test]
    fn a_revision_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        assert_eq!(cache.commit_of("main"), None);
        cache.remember("refs/pr/1", COMMIT).unwrap();
        let inode = || dir.path().join("models--org--name/refs/refs/pr/1").metadata().unwrap().ino();
        let first = inode();
        cache.remember("refs/pr/1", COMMIT).unwrap();
        assert_eq!(inode(), first, "not written again: the cache may be full, or only to be read");
        assert_eq!(cache.commit_of("refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit_of(COMMIT).as_deref(), Some(COMMIT));
        fs::write(dir.path().join("models--org--name/refs/torn"), "0123").unwrap();
        assert_eq!(cache.commit_of("torn"), None);
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let held = cache.lock("abc", "file").unwrap();
        let path = dir.path().join(".locks/models--org--name/abc.lock");
        let other = File::open(path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        other.try_lock().unwrap();
    }
}
