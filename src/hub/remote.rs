//! What is asked of the hub: the list of files, what each file is, and its bytes.

use std::{collections::BTreeSet, env, fs, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use hf_hub::{HFClient, HFError, HFRepository, HFResult, RepoTypeModel};
use reqwest::{
    Client, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION},
    redirect,
};
use tokio::time::timeout;
use url::Url;

use super::{HubError, cache::is_commit, error::reason};
use crate::{
    config::{HubConfig, HubModel, holds_credentials},
    domain::root_cause,
};

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");

const USER_AGENT: &str = concat!("sidelens/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence, not longest download.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Redirects inside the hub, as of a renamed model.
const MAX_REDIRECTS: usize = 5;
/// How often the hub's client tries to send one request.
const SEND_ATTEMPTS: usize = 3;

/// One model on the hub.
pub(super) struct Remote {
    repo: HFRepository<RepoTypeModel>,
    /// Follows no redirect: what a file is stands in the hub's own answer, not in that of its storage.
    direct: Client,
    token: Option<String>,
    endpoint: String,
    name: String,
}

/// The files of one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: BTreeSet<String>,
}

/// What the hub says of one file.
#[derive(Debug, Clone)]
pub(super) struct FileInfo {
    pub file: String,
    /// Its digest, see `digest`, or another name without slashes.
    pub etag: String,
    /// In bytes.
    pub size: u64,
}

