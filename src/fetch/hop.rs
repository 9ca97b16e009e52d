//! From address to address until there is a picture: each hop is checked like the first.
//!
//! Redirects are followed by hand, so that none passes a check by.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{HeaderValue, LOCATION};
use reqwest::{Client, Response, StatusCode};
use tokio::time::timeout;
use tracing::Span;
use url::{Host, Url};

use super::body::BodyLimits;
use super::freshness::Freshness;
use super::hosts::Hosts;
use super::memory::{Known, UrlKey, Validator};
use super::resolve::{GuardedNames, Refused};
use super::{FetchError, HostFailure};
use crate::config::holds_credentials;
use crate::domain::{ContentDigest, causes, root_cause};

/// The longest name that DNS knows.
const MAX_HOST_BYTES: usize = 253;

/// What every hop must pass, and what its answer is read by.
pub(super) struct Hops {
    pub client: Client,
    pub names: GuardedNames,
    pub hosts: Hosts,
    pub body: BodyLimits,
    pub freshness: Freshness,
    pub connect_timeout_ms: u64,
    pub first_byte_timeout_ms: u64,
    pub max_redirects: usize,
}

/// What is at the end of all redirects. `lifetime` is how long the whole chain of them is fresh; none means that it
/// must not be remembered.
pub(super) enum Answer {
    File { bytes: Bytes, digest: ContentDigest, validator: Option<Validator>, lifetime: Option<Duration> },
    NotModified { lifetime: Option<Duration> },
}

impl Hops {
    /// Goes from `first` to a picture; where `known` has a validator, only to see whether it changed.
    pub async fn follow(&self, first: &Url, known: Option<&Known>) -> Result<Answer, FetchError> {
        let mut url = first.clone();
        let mut lifetime = Some(Duration::MAX);
        for _ in 0..=self.max_redirects {
            let key = UrlKey::of(&url);
            let known = known.and_then(|known| known.validator.as_ref().map(|validator| (known, validator)));
            let known = known.filter(|(_, validator)| validator.of == key);
            let response = self.request(&url, known.map(|(_, validator)| validator)).await?;
            // A chain holds no longer than the first of its links to give way.
            let mut shortened = |freshness: Freshness| {
                let of_hop = freshness.of(response.headers(), SystemTime::now());
                lifetime = lifetime.zip(of_hop).map(|(chain, hop)| chain.min(hop));
                lifetime
            };
            match (response.status(), known) {
                (
                    StatusCode::MOVED_PERMANENTLY
                    | StatusCode::FOUND
                    | StatusCode::SEE_OTHER
                    | StatusCode::TEMPORARY_REDIRECT
                    | StatusCode::PERMANENT_REDIRECT,
                    _,
                ) => {
                    shortened(self.freshness);
                    url = next_hop(&url, response.headers().get(LOCATION))?;
                }
                (StatusCode::NOT_MODIFIED, Some((known, _))) => {
                    record(StatusCode::NOT_MODIFIED);
                    // What is left unsaid is as it was.
                    let freshness = Freshness { unsaid: known.lifetime, ..self.freshness };
                    return Ok(Answer::NotModified { lifetime: shortened(freshness) });
                }
                // A part of a picture, which nobody asked for, is as good as none.
                (status, _) if status.is_success() && status != StatusCode::PARTIAL_CONTENT => {
                    record(status);
                    let lifetime = shortened(self.freshness);
                    let validator = Validator::new(&url, response.headers());
                    let (bytes, digest) = self.body.read(&host_of(&url), response).await?;
                    return Ok(Answer::File { bytes, digest, validator, lifetime });
                }
                (status, _) => {
                    record(status);
                    return Err(refusal(host_of(&url), status));
                }
            }
        }
        Err(FetchError::Redirects { host: host_of(first), limit: self.max_redirects })
    }

    async fn request(&self, url: &Url, validator: Option<&Validator>) -> Result<Response, FetchError> {
        self.permit(url).await?;
        let mut request = self.client.get(url.clone()).headers(self.hosts.headers(url));
        if let Some(Validator { condition: (name, value), .. }) = validator {
            request = request.header(name, value);
        }
        let limit_ms = self.first_byte_timeout_ms;
        match timeout(Duration::from_millis(limit_ms), request.send()).await {
            Ok(answer) => answer.map_err(|error| self.failure(host_of(url), error)),
            Err(_elapsed) => Err(FetchError::FirstByteTimeout { host: host_of(url), limit_ms }),
        }
    }

