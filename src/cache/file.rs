//! Vectors out of the cache and back: as a table to anybody, and as the file that outlives the process.

use std::{
    cell::Cell,
    cmp::Reverse,
    collections::HashSet,
    ffi::OsString,
    fs::{self, File, Permissions},
    io::{self, Read, Seek, Write},
    iter,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use tokio::runtime::Handle;

use super::{
    CacheKey, TableError, VectorCache,
    memory::weight,
    table::{Row, Rows, TableWriter, models},
    tier::{Dropped, Tier},
};
use crate::{config::CacheConfig, domain::Fingerprint};

/// How a file is called that is not whole yet: what stands before the name that it will have, a dash and a few letters, and
/// what stands behind.
const PART: [&str; 2] = [".sidelens-", ".part"];
/// How many letters.
const PART_LETTERS: usize = 6;

/// A model whose vectors are of use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The model.
    pub fingerprint: Fingerprint,
    /// Components of its vectors.
    pub dimensions: usize,
}

/// What was read from a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Rows that the cache was given.
    pub rows: u64,
    /// Rows that were left out: of models that are not served, or not of their length.
    pub of_others: u64,
    /// Rows that a tier behind memory was given and did not keep, such as Redis while it is not there.
    pub dropped: u64,
}

/// `cache.file` could never be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "`cache.file` {file} cannot be kept: {source}; it is a file of its own in a directory that Sidelens may write to, as \
     each stop replaces it"
)]
pub struct CacheFileError {
    /// Its path.
    file: String,
    /// What is wrong with it.
    source: io::Error,
}

/// Whether [`VectorCache::save`] will find a place for `cache.file`, if there is to be one: at the stop it would be too
/// late for the vectors of the whole run. What a process that was killed over its stop has left beside it goes.
///
/// # Errors
/// [`CacheFileError`].
pub fn check_file(config: &CacheConfig) -> Result<(), CacheFileError> {
    let check = |path: &Path| {
        let path = file_at(path)?;
        open(&path)?;
        // What stays is no reason not to start.
        _ = remove_parts_of(&path);
        part_of(&path).map(drop)
    };
    match config.file.is_empty() {
        true => Ok(()),
        false => check(Path::new(&config.file))
            .map_err(|source| CacheFileError { file: config.file.clone(), source }),
    }
}

impl VectorCache {
    /// Writes what memory holds as a table, and gives the number of rows. Blocks while `out` does.
    ///
    /// # Errors
    /// [`TableError::Io`] when `out` fails. What was written then is no table.
    pub fn export(&self, out: impl Write + Send) -> Result<u64, TableError> {
        let width = self.memory.rows().map(|(_, value)| value.embedding.dimensions()).max().unwrap_or(0);
        let mut table = TableWriter::new(out, width)?;
        // What a wider model has computed since is left for the next time.
        self.memory
            .rows()
            .filter(|(_, value)| value.embedding.dimensions() <= width)
            .try_for_each(|row| table.push(row))?;
        table.finish()
    }

    /// Reads a table into every tier. To be called on a thread that may block, of a tokio runtime.
    ///
    /// # Errors
    /// [`TableError`] when `source` is no table. One with a vector of a model that is not in `served`, or not of its
    /// length, is refused before a row is taken, and so is every table where no tier keeps any.
    pub fn import(&self, mut source: impl Read, served: &[Served]) -> Result<Taken, TableError> {
        // A table's end says where its beginning is.
        let mut file = tempfile::tempfile()?;
        io::copy(&mut source, &mut file)?;
        let again = || -> io::Result<File> {
            let mut file = file.try_clone()?;
            file.rewind()?;
            Ok(file)
        };
        if self.memory.max_bytes() == 0 && self.further.is_empty() {
            return Err(TableError::NotKept);
        }
        for (model, found) in models(again()?)? {
            let Some(known) = served.iter().find(|known| known.fingerprint.to_string() == model) else {
                let served = served.iter().map(|known| known.fingerprint.to_string());
                let served = served.collect::<Vec<_>>().join(", ");
                return Err(TableError::Fingerprint { found: model, served });
            };
            let expected = known.dimensions;
            if usize::try_from(found) != Ok(expected) {
                return Err(TableError::Dimensions { model, expected, found });
            }
        }
        let (mut taken, dropped, runtime) = (Taken::default(), Dropped::default(), Handle::current());
        for row in Rows::open(again()?)? {
            let (key, value) = row?;
            runtime.block_on(self.put(key, value, &dropped));
            taken.rows += 1;
        }
        // What is on its way may still be given up.
        runtime.block_on(self.settled());
        taken.dropped = dropped.get();
        Ok(taken)
    }

