//! Downloads over http and https: every hop checked, every byte counted.
//!
//! Redirects are followed by hand, so that each hop passes the same checks as the first address.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, StatusCode, redirect};
use url::{Host, Url};

use super::guard::{Guard, GuardedResolver, Refused};
use super::places::Places;
use super::{FetchError, FetchSetupError, HostFailure, Source};
use crate::config::FetchConfig;

/// What `imaging` reads, so that a host with a choice does not pick AVIF or SVG.
const FORMATS: &str =
    "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, image/*;q=0.5, */*;q=0.1";

/// The longest name that DNS knows.
const MAX_HOST_BYTES: usize = 253;

/// The client, its guard and its limits. Cheap to clone; clones share all of it.
#[derive(Clone)]
pub(super) struct Downloads {
    client: Client,
    guard: Guard,
    places: Places,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    timeout_ms: u64,
    connect_timeout_ms: u64,
    max_bytes: usize,
    max_redirects: usize,
}

impl Downloads {
    pub(super) fn new(config: &FetchConfig) -> Result<Self, FetchSetupError> {
        let guard = Guard::new(&config.allow_networks);
        let client = Client::builder()
            .user_agent(concat!("sidelens/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([
                (ACCEPT, HeaderValue::from_static(FORMATS)),
                // A compressed body could unpack to more than the cap.
                (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            ]))
            .redirect(redirect::Policy::none())
            .referer(false)
            // A proxy would dial for us, past the guard.
            .no_proxy()
            .dns_resolver(GuardedResolver(guard.clone()))
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .tls_backend_preconfigured(tls_config()?)
            .build()?;
        Ok(Self {
            client,
            guard,
            places: Places::new(config.max_concurrent, config.max_concurrent_per_host),
            limits: Limits {
                timeout_ms: config.timeout_ms,
                connect_timeout_ms: config.connect_timeout_ms,
                max_bytes: config.max_bytes,
                max_redirects: config.max_redirects,
            },
        })
    }

    /// The body behind `text`, an http(s) URL, after at most `max_redirects` redirects.
    async fn get(&self, text: &str) -> Result<Bytes, FetchError> {
        let url = parse(text)?;
        let host = host_of(&url);
        // The clock starts with the place: a picture is not to blame for those before it, and the
        // request as a whole has its own deadline.
        let _place = self.places.take(&host).await;
        let limit_ms = self.limits.timeout_ms;
        tokio::time::timeout(Duration::from_millis(limit_ms), self.follow(url))
            .await
            .unwrap_or(Err(FetchError::Timeout { host, limit_ms }))
    }

    async fn follow(&self, first: Url) -> Result<Bytes, FetchError> {
        let host = host_of(&first);
        let mut url = first;
        for _ in 0..=self.limits.max_redirects {
            let response = self.request(&url).await?;
            match response.status() {
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => url = next_hop(&url, response.headers().get(LOCATION))?,
                status if status.is_success() => return self.body(&url, response).await,
                status => return Err(refusal(host_of(&url), status)),
            }
        }
        Err(FetchError::Redirects { host, limit: self.limits.max_redirects })
    }

    /// One hop. Names are checked by the resolver; addresses written as such never reach it.
    async fn request(&self, url: &Url) -> Result<Response, FetchError> {
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        if literal.is_some_and(|address| !self.guard.permits(address)) {
            return Err(FetchError::Blocked { host: host_of(url) });
        }
        self.client.get(url.clone()).send().await.map_err(|error| self.failure(host_of(url), error))
    }

    async fn body(&self, url: &Url, mut response: Response) -> Result<Bytes, FetchError> {
        let too_large = || FetchError::TooLarge { host: Some(host_of(url)), limit: self.limits.max_bytes };
        let announced = usize::try_from(response.content_length().unwrap_or(0)).map_err(|_| too_large())?;
        if announced > self.limits.max_bytes {
            return Err(too_large());
        }
        let mut body = BytesMut::with_capacity(announced);
        while let Some(chunk) =
            response.chunk().await.map_err(|error| failed(host_of(url), HostFailure::Body, error))?
        {
            if chunk.len() > self.limits.max_bytes - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        if body.is_empty() {
            return Err(FetchError::Host { host: host_of(url), failure: HostFailure::EmptyBody });
        }
        Ok(body.freeze())
    }

    /// Why there is no answer at all.
    fn failure(&self, host: String, error: reqwest::Error) -> FetchError {
        if causes(&error).any(|cause| cause.is::<Refused>()) {
            FetchError::Blocked { host }
        } else if error.is_builder() {
            // The URL is sound, so it can only be too long for a request.
            FetchError::UrlLength
        } else if error.is_timeout() {
            FetchError::ConnectTimeout { host, limit_ms: self.limits.connect_timeout_ms }
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

impl Source for Downloads {
    fn fetch<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Bytes, FetchError>> {
        Box::pin(self.get(address))
    }
}

/// TLS by ring, trusting Mozilla's roots: minimal images carry no certificate store.
pub(super) fn tls_config() -> Result<rustls::ClientConfig, FetchSetupError> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    // The client offers only what is named here when it is handed a configuration.
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// An http(s) URL without credentials.
fn parse(text: &str) -> Result<Url, FetchError> {
    checked(Url::parse(text)?)
}

fn checked(url: Url) -> Result<Url, FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(FetchError::Scheme);
    }
    if url.host_str().is_none_or(|host| host.len() > MAX_HOST_BYTES) {
        return Err(FetchError::UrlLength);
    }
    if !url.username().is_empty() || url.password().is_some() {
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
fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The caller learns the kind of failure; its details, which may quote the host, go to the log.
fn failed(host: String, failure: HostFailure, error: reqwest::Error) -> FetchError {
    let cause = causes(&error).last().map(ToString::to_string);
    tracing::debug!(%host, %failure, cause, "a picture's host failed");
    FetchError::Host { host, failure }
}

/// `error`'s sources, outermost first. The error itself, whose text holds the whole URL, is left out.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
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
#[path = "http_tests.rs"]
mod tests;
