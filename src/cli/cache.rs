//! `sidelens cache`: the vectors of a running service out into a file and back.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream};
use reqwest::{Body, Client, RequestBuilder, Response};
use serde::Deserialize;
use url::Url;

use super::{
    CliError,
    args::{AddressError, FOR_A_CERTIFICATE, KeyArgs, KeyError, TrustArgs, TrustError, address, endpoint},
};
use crate::{
    cache::{TableError, check_table, replace_file},
    domain::root_cause,
    load::Failure,
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Writes the vectors that a running service holds in memory to a Parquet file.
    Export(ExportArgs),
    /// Gives the vectors of such files, or of what `sidelens embed` wrote, to a running service that has the same model.
    Import(ImportArgs),
}

/// The file, and the service.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The Parquet file; an existing one is replaced once the new one is whole.
    #[arg(value_name = "FILE.parquet")]
    file: PathBuf,
    #[command(flatten)]
    service: ServiceArgs,
}

/// The files, and the service.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Parquet files, or directories with them at any depth. The first that is refused is the end: of another model it
    /// is refused whole, of a damaged one the vectors before the damage are taken.
    #[arg(value_name = "FILE.parquet", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// The service.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// Where the service listens; `server.admin_listen` where that is set.
    #[arg(long, value_parser = address, default_value = "http://127.0.0.1:7800")]
    url: Url,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Why no vectors were moved.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The authority is none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The same, with the file's name.
    #[error("{file}: {source}")]
    File {
        /// Its path.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// Directories without tables.
    #[error("there is no .parquet file in what was named")]
    NoTables,
    /// The service does not answer, or no longer.
    #[error("no whole answer from {url}: {cause}")]
    Connection {
        /// Where it was asked.
        url: Url,
        /// What went wrong.
        cause: String,
    },
    /// What was sent would not do in place of a table.
    #[error("{url} answers 200, but with no table of vectors ({source}); is it Sidelens that answers there?")]
    NoTable {
        /// Where it was asked.
        url: Url,
        /// What is wrong with it.
        source: Box<TableError>,
    },
    /// The service refused.
    #[error("{url} answers {refusal}")]
    Refused {
        /// Where it was asked.
        url: Url,
        /// The status, and what it says.
        refusal: Failure,
    },
}

impl CacheError {
    /// With the name of the file that it is about.
    fn of(self, file: &Path) -> Self {
        match self {
            Self::Io(source) => Self::File { file: file.display().to_string(), source },
            other => other,
        }
    }
}

/// Moves them, and says how many.
pub(super) fn run(command: &CacheCommand) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        CacheCommand::Export(ExportArgs { file, service }) => {
            // The file comes first, so that a directory that cannot be written to is told at once.
            let exported = replace_file(file, |out| runtime.block_on(export(service, out)));
            let n_bytes = exported.map_err(|error| error.of(file))?;
            eprintln!("# {n_bytes} bytes written to {}.", file.display());
        }
        CacheCommand::Import(ImportArgs { files, service }) => {
            for file in tables(files)? {
                let table = File::open(&file).map_err(CacheError::from);
                let imported = table.and_then(|table| runtime.block_on(import(service, table)));
                let Imported { imported, dropped } = imported.map_err(|error| error.of(&file))?;
                eprintln!("# {imported} vectors of {} imported.", file.display());
                if dropped > 0 {
                    eprintln!("# {dropped} of them are not in Redis, which went away; import them again.");
                }
            }
        }
    }
    Ok(())
}

/// The files, with those below each directory in its place, sorted by name.
fn tables(files: &[PathBuf]) -> Result<Vec<PathBuf>, CacheError> {
    let mut tables = Vec::new();
    for file in files {
        match file.is_dir() {
            true => add_tables_of(file, &mut tables)?,
            false => tables.push(file.clone()),
        }
    }
    match tables.is_empty() {
        true => Err(CacheError::NoTables),
        false => Ok(tables),
    }
}

fn add_tables_of(dir: &Path, tables: &mut Vec<PathBuf>) -> Result<(), CacheError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|source| CacheError::Io(source).of(dir))?;
    let mut within: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    within.sort();
    for path in within {
        // Before its name: `sidelens embed` calls directories so. Links to them may lead in a circle.
        if path.is_dir() {
            if !path.is_symlink() {
                add_tables_of(&path, tables)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            tables.push(path);
        }
    }
    Ok(())
}

/// Writes the service's table, and gives its bytes.
async fn export(args: &ServiceArgs, out: &mut File) -> Result<u64, CacheError> {
    let response = args.send(|client, url| client.get(url)).await?;
    let (mut chunks, mut n_bytes) = (response.bytes_stream(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| args.connection(&error))?;
        out.write_all(&chunk)?;
        n_bytes += chunk.len() as u64;
    }
    check_table(out)
        .map_err(|source| CacheError::NoTable { url: args.url.clone(), source: source.into() })?;
    Ok(n_bytes)
}

/// What became of a table's vectors.
#[derive(Deserialize)]
struct Imported {
    imported: u64,
    /// Of these, those that Redis did not take. Services of before do not say.
    #[serde(default)]
    dropped: u64,
}

/// Sends the table.
async fn import(args: &ServiceArgs, table: File) -> Result<Imported, CacheError> {
    // Read where it is: nothing else runs on this thread.
    let chunks = stream::try_unfold(table, |mut table| async {
        let mut chunk = vec![0; CHUNK_BYTES];
        let n_bytes = table.read(&mut chunk)?;
        chunk.truncate(n_bytes);
        Ok::<_, io::Error>((n_bytes > 0).then_some((chunk, table)))
    });
    let response = args.send(|client, url| client.post(url).body(Body::wrap_stream(chunks))).await?;
    response
        .bytes()
        .await
        .map_err(|error| args.connection(&error))
        .and_then(|body| serde_json::from_slice(&body).map_err(|error| args.connection(&error)))
}

impl ServiceArgs {
    async fn send(
        &self,
        request: impl FnOnce(&Client, Url) -> RequestBuilder,
    ) -> Result<Response, CacheError> {
        let url = endpoint(&self.url, "/admin/cache")?;
        let key = self.key.key()?;
        let client = self.trust.client()?.build().map_err(|error| self.connection(&error))?;
        let mut request = request(&client, url);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| self.connection(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        let refusal = Failure::refused(status.as_u16(), &body);
        Err(CacheError::Refused { url: self.url.clone(), refusal })
    }

    fn connection(&self, error: &(dyn Error + 'static)) -> CacheError {
        let mut cause = root_cause(error).to_string();
        if cause.contains("certificate") {
            cause = format!("{cause}; {FOR_A_CERTIFICATE}");
        }
        CacheError::Connection { url: self.url.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_a_directory_are_those_of_its_directories_too() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
        };
        // As `sidelens embed` leaves them.
        let expected = ["b.parquet", "part-0.parquet/000000.parquet", "part-0.parquet/000001.parquet"];
        let others = ["part-0.parquet/_progress.json", "part-0.parquet/.sidelens-a.part", "notes/a.txt"];
        [&expected[1..], &others, &expected[..1]].concat().into_iter().for_each(write);
        fs::create_dir(dir.path().join("part-1.parquet")).unwrap();
        let found = |named: &[PathBuf]| tables(named).unwrap();
        let expected = expected.map(|name| dir.path().join(name));
        assert_eq!(found(&[dir.path().into()]), expected);
        assert_eq!(found(&[dir.path().join("part-0.parquet"), expected[0].clone()])[..2], expected[1..]);
        assert!(matches!(tables(&[dir.path().join("part-1.parquet")]), Err(CacheError::NoTables)));
    }
}