impl Remote {
    pub(super) fn new(config: &HubConfig, model: &HubModel) -> Result<Self, HubError> {
        let setup =
            |error: &(dyn std::error::Error + 'static)| HubError::Setup(root_cause(error).to_string());
        let client = || {
            Client::builder()
                .user_agent(USER_AGENT)
                // A compressed body has another length, and cannot be resumed.
                .default_headers(HeaderMap::from_iter([(
                    ACCEPT_ENCODING,
                    HeaderValue::from_static("identity"),
                )]))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
        };
        let token = token(config);
        // Takes `Authorization` off where a redirect leads to another host.
        let mut builder = HFClient::builder()
            .client(client().build().map_err(|error| setup(&error))?)
            .retry_max_attempts(SEND_ATTEMPTS);
        if !config.endpoint.is_empty() {
            builder = builder.endpoint(&config.endpoint);
        }
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        let hub = builder.build().map_err(|error| setup(&error))?;
        // Every error names the address; the setting was checked when it was read, HF_ENDPOINT was not.
        if shows_credentials(hub.endpoint()) {
            return Err(HubError::Endpoint);
        }
        let (org, name) = hf_hub::split_id(&model.repo);
        Ok(Self {
            repo: hub.model(org, name),
            direct: client().redirect(redirect::Policy::none()).build().map_err(|error| setup(&error))?,
            token,
            endpoint: hub.endpoint().to_owned(),
            name: model.repo.clone(),
        })
    }

    /// The files at a revision, or at the default branch. Waits for them no longer than `patience`, if there is one.
    pub(super) async fn listing(
        &self,
        revision: Option<&str>,
        patience: Option<Duration>,
    ) -> Result<Listing, HubError> {
        let asking = self.repo.info().maybe_revision(revision).send();
        let info = match patience {
            None => asking.await,
            Some(patience) => timeout(patience, asking).await.map_err(|_| {
                self.unreachable(format!("it did not answer within {} s", patience.as_secs()))
            })?,
        };
        let info = info.map_err(|error| self.explain(error, "", ""))?;
        let answer = |reason: &str| self.answer(&self.name, reason.into());
        Ok(Listing {
            // It becomes a directory's name.
            commit: info
                .sha
                .filter(|commit| is_commit(commit))
                .ok_or_else(|| answer("there is no commit in its answer"))?,
            files: info
                .siblings
                .ok_or_else(|| answer("there is no list of files in its answer"))?
                .into_iter()
                .map(|sibling| sibling.rfilename)
                .collect(),
        })
    }

    /// The digest and size of a file.
    pub(super) async fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, HubError> {
        let mut url: Url = self.endpoint.parse().map_err(|_| self.answer(file, "it is no address".into()))?;
        url.path_segments_mut()
            .map_err(|()| self.answer(file, "it is no address".into()))?
            .pop_if_empty()
            .extend(self.name.split('/'))
            .extend(["resolve", commit])
            .extend(file.split('/'));
        for _ in 0..=MAX_REDIRECTS {
            let response = self.head(&url).await?;
            let status = response.status();
            let headers = response.headers();
            let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(status, commit, file));
            }
            // Storage elsewhere: the hub says itself what it will give.
            let linked = || header(LINKED_ETAG).zip(header(LINKED_SIZE));
            let own = || header(ETAG).zip(header(CONTENT_LENGTH)).filter(|_| status.is_success());
            if let Some((etag, size)) = linked().or_else(own) {
                let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
                let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if etag.is_empty() || !etag.chars().all(named) {
                    return Err(self.answer(file, format!("its etag is `{etag}`")));
                }
                let size = size.parse().map_err(|_| self.answer(file, format!("its size is `{size}`")))?;
                return Ok(FileInfo { file: file.into(), etag, size });
            }
            let next = header(LOCATION).and_then(|location| url.join(location).ok());
            url = next
                .filter(|next| next.origin() == url.origin())
                .ok_or_else(|| self.answer(file, "it has no etag, or no size".into()))?;
        }
        Err(self.answer(file, format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// The bytes of a file from `start` on, if the server can resume; else from its beginning.
    pub(super) async fn bytes(
        &self,
        commit: &str,
        info: &FileInfo,
        start: u64,
    ) -> Result<impl Stream<Item = HFResult<Bytes>> + Unpin + use<>, HubError> {
        let range = (start > 0).then_some(start..info.size);
        let request = self.repo.download_file_stream().filename(&info.file).revision(commit);
        match request.maybe_range(range).send().await {
            Ok((_, stream)) => Ok(stream),
            Err(error) => Err(self.explain(error, commit, &info.file)),
        }
    }

    async fn head(&self, url: &Url) -> Result<Response, HubError> {
        let mut request = self.direct.head(url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        request.send().await.map_err(|error| self.unreachable(root_cause(&error).to_string()))
    }

    fn explain(&self, error: HFError, commit: &str, file: &str) -> HubError {
        match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                self.refusal(context.status, commit, file)
            }
            HFError::EntryNotFound { .. } => self.refusal(StatusCode::NOT_FOUND, commit, file),
            HFError::RevisionNotFound { context: Some(context), .. }
                if context.error_code.as_deref() == Some("RepoNotFound") =>
            {
                self.no_repo()
            }
            HFError::RevisionNotFound { revision, .. } => {
                HubError::NoRevision { repo: self.name.clone(), revision, endpoint: self.endpoint.clone() }
            }
            HFError::RepoNotFound { .. } => self.no_repo(),
            // A hub that announced more than it has.
            HFError::Http { context } if context.status == StatusCode::RANGE_NOT_SATISFIABLE => {
                self.answer(file, "it is shorter than announced".into())
            }
            error @ (HFError::Http { .. } | HFError::RateLimited { .. } | HFError::Request { .. }) => {
                self.unreachable(reason(&error))
            }
            error => self.answer(if file.is_empty() { &self.name } else { file }, reason(&error)),
        }
    }

    fn refusal(&self, status: StatusCode, commit: &str, file: &str) -> HubError {
        let (repo, endpoint) = (self.name.clone(), self.endpoint.clone());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                HubError::Gated { repo, endpoint, status: status.as_u16(), has_token: self.token.is_some() }
            }
            StatusCode::NOT_FOUND => {
                HubError::NoFile { repo, commit: commit.into(), file: file.into(), endpoint }
            }
            status => self.unreachable(format!("it answers {status}")),
        }
    }

    fn no_repo(&self) -> HubError {
        HubError::NoRepo { repo: self.name.clone(), endpoint: self.endpoint.clone() }
    }

    fn unreachable(&self, reason: String) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }

    fn answer(&self, file: &str, reason: String) -> HubError {
        HubError::Answer { endpoint: self.endpoint.clone(), file: file.into(), reason }
    }
}

/// Whether an address has a name or a password in it, or may have: what is no address of a host is not told apart.
fn shows_credentials(endpoint: &str) -> bool {
    match Url::parse(endpoint) {
        Ok(url) if url.has_host() => holds_credentials(&url),
        _ => endpoint.contains('@'),
    }
}

/// The token of the settings, else of the usual places. The hub's client would find the latter by itself, but
/// tells nobody, and [`Remote::file_info`] needs it too.
fn token(config: &HubConfig) -> Option<String> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    if !config.token.expose().is_empty() {
        return Some(config.token.expose().to_owned());
    }
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let path = variable("HF_TOKEN_PATH").map_or_else(|| hf_hub::hf_home().join("token"), Into::into);
    let token = variable("HF_TOKEN").or_else(|| fs::read_to_string(path).ok())?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stand_before_the_host() {
        for endpoint in
            ["https://user:secret@hub.example", "https://:secret@hub.example", "user:secret@hub.example"]
        {
            assert!(shows_credentials(endpoint), "{endpoint}");
        }
        for endpoint in ["https://hub.example", "https://hub.example/mirror@eu", "hub.example"] {
            assert!(!shows_credentials(endpoint), "{endpoint}");
        }
    }
}