    /// Whether `url` may be asked. Names are judged by the resolver when they are dialled; addresses written as such
    /// never reach it, and where a proxy dials nothing does.
    async fn permit(&self, url: &Url) -> Result<(), FetchError> {
        if !self.hosts.permit(url) {
            return Err(FetchError::ClosedHost { host: host_of(url) });
        }
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(name)) if self.names.proxy_host.is_some() => {
                return self.resolve_for_proxy(name, url).await;
            }
            Some(Host::Domain(_)) | None => None,
        };
        if literal.is_some_and(|address| !self.names.guard.permits(address)) {
            return Err(FetchError::Blocked { host: host_of(url) });
        }
        Ok(())
    }

    async fn resolve_for_proxy(&self, name: &str, url: &Url) -> Result<(), FetchError> {
        let no_name = || FetchError::Host { host: host_of(url), failure: HostFailure::Name };
        let name = name.parse().map_err(|_| no_name())?;
        self.names.judge(name).await.map_err(|error| match error.is::<Refused>() {
            true => FetchError::Blocked { host: host_of(url) },
            false => no_name(),
        })
    }

    /// Why there is no answer at all.
    fn failure(&self, host: String, error: reqwest::Error) -> FetchError {
        if causes(&error).any(|cause| cause.is::<Refused>()) {
            FetchError::Blocked { host }
        } else if error.is_builder() {
            // The URL is sound, so it can only be too long for a request.
            FetchError::UrlLength
        } else if error.is_timeout() {
            FetchError::ConnectTimeout { host, limit_ms: self.connect_timeout_ms }
        } else if error.is_dns() {
            failed(host, HostFailure::Name, error)
        } else if causes(&error).any(is_tls) {
            failed(host, HostFailure::Tls, error)
        } else if error.is_connect() {
            failed(host, HostFailure::Connect, error)
        } else {
            failed(host, HostFailure::Answer, error)
        }
    }
}

/// Adds the last status of a chain of redirects to the span of the download.
fn record(status: StatusCode) {
    Span::current().record("http.response.status_code", status.as_u16());
}

/// `url`, if it is an http(s) URL without credentials.
pub(super) fn checked(url: Url) -> Result<Url, FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(FetchError::Scheme);
    }
    if url.host_str().is_none_or(|host| host.len() > MAX_HOST_BYTES) {
        return Err(FetchError::UrlLength);
    }
    if holds_credentials(&url) {
        return Err(FetchError::Credentials { host: host_of(&url) });
    }
    Ok(url)
}

/// Where a redirect of `from` leads. A target that could not be fetched is the host's fault, not the
/// caller's, who never saw it.
fn next_hop(from: &Url, location: Option<&HeaderValue>) -> Result<Url, FetchError> {
    let next = location
        .and_then(|location| std::str::from_utf8(location.as_bytes()).ok())
        .and_then(|location| from.join(location).ok())
        .and_then(|next| checked(next).ok())
        .ok_or_else(|| FetchError::Host { host: host_of(from), failure: HostFailure::Location })?;
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(FetchError::Downgrade { host: host_of(from) });
    }
    Ok(next)
}

/// What a status that is neither a success nor a redirect means.
fn refusal(host: String, status: StatusCode) -> FetchError {
    match status.as_u16() {
        status @ (404 | 410) => FetchError::NotFound { host, status },
        status @ (408 | 425 | 429) => FetchError::Host { host, failure: HostFailure::Status(status) },
        status @ 400..=499 => FetchError::Refused { host, status },
        status => FetchError::Host { host, failure: HostFailure::Status(status) },
    }
}

/// The host, and its port unless it is the scheme's own: the only parts of a URL that are ever shown.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The caller learns the kind of failure; its details, which may quote the host, go to the log.
pub(super) fn failed(host: String, failure: HostFailure, error: reqwest::Error) -> FetchError {
    // The error's own text holds the whole URL.
    let error = error.without_url();
    tracing::debug!(%host, %failure, cause = %root_cause(&error), "a picture's host failed");
    FetchError::Host { host, failure }
}

/// Whether the TLS layer is at fault; it speaks through I/O errors, one inside the other, which hide
/// it from `source()`.
fn is_tls(cause: &(dyn StdError + 'static)) -> bool {
    match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => is_tls(inner),
        None => cause.is::<rustls::Error>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_leave_https() {
        let hop = |from: &str, to: &str| {
            next_hop(&Url::parse(from).unwrap(), Some(&HeaderValue::from_str(to).unwrap()))
                .map(String::from)
                .map_err(|error| error.kind())
        };
        let blocked = Err(crate::domain::ItemErrorKind::BlockedAddress);
        assert_eq!(hop("https://a.example/x", "http://a.example/y"), blocked);
        assert_eq!(hop("https://a.example/x", "//b.example/y"), Ok("https://b.example/y".to_owned()));
        assert_eq!(hop("http://a.example/x", "https://a.example/y"), Ok("https://a.example/y".to_owned()));
    }
}
