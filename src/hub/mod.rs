//! Models by name: `org/name[@revision]` to a directory of the hub's cache.
//!
//! The `hf-hub` crate speaks with the hub. Around it this room adds what a service wants of a download: only
//! the files that are needed (`plan.rs`), resumed and verified (`download.rs`), in a cache that several
//! processes and other tools share (`cache.rs`), and that is enough when the hub is away.

mod cache;
mod digest;
mod download;
mod error;
mod plan;
mod progress;
mod remote;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use error::HubError;

use self::{
    cache::{Cache, local_plan},
    digest::digest_like,
    plan::{Plan, SIDELENS},
    progress::Progress,
    remote::Remote,
};
use crate::config::{HubConfig, HubModel, ModelSource};

/// What the hub calls the branch that is meant when none is named.
const DEFAULT_REVISION: &str = "main";
/// For the hub to say whether what is downloaded is current; whoever has nothing waits for minutes, as a download does.
const CURRENCY_TIMEOUT: Duration = Duration::from_secs(10);

/// A model of the hub, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Holds the model's files, in Hugging Face layout.
    pub dir: PathBuf,
    /// The commit that they are from.
    pub commit: String,
}

/// Turns a name into a directory, downloading what is missing; any other source is returned as it is.
///
/// Blocks, and must not be called from an async task.
///
/// # Errors
/// As [`download()`].
pub fn resolve(source: &ModelSource, config: &HubConfig) -> Result<ModelSource, HubError> {
    match source {
        ModelSource::Hub(model) => Ok(ModelSource::Directory(download(model, config)?.dir)),
        other => Ok(other.clone()),
    }
}

/// Asks the hub what a model's revision is, and downloads the files of it that are needed and not here.
///
/// Where the hub cannot be reached, or does not answer in ten seconds, what is here is used, if it is whole; offline it is
/// not even asked.
/// Blocks, and must not be called from an async task. A process that is killed on the way leaves nothing that
/// looks like a model, and the next call goes on where it ended.
///
/// # Errors
/// [`HubError`], with the model or the file in it.
pub fn download(model: &HubModel, config: &HubConfig) -> Result<Snapshot, HubError> {
    let started = Instant::now();
    let snapshot = match config.is_offline() {
        true => cached(model, config)?,
        false => ask_or_make_do(model, config)?,
    };
    let Snapshot { dir, commit } = &snapshot;
    let seconds = started.elapsed().as_secs_f32();
    let revision = model.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    tracing::info!(repo = model.repo, revision, commit, seconds, dir = %dir.display(), "model resolved");
    Ok(snapshot)
}

fn ask_or_make_do(model: &HubModel, config: &HubConfig) -> Result<Snapshot, HubError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| HubError::Setup(error.to_string()))?;
    let here = cached(model, config).ok();
    let patience = here.is_some().then_some(CURRENCY_TIMEOUT);
    match (runtime.block_on(ask_and_fetch(model, config, patience)), here) {
        // Whoever has nothing to fall back on wants to know why the hub did not answer.
        (Err(unreachable @ HubError::Unreachable { .. }), Some(snapshot)) => {
            tracing::warn!(%model, commit = snapshot.commit, "{unreachable}; using what is downloaded");
            Ok(snapshot)
        }
        (outcome, _) => outcome,
    }
}

/// What is downloaded of a model already, if it is whole. Asks nobody.
///
/// # Errors
/// [`HubError::NotCached`], with what is missing.
pub fn cached(model: &HubModel, config: &HubConfig) -> Result<Snapshot, HubError> {
    let cache = Cache::new(config, &model.repo);
    let not_cached = |place, missing| HubError::NotCached { model: model.to_string(), place, missing };
    let revision = model.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    let Some(commit) = cache.commit_of(revision) else {
        return Err(not_cached(cache.place(), vec![format!("revision `{revision}`")]));
    };
    let dir = cache.snapshot(&commit);
    // Another tool that shares the cache may have downloaded it.
    if dir.join(SIDELENS).exists() {
        check_trust(model, config)?;
    }
    match local_plan(&dir)?.missing {
        missing if missing.is_empty() => Ok(Snapshot { dir, commit }),
        missing => Err(not_cached(dir, missing)),
    }
}

