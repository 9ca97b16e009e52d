//! Why a model cannot be had by its name.

use std::{io, path::PathBuf};

use hf_hub::HFError;

use crate::domain::root_cause;

/// Why a model cannot be had by its name. Every variant names the model, or the file.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The client could not be built.
    #[error(
        "cannot set up downloads from the hub: {0}; without system certificates, install ca-certificates"
    )]
    Setup(String),
    /// `HF_ENDPOINT` is not as it must be.
    #[error("HF_ENDPOINT holds a name or password, which messages would show: use HF_TOKEN or `hub.token`")]
    Endpoint,
    /// 401 or 403.
    #[error("`{repo}` is gated or private, or does not exist: {endpoint} answered {status}; {}", next_step(.repo, .endpoint, *.has_token))]
    Gated {
        /// The model.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Its answer.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// No such model.
    #[error("{endpoint} has no model `{repo}`, and there is no directory of that name; check the spelling")]
    NoRepo {
        /// The model.
        repo: String,
        /// The hub.
        endpoint: String,
    },
    /// No such branch, tag or commit.
    #[error("`{repo}` has no revision `{revision}` on {endpoint}; name a branch, a tag or a whole commit")]
    NoRevision {
        /// The model.
        repo: String,
        /// The revision asked for.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub lists a file, but does not give it.
    #[error("`{repo}` has no file `{file}` at {commit}, says {endpoint}")]
    NoFile {
        /// The model.
        repo: String,
        /// The commit asked for.
        commit: String,
        /// The file.
        file: String,
        /// The hub.
        endpoint: String,
    },
    /// It brings a program, and the settings do not trust it.
    #[error(
        "`{model}` has a sidelens.toml, and the TorchScript module beside it is a program that would run here; \
         if you trust its owner, name a revision and set `hub.trust_remote_code = true`"
    )]
    RemoteCode {
        /// The model.
        model: String,
    },
    /// The model has no such files as Sidelens reads.
    #[error("`{model}` cannot be served: it lacks {}", .missing.join(", "))]
    Lacking {
        /// The model.
        model: String,
        /// Files, or kinds of files.
        missing: Vec<String>,
    },
    /// A file that names other files cannot be read.
    #[error("{file} is not as expected: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// No answer, or none that is of use, after several tries.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// The last failure.
        reason: String,
    },
    /// The body kept ending early; what arrived is kept for the next run.
    #[error(
        "the download of `{file}` broke off at {received} of {size} bytes: {reason}; the next run resumes it"
    )]
    BrokeOff {
        /// The file.
        file: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes that were announced.
        size: u64,
        /// What ended it.
        reason: String,
    },
    /// The body is longer than announced.
    #[error("`{file}` is longer than the {size} bytes that the hub announced; nothing was kept")]
    TooLong {
        /// The file.
        file: String,
        /// Bytes that were announced.
        size: u64,
    },
    /// The content is not what its etag says.
    #[error(
        "`{file}` is not what the hub announced: its digest is {found}, its etag {etag}; nothing was kept"
    )]
    Digest {
        /// The file.
        file: String,
        /// What the content gives.
        found: String,
        /// What it should give.
        etag: String,
    },
    /// The hub says something unusable of a file.
    #[error("{endpoint} says nothing usable of `{file}`: {reason}")]
    Answer {
        /// The hub.
        endpoint: String,
        /// The file or address asked for.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Offline, and not downloaded, or not whole.
    #[error(
        "`{model}` is not downloaded: {} lacks {}; run once without `hub.offline` and HF_HUB_OFFLINE",
        .place.display(), .missing.join(", ")
    )]
    NotCached {
        /// The model.
        model: String,
        /// Where it was looked for.
        place: PathBuf,
        /// What is missing there.
        missing: Vec<String>,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl HubError {
    /// For `map_err`: what the system says about `path`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Whether another try may help.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::BrokeOff { .. })
    }
}

fn next_step(repo: &str, endpoint: &str, has_token: bool) -> String {
    match has_token {
        true => format!(
            "accept its terms at {endpoint}/{repo} with the account of the token that was sent, or give another \
             token that may read it"
        ),
        false => format!(
            "accept its terms at {endpoint}/{repo}, then give a token of that account in HF_TOKEN or `hub.token`"
        ),
    }
}

/// The innermost cause of what `hf_hub` reports: reqwest's own sentence holds the whole address, which may be signed.
pub(super) fn reason(error: &HFError) -> String {
    match error {
        HFError::Http { context } => format!("it answers {}", context.status),
        HFError::RateLimited { .. } => "it answers 429, too many requests".into(),
        HFError::Request { source, .. } => root_cause(source).to_string(),
        other => root_cause(other).to_string(),
    }
}
