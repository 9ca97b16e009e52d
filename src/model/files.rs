//! The files of a checkpoint, on disk or inside the binary.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use serde::de::DeserializeOwned;

use super::ModelError;
use crate::config::{HubModel, ModelSource};

/// The name of the weights file.
pub const WEIGHTS: &str = "model.safetensors";

/// The demo model, compiled in: `assets/demo-model`, made by `tools/demo-model`.
const DEMO: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../assets/demo-model/config.json")),
    ("preprocessor_config.json", include_bytes!("../../assets/demo-model/preprocessor_config.json")),
    ("tokenizer.json", include_bytes!("../../assets/demo-model/tokenizer.json")),
    (WEIGHTS, include_bytes!("../../assets/demo-model/model.safetensors")),
];

/// The files of one checkpoint. Cheap to clone.
///
/// It remembers what it handed out: [`Self::digest`] covers every file that was read, so that none which
/// decides what a vector is can be forgotten, and a mapped file stays mapped as long as any clone lives.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    shared: Arc<Shared>,
    /// Where in the checkpoint it looks: empty, or a directory's path with a `/` at its end.
    inside: String,
}

#[derive(Debug)]
struct Shared {
    name: String,
    place: Place,
    /// By path from the top of the checkpoint.
    opened: Mutex<BTreeMap<String, Option<Arc<FileBytes>>>>,
}

#[derive(Debug)]
enum Place {
    Demo,
    Directory(PathBuf),
}

/// The bytes of a file that may be large: mapped, or part of the binary.
#[derive(Debug)]
pub enum FileBytes {
    /// Part of the binary.
    Static(&'static [u8]),
    /// Mapped read-only; pages come in as they are touched and are shared between processes.
    Mapped(Mmap),
}

impl FileBytes {
    /// Hashes all bytes and lets go of every piece thereafter. What no tensor needs, such as the language
    /// model inside a BLIP-2, would stay in memory otherwise; the rest comes back when it is touched.
    fn hash_into(&self, hasher: &mut blake3::Hasher) {
        const PIECE: usize = 16 << 20;
        for (n, piece) in self.chunks(PIECE).enumerate() {
            hasher.update(piece);
            self.let_go(n * PIECE, piece.len());
        }
    }

    /// Gives the memory of these bytes back; they come back from the file when they are touched.
    pub(super) fn let_go(&self, start: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: The map is read-only and shared with the file, so that the dropped pages hold nothing
            // that the file does not.
            let dropped = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
            // Without it only memory is lost.
            drop(dropped);
        }
    }
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl ModelFiles {
    /// Looks at a model's place.
    ///
    /// # Errors
    /// [`ModelError::NoDirectory`] when nothing is there, [`ModelError::NotHere`] for a name of the hub, which
    /// the hub room turns into a directory first.
    pub fn open(source: &ModelSource) -> Result<Self, ModelError> {
        match source {
            ModelSource::Demo => Ok(Self::new("sidelens-demo".into(), Place::Demo)),
            ModelSource::Directory(path) if path.is_dir() => {
                // Canonical, so that `.` and `models/clip/` have a name too.
                let name = fs::canonicalize(path)
                    .ok()
                    .and_then(|path| match HubModel::of_snapshot(&path) {
                        Some(model) => Some(model.repo),
                        None => path.file_name().map(|name| name.to_string_lossy().into_owned()),
                    })
                    .unwrap_or_else(|| path.display().to_string());
                Ok(Self::new(name, Place::Directory(path.clone())))
            }
            ModelSource::Directory(path) => Err(ModelError::NoDirectory(path.clone())),
            ModelSource::Hub(model) => Err(ModelError::NotHere(model.clone())),
        }
    }

    fn new(name: String, place: Place) -> Self {
        let shared = Shared { name, place, opened: Mutex::default() };
        Self { shared: Arc::new(shared), inside: String::new() }
    }

    /// The files in the directory `path` of this one; an empty path is this one itself. What is read there
    /// counts as read here.
    ///
    /// # Errors
    /// [`ModelError::Path`] when `path` leads out of it.
    pub fn below(&self, path: &str) -> Result<Self, ModelError> {
        self.path(path)?;
        let inside = match path.trim_end_matches('/') {
            "" | "." => self.inside.clone(),
            path => format!("{}{path}/", self.inside),
        };
        Ok(Self { shared: self.shared.clone(), inside })
    }

    /// The whole checkpoint, of which this may be a directory.
    pub fn top(&self) -> Self {
        Self { shared: self.shared.clone(), inside: String::new() }
    }

    /// The name shown to callers: `org/name` for a download from the hub, else the directory's.
    pub fn name(&self) -> String {
        self.shared.name.clone()
    }

    /// Where the files are, for messages.
    pub fn place(&self) -> String {
        match &self.shared.place {
            Place::Demo => "the demo model".into(),
            Place::Directory(path) => path.join(self.inside.trim_end_matches('/')).display().to_string(),
        }
    }

    /// Where one of the files is, for messages.
    pub fn place_of(&self, file: &str) -> String {
        match &self.shared.place {
            Place::Demo => format!("{file} of {}", self.place()),
            Place::Directory(path) => path.join(&self.inside).join(file).display().to_string(),
        }
    }

    /// Whether there is such a file.
    pub fn has(&self, file: &str) -> bool {
        match &self.shared.place {
            Place::Demo => DEMO.iter().any(|(name, _)| *name == file),
            Place::Directory(_) => self.path(file).is_ok_and(|path| path.is_file()),
        }
    }

    /// A small file.
    ///
    /// # Errors
    /// [`ModelError::NoFile`] when it is not there, [`ModelError::Io`] when it cannot be read,
    /// [`ModelError::Path`] when its name leads out of the directory.
    pub fn read(&self, file: &str) -> Result<Cow<'static, [u8]>, ModelError> {
        let bytes = self.bytes(file)?;
        self.count(file);
        Ok(bytes)
    }