    /// Reads the file that [`Self::save`] wrote into memory, until that is full; rows of models that are not in
    /// `served`, or not of their length, are left out. To be called on a thread that may block, of a tokio runtime.
    ///
    /// # Errors
    /// [`TableError`] when it is there and cannot be read to its end.
    pub fn warm(&self, path: &Path, served: &[Served]) -> Result<Taken, TableError> {
        let (mut taken, runtime) = (Taken::default(), Handle::current());
        let Some(file) = open(path)? else { return Ok(taken) };
        let (mut room, mut fitting, mut unreadable) = (self.memory.max_bytes(), Vec::new(), None);
        let rows = Rows::open(file)?;
        for (key, value) in rows.map_while(|row| row.map_err(|error| unreadable = Some(error)).ok()) {
            let of = Served { fingerprint: key.fingerprint(), dimensions: value.embedding.dimensions() };
            if !served.contains(&of) {
                taken.of_others += 1;
                continue;
            }
            match room.checked_sub(weight(&value).into()) {
                Some(left) => room = left,
                None => break,
            }
            fitting.push((key, value));
            taken.rows += 1;
        }
        // The newest, which come first there, are put last: what is put first leaves memory first.
        for (key, value) in fitting.into_iter().rev() {
            runtime.block_on(self.memory.put(key, value));
        }
        unreadable.map_or(Ok(taken), Err)
    }

    /// Writes what memory holds to the file at `path`, and what that file held before, of whatever model: the newest
    /// first, up to `max_bytes` in all. Gives the number of rows; 0 if memory holds none, and the file stays as it is.
    /// Blocks.
    ///
    /// The file is replaced whole or not at all. One that cannot be read to its end is kept, its name with
    /// `.unreadable` behind it.
    ///
    /// # Errors
    /// [`TableError`] when it cannot be written, or there is something else than a file.
    pub fn save(&self, path: &Path, max_bytes: u64) -> Result<u64, TableError> {
        let mut new: Vec<Row> = self.memory.rows().collect();
        if new.is_empty() {
            return Ok(0);
        }
        new.sort_unstable_by_key(|(_, value)| Reverse(value.created_ms));
        let path = &file_at(path)?;
        let unreadable = Cell::new(None);
        let old =
            open(path)?.and_then(|file| Rows::open(file).map_err(|error| unreadable.set(Some(error))).ok());
        let widths = new.iter().map(|(_, value)| value.embedding.dimensions());
        let width = widths.chain(old.as_ref().map(Rows::width)).max().unwrap_or(0);
        let keys: HashSet<CacheKey> = new.iter().map(|(key, _)| *key).collect();
        let old =
            old.into_iter().flatten().map_while(|row| row.map_err(|error| unreadable.set(Some(error))).ok());
        // Another program's file may have wider vectors further down; it costs those, not the file.
        let is_kept = |(key, value): &Row| !keys.contains(key) && value.embedding.dimensions() <= width;
        let (mut new, mut old) = (new.into_iter().peekable(), old.filter(is_kept).peekable());
        let rows = iter::from_fn(|| {
            let next = new.peek().map(|(_, value)| value.created_ms);
            old.next_if(|(_, value)| next.is_none_or(|next| value.created_ms > next)).or_else(|| new.next())
        });

        replace_file(path, |file| {
            let mut table = TableWriter::new(file, width)?;
            let mut room = max_bytes;
            for row in rows {
                match room.checked_sub(weight(&row.1).into()) {
                    Some(left) => room = left,
                    None => break,
                }
                table.push(row)?;
            }
            let n_rows = table.finish()?;
            if let Some(error) = unreadable.take() {
                let mut aside = OsString::from(path);
                aside.push(".unreadable");
                tracing::warn!(%error, aside = ?aside, "the old file of vectors cannot be read to its end");
                fs::rename(path, aside)?;
            }
            Ok(n_rows)
        })
    }
}