/// A TorchScript module is a program, and its owner may put one beside any model at any time.
fn check_trust(model: &HubModel, config: &HubConfig) -> Result<(), HubError> {
    match config.trust_remote_code {
        true => Ok(()),
        false => Err(HubError::RemoteCode { model: model.to_string() }),
    }
}

/// `patience` is for the first answer.
async fn ask_and_fetch(
    model: &HubModel,
    config: &HubConfig,
    patience: Option<Duration>,
) -> Result<Snapshot, HubError> {
    let cache = Cache::new(config, &model.repo);
    let remote = Remote::new(config, model)?;
    let listing = remote.listing(model.revision.as_deref(), patience).await?;
    let commit = listing.commit;
    let dir = cache.snapshot(&commit);
    if listing.files.contains(SIDELENS) {
        check_trust(model, config)?;
    }

    let mut contents = BTreeMap::new();
    let plan = loop {
        let plan = Plan::new(&listing.files, &contents)?;
        if plan.unread.is_empty() {
            break plan;
        }
        for file in plan.unread {
            let path = match dir.join(&file) {
                here if here.exists() => here,
                _ => {
                    let info = download::file_info(&remote, &commit, &file).await?;
                    let mut progress = Progress::new(&model.repo, info.size);
                    download::fetch(&remote, &cache, &commit, &info, &mut progress).await?;
                    cache.blob(&info.etag)
                }
            };
            contents.insert(file, fs::read(&path).map_err(HubError::io(path))?);
        }
    };
    if !plan.missing.is_empty() {
        return Err(HubError::Lacking { model: model.to_string(), missing: plan.missing });
    }

    let mut infos = Vec::new();
    for file in plan.in_order().filter(|file| !dir.join(file).exists()) {
        infos.push(download::file_info(&remote, &commit, file).await?);
    }
    let mut progress = Progress::new(&model.repo, infos.iter().map(|info| info.size).sum());
    // Small ones first: what is wrong shows before the weights are downloaded.
    let mut by_size: Vec<_> = infos.iter().collect();
    by_size.sort_by_key(|info| info.size);
    for info in by_size {
        download::fetch(&remote, &cache, &commit, info, &mut progress).await?;
    }
    // Only now, so that a directory with a model's name is a whole model.
    for info in &infos {
        cache.link(&commit, &info.file, &info.etag)?;
    }
    cache.remember(model.revision.as_deref().unwrap_or(DEFAULT_REVISION), &commit)?;
    Ok(Snapshot { dir, commit })
}

/// The files of a directory that its model needs: as many as would be downloaded.
///
/// # Errors
/// [`HubError::Lacking`] when the directory is not whole.
pub fn files_of(dir: &Path) -> Result<Vec<PathBuf>, HubError> {
    let plan = local_plan(dir)?;
    match plan.missing.is_empty() {
        true => Ok(plan.files.iter().map(|file| dir.join(file)).collect()),
        false => Err(HubError::Lacking { model: dir.display().to_string(), missing: plan.missing }),
    }
}

/// Whether a file's content is what its name in the hub's cache says; `false` for a file that is not from
/// there, or whose name is no digest.
///
/// # Errors
/// [`HubError::Digest`] when it is something else, [`HubError::Io`] when it cannot be read.
pub fn verify_digest(file: &Path) -> Result<bool, HubError> {
    let blob = fs::canonicalize(file).map_err(HubError::io(file))?;
    let name = blob.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(etag) = name.filter(|_| blob.parent().is_some_and(|parent| parent.ends_with("blobs"))) else {
        return Ok(false);
    };
    match digest_like(&etag, &blob).map_err(HubError::io(blob))? {
        None => Ok(false),
        Some(found) if found == etag => Ok(true),
        Some(found) => Err(HubError::Digest { file: file.display().to_string(), found, etag }),
    }
}