    /// As [`Self::read`], but it does not count.
    fn bytes(&self, file: &str) -> Result<Cow<'static, [u8]>, ModelError> {
        Ok(match &self.shared.place {
            Place::Demo => Cow::Borrowed(self.demo(file)?),
            Place::Directory(_) => Cow::Owned(fs::read(self.path(file)?).map_err(|e| self.io(file, e))?),
        })
    }

    /// From now on [`Self::digest`] covers the file.
    fn count(&self, file: &str) {
        self.opened().entry(self.key(file)).or_default();
    }

    /// A JSON file.
    ///
    /// # Errors
    /// As [`Self::read`], and [`ModelError::Json`].
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T, ModelError> {
        serde_json::from_slice(&self.read(file)?).map_err(|source| ModelError::Json {
            dir: self.place(),
            file: file.into(),
            source,
        })
    }

    /// A JSON file that not every checkpoint has.
    ///
    /// # Errors
    /// As [`Self::json`], but a missing file is none.
    pub fn json_if_there<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, ModelError> {
        if self.has(file) { self.json(file).map(Some) } else { Ok(None) }
    }

    /// What a JSON file that not every checkpoint has says under `key`. The file counts as read only where it
    /// says something there: what it says elsewhere is nobody's concern.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn json_key<T: DeserializeOwned>(&self, file: &str, key: &str) -> Result<Option<T>, ModelError> {
        if !self.has(file) {
            return Ok(None);
        }
        let malformed = |source| ModelError::Json { dir: self.place(), file: file.into(), source };
        let mut content: serde_json::Value = serde_json::from_slice(&self.bytes(file)?).map_err(malformed)?;
        match content.get_mut(key).map(serde_json::Value::take) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => {
                self.count(file);
                serde_json::from_value(value).map(Some).map_err(malformed)
            }
        }
    }

    /// A large file, mapped once.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn map(&self, file: &str) -> Result<Arc<FileBytes>, ModelError> {
        let key = self.key(file);
        if let Some(Some(bytes)) = self.opened().get(&key) {
            return Ok(bytes.clone());
        }
        let bytes = match &self.shared.place {
            Place::Demo => FileBytes::Static(self.demo(file)?),
            Place::Directory(_) => {
                let opened = File::open(self.path(file)?).map_err(|e| self.io(file, e))?;
                // SAFETY: The map is only read. A file that someone cuts short while it is served ends the
                // process with SIGBUS, as it would any program that maps its weights.
                FileBytes::Mapped(unsafe { Mmap::map(&opened) }.map_err(|e| self.io(file, e))?)
            }
        };
        let bytes = Arc::new(bytes);
        self.opened().insert(key, Some(bytes.clone()));
        Ok(bytes)
    }

    /// A digest over the names and bytes of all files of the checkpoint that were read so far.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn digest(&self) -> Result<blake3::Hash, ModelError> {
        let (mut hasher, top) = (blake3::Hasher::new(), self.top());
        let names: Vec<String> = self.opened().keys().cloned().collect();
        for name in names {
            let bytes = top.map(&name)?;
            // The lengths keep two neighbours from passing for two others with the same bytes in a row.
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            bytes.hash_into(&mut hasher);
        }
        Ok(hasher.finalize())
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<FileBytes>>>> {
        self.shared.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of a file from the top of the checkpoint.
    fn key(&self, file: &str) -> String {
        format!("{}{file}", self.inside)
    }

    /// The path of a file in the directory. Names come from the checkpoint's own files, and a checkpoint has
    /// no business elsewhere.
    ///
    /// # Errors
    /// [`ModelError::Path`] when the name leads out of it, [`ModelError::NoFile`] for the demo model.
    pub(super) fn path(&self, file: &str) -> Result<PathBuf, ModelError> {
        let Place::Directory(dir) = &self.shared.place else { return Err(self.no_file(file)) };
        let is_inside =
            Path::new(file).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if is_inside {
            Ok(dir.join(self.key(file)))
        } else {
            Err(ModelError::Path { dir: self.place(), file: file.into() })
        }
    }

    fn demo(&self, file: &str) -> Result<&'static [u8], ModelError> {
        let found = DEMO.iter().find(|(name, _)| *name == file);
        found.map(|(_, bytes)| *bytes).ok_or_else(|| self.no_file(file))
    }

    fn no_file(&self, file: &str) -> ModelError {
        ModelError::NoFile { dir: self.place(), file: file.into() }
    }

    fn io(&self, file: &str, source: io::Error) -> ModelError {
        match source.kind() {
            io::ErrorKind::NotFound => self.no_file(file),
            _ => ModelError::Io { dir: self.place(), file: file.into(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    #[test]
    fn the_digest_covers_what_was_read_and_nothing_else() {
        let (_dir, files) = directory(&[("a", "1"), ("b", "2"), ("README", "x")]);
        let empty = files.digest().unwrap();
        files.read("a").unwrap();
        let one = files.digest().unwrap();
        files.map("b").unwrap();
        let two = files.digest().unwrap();
        assert!(empty != one && one != two);
        let (_dir, other) = directory(&[("a", "1"), ("b", "2"), ("README", "y")]);
        other.map("b").unwrap();
        other.read("a").unwrap();
        assert_eq!(other.digest().unwrap(), two);
    }

    #[test]
    fn what_is_read_below_counts_as_read() {
        let (dir, files) = directory(&[("a", "1")]);
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/a"), "2").unwrap();
        let below = files.below("sub/").unwrap();
        let empty = files.digest().unwrap();
        assert_eq!(*below.read("a").unwrap(), *b"2");
        assert_eq!((**below.map("a").unwrap()).len(), 1);
        assert_ne!(files.digest().unwrap(), empty);
        assert_eq!(files.digest().unwrap(), below.digest().unwrap());
        assert_eq!(*below.top().read("a").unwrap(), *b"1");
        assert!(below.place().ends_with("sub"), "{}", below.place());
        let message = below.read("b").unwrap_err().to_string();
        assert!(message.contains("sub"), "{message}");
        assert!(matches!(files.below("../elsewhere"), Err(ModelError::Path { .. })));
        assert_eq!(*files.below("").unwrap().read("a").unwrap(), *b"1");
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        let (_dir, files) = directory(&[]);
        for name in ["../secret", "/etc/passwd", "a/../../b"] {
            assert!(matches!(files.read(name), Err(ModelError::Path { .. })), "{name}");
            assert!(matches!(files.map(name), Err(ModelError::Path { .. })), "{name}");
            assert!(!files.has(name));
        }
    }
}