/// Opens the file at `path`; none if nothing is there.
///
/// # Errors
/// When it cannot be opened, or is not to be replaced, see [`file_at`].
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(file_at(path)?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// The file that `path` leads to by whatever links; it need not be there yet.
///
/// # Errors
/// When something is there that is not to be replaced by a file, such as a directory or a device.
fn file_at(path: &Path) -> io::Result<PathBuf> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(io::Error::other("there is something that is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut path = path.to_owned();
    // Links that lead in a circle are an error already.
    while let Ok(target) = fs::read_link(&path) {
        path = dir_of(&path).join(target);
    }
    Ok(path)
}

/// A new file beside that at `path`, named after it and locked; removed when dropped.
fn part_of(path: &Path) -> io::Result<NamedTempFile> {
    let part = tempfile::Builder::new()
        .prefix(&part_prefix(path))
        .rand_bytes(PART_LETTERS)
        .suffix(PART[1])
        // Like any new file, where temporary ones are for their owner alone.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir_of(path))?;
    // Free, but not every file system has locks.
    _ = part.as_file().try_lock();
    Ok(part)
}

fn part_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(PART[0]);
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push("-");
    prefix
}

fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Replaces the file at `path`, or what a link there leads to, by what `write` writes, whole or not at all: it is written
/// beside it, brought to the disk, and renamed.
///
/// # Errors
/// What `write` failed with, or the file system, or that there is something else than a file; the old file is as it was then.
pub fn replace_file<T, E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let path = &file_at(path)?;
    let mut part = part_of(path)?;
    let written = write(part.as_file_mut())?;
    part.as_file().sync_all()?;
    part.persist(path).map_err(|error| error.error)?;
    // The new name, too.
    File::open(dir_of(path))?.sync_all()?;
    Ok(written)
}

/// Whether `file` is a table: its end says what is in it, and its first rows are there.
///
/// # Errors
/// [`TableError`] when it is none.
pub fn check_table(file: &File) -> Result<(), TableError> {
    Rows::open(file.try_clone()?).map(drop)
}

/// Removes what processes that were killed within [`replace_file`] have left in `dir`, where no other may be within it.
///
/// # Errors
/// When `dir` cannot be read, or a file of it not removed.
pub fn remove_parts(dir: &Path) -> io::Result<()> {
    let [prefix, suffix] = PART.map(str::as_bytes);
    remove_where(dir, |name, _| name.starts_with(prefix) && name.ends_with(suffix))
}

/// The same of the file at `path` alone, as replicas may share a directory; what a process is within that has not ended yet
/// is locked.
fn remove_parts_of(path: &Path) -> io::Result<()> {
    let (prefix, suffix) = (part_prefix(path), PART[1].as_bytes());
    let n_bytes = prefix.len() + PART_LETTERS + suffix.len();
    remove_where(dir_of(path), |name, path| {
        // By its length too: the name of another file may begin as this one's.
        let is_ours = name.starts_with(prefix.as_bytes()) && name.ends_with(suffix) && name.len() == n_bytes;
        is_ours && File::open(path).is_ok_and(|part| part.try_lock().is_ok())
    })
}

/// Removes the files of `dir` whose names and paths are such.
fn remove_where(dir: &Path, is_such: impl Fn(&[u8], &Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_such(entry.file_name().as_bytes(), &entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
