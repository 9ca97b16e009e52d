//! The vectors of all models, out of the cache and back.

use std::{
    error::Error,
    fmt::Display,
    io::{Read, Write},
    path::PathBuf,
};

use tokio::task::spawn_blocking;

use super::{Embedder, Models};
use crate::{
    cache::{Served, TableError, Taken, VectorCache},
    domain::EmbedError,
};

/// The file that outlives the process.
#[derive(Debug, Clone)]
pub(super) struct VectorFile {
    path: PathBuf,
    max_bytes: u64,
}

impl VectorFile {
    /// `cache.file` and `cache.file_max_bytes`; none if the former is empty.
    pub fn new(path: &str, max_bytes: u64) -> Option<Self> {
        (!path.is_empty()).then(|| Self { path: path.into(), max_bytes })
    }

    fn show(&self) -> impl Display + '_ {
        self.path.display()
    }
}

/// What all models keep their vectors in.
#[derive(Clone)]
pub(super) struct Store {
    pub cache: VectorCache,
    pub file: Option<VectorFile>,
}

impl Models {
    /// Writes the vectors in memory as a Parquet table, and gives their number. Blocks while `out` does.
    ///
    /// # Errors
    /// [`TableError`]; what was written then is no table.
    pub fn export_vectors(&self, out: impl Write + Send) -> Result<u64, TableError> {
        self.store.cache.export(out)
    }

    /// Takes the vectors of a Parquet table that [`Self::export_vectors`] once wrote, here or elsewhere, and says how
    /// many. To be called on a thread that may block, of a tokio runtime.
    ///
    /// # Errors
    /// [`EmbedError::InvalidRequest`] when it is no table, or has a vector of a model that is not served, or not of that
    /// model's length: then it is refused whole.
    pub fn import_vectors(&self, table: impl Read) -> Result<Taken, EmbedError> {
        match self.store.cache.import(table, &self.served()) {
            Ok(taken) => {
                if taken.dropped > 0 {
                    let Taken { rows, dropped, .. } = taken;
                    tracing::warn!(
                        rows,
                        dropped,
                        "some of the imported vectors are in memory alone: Redis did not take them"
                    );
                }
                Ok(taken)
            }
            Err(TableError::Io(error)) => {
                Err(EmbedError::Internal(format!("the table was not received: {error}")))
            }
            Err(error) => Err(EmbedError::InvalidRequest(format!("the table is refused: {error}"))),
        }
    }

    fn served(&self) -> Vec<Served> {
        let infos = self.iter().map(Embedder::info);
        infos.map(|info| Served { fingerprint: info.fingerprint, dimensions: info.spec.dimensions }).collect()
    }

    /// Reads `cache.file`, if there is one. One that cannot be read is told of, and costs no more than its vectors.
    pub async fn warm_cache(&self) {
        let Store { cache, file: Some(file) } = self.store.clone() else { return };
        let (served, path) = (self.served(), file.path.clone());
        match run(move || cache.warm(&path, &served)).await {
            Ok(taken) => {
                tracing::info!(file = %file.show(), vectors = taken.rows, of_other_models = taken.of_others, "vectors of earlier runs read");
            }
            Err(error) => {
                tracing::warn!(file = %file.show(), %error, "`cache.file` cannot be read; starting without")
            }
        }
    }

    /// Writes `cache.file`, if there is to be one.
    pub async fn save_cache(&self) {
        let Store { cache, file: Some(file) } = self.store.clone() else { return };
        let written = file.clone();
        match run(move || cache.save(&written.path, written.max_bytes)).await {
            Ok(vectors) => tracing::info!(file = %file.show(), vectors, "vectors kept for the next start"),
            Err(error) => {
                tracing::error!(file = %file.show(), %error, "`cache.file` cannot be written; the old one stays");
            }
        }
    }
}

/// A file is whatever is found at its path: a panic over it is an error like others.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, Box<dyn Error + Send + Sync>> {
    match spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Box::new(error)),
        Err(panic) => Err(Box::new(panic)),
    }
}
