//! Why a picture's bytes could not be had.

use std::{io, path::PathBuf};

use url::ParseError;

use crate::domain::{ItemErrorKind, MAX_ADDRESS_BYTES};

/// Why pictures cannot be fetched at all.
#[derive(Debug, thiserror::Error)]
pub enum FetchSetupError {
    /// The TLS versions do not fit the crypto provider.
    #[error("cannot set up tls for remote pictures: {0}")]
    Tls(#[from] rustls::Error),
    /// A setting of remote pictures that validation refuses as well; its value is left out.
    #[error("`{key}` {limit}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What it must be.
        limit: &'static str,
    },
    /// The client refuses its settings.
    #[error("cannot set up the client for remote pictures: {0}")]
    Client(#[from] reqwest::Error),
    /// A bucket's settings do not do.
    #[error("cannot use `{bucket}` of `fetch.buckets`: {source}")]
    Bucket {
        /// Its URL, without a key.
        bucket: String,
        /// What the object store says.
        source: object_store::Error,
    },
    /// An option that would be dropped: connections are ours.
    #[error(
        "`{option}` of `{bucket}` in `fetch.buckets` is about connections, which no option changes; leave it out: \
         `endpoint` says whether it is https, `fetch.proxy` is the proxy, `fetch.timeout_ms` and \
         `fetch.connect_timeout_ms` are the times"
    )]
    ClientOption {
        /// The bucket's URL, without a key.
        bucket: String,
        /// The option's name.
        option: String,
    },
    /// A folder to be written to is none.
    #[error("cannot use {url}: {source}")]
    Folder {
        /// Its URL.
        url: String,
        /// What the object store says.
        source: object_store::Error,
    },
    /// The directory of the files cannot be opened, or not so that nothing outside is reachable.
    #[error("cannot use `fetch.files_root` {}: {source}", path.display())]
    FilesRoot {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Why there are no bytes. `host` is the host of the picture's address, with its port where that is
/// not the scheme's own, or its bucket (`s3://photos`), or the name of its file; directories, keys,
/// queries and credentials are never kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No address and no data.
    #[error("the picture is empty; a null field in a template renders so")]
    Empty,
    /// A data URI without a comma between its type and its data.
    #[error("the data uri has no comma before its data")]
    DataUri,
    /// Neither base64 nor anything else that is known.
    #[error("the picture is neither an http(s) url nor a data uri nor base64: {0}")]
    Base64(&'static str),
    /// A path where the picture itself was expected.
    #[error(
        "the picture is neither an address with its scheme nor a data uri nor base64; a path goes into `image_url`"
    )]
    Path,
    /// Not an absolute URL.
    #[error("the picture's url cannot be read: {0}")]
    Url(ParseError),
    /// A path, without a place that it is relative to.
    #[error(
        "the picture's address is a path; set `fetch.base_url` or `fetch.files_root` to what it is relative to, or send a \
         whole address"
    )]
    Relative,
    /// Too long for an address.
    #[error(
        "the picture's address has {n_bytes} bytes, more than the {MAX_ADDRESS_BYTES} that are read as one; \
         send a shorter one, or the picture itself as a data uri"
    )]
    AddressLength {
        /// Its bytes.
        n_bytes: usize,
    },
    /// Longer than any server reads, or a host that no name server knows.
    #[error("the picture's url or its host name is too long")]
    UrlLength,
    /// A scheme that is not in the table.
    #[error("the picture's url has a scheme that is not read; use http or https")]
    Scheme,
    /// A user name or password in the URL.
    #[error("the url of the picture at `{host}` holds credentials; remove them")]
    Credentials {
        /// The picture's host.
        host: String,
    },
    /// No address of the host may be reached.
    #[error("`{host}` is not at a global address; list its network in `fetch.allow_networks` to allow it")]
    Blocked {
        /// The host, or the one redirected to.
        host: String,
    },
    /// The settings close the host by its name.
    #[error("`{host}` is closed by `fetch.allow_hosts` or `fetch.deny_hosts`")]
    ClosedHost {
        /// The host, or the one redirected to.
        host: String,
    },
    /// A redirect from https to http.
    #[error("`{host}` redirects from https to http, which is refused")]
    Downgrade {
        /// The redirecting host.
        host: String,
    },
    /// A file, where none may be read.
    #[error("files are not read; `fetch.files_root` names the directory to allow")]
    FilesOff,
    /// A file that is somewhere else, whether or not it exists.
    #[error("the file is not below `fetch.files_root`")]
    Outside,
    /// An `s3://`, `gs://` or `az://` URL without a bucket, or with a key that cannot be one.
    #[error("the picture's object url reads s3://bucket/key (or gs, az), without `.`, `..` or empty parts")]
    ObjectUrl,
    /// A bucket, or a part of one, that pictures may not come from.
    #[error("`{bucket}` is not listed in `fetch.buckets`, or not this part of it")]
    Bucket {
        /// Its URL, without a key.
        bucket: String,
    },
    /// No regular file of this name.
    #[error("there is no file `{name}` where its path says, below `fetch.files_root`")]
    NoFile {
        /// The last part of its path, shortened.
        name: String,
    },
    /// A file that the system withholds.
    #[error("the file `{name}` may not be read by this process")]
    FileRefused {
        /// The last part of its path, shortened.
        name: String,
    },
    /// Nothing in a file, an object, or an answer that is whole.
    #[error("the picture at `{host}` is empty")]
    NoBytes {
        /// Its host or bucket, or the last part of its path.
        host: String,
    },
    /// 404 or 410.
    #[error("`{host}` answered {status}")]
    NotFound {
        /// The host that answered.
        host: String,
        /// Its status.
        status: u16,
    },
    /// Another 4xx that will not pass.
    #[error("`{host}` refused with {status}")]
    Refused {
        /// The host that answered.
        host: String,
        /// Its status.
        status: u16,
    },
    /// More bytes than allowed.
    #[error("{} is larger than `fetch.max_bytes` {limit}; raise it or send a smaller picture", picture(host))]
    TooLarge {
        /// The host; none for bytes out of the request itself.
        host: Option<String>,
        /// The most bytes allowed.
        limit: usize,
    },
    /// Compressed in a way that was not asked for, and is not undone.
    #[error(
        "`{host}` sends the picture compressed by something else than gzip or deflate, although nothing was asked for; store \
         it as it is"
    )]
    Encoding {
        /// The host that answered.
        host: String,
    },
    /// Connecting took too long.
    #[error("`{host}` could not be connected to within `fetch.connect_timeout_ms` {limit_ms}")]
    ConnectTimeout {
        /// The host.
        host: String,
        /// The most milliseconds allowed.
        limit_ms: u64,
    },
    /// No answer began in time.
    #[error("`{host}` did not begin to answer within `fetch.first_byte_timeout_ms` {limit_ms}")]
    FirstByteTimeout {
        /// The host.
        host: String,
        /// The most milliseconds allowed.
        limit_ms: u64,
    },
    /// The body came too slowly.
    #[error("`{host}` delivers less than `fetch.min_bytes_per_s` {limit}")]
    Slow {
        /// The host.
        host: String,
        /// The fewest bytes per second allowed.
        limit: u64,
    },
    /// The picture as a whole took too long.
    #[error("`{host}` did not deliver the picture within `fetch.timeout_ms` {limit_ms}")]
    Timeout {
        /// The host of the first address.
        host: String,
        /// The most milliseconds allowed.
        limit_ms: u64,
    },
    /// Too many hops.
    #[error("`{host}` redirects more than `fetch.max_redirects` {limit} times")]
    Redirects {
        /// The host of the first address.
        host: String,
        /// The most redirects followed.
        limit: usize,
    },
    /// The host failed in another way.
    #[error("`{host}` failed: {failure}")]
    Host {
        /// The host that failed.
        host: String,
        /// How.
        failure: HostFailure,
    },
}

/// How a picture's host failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostFailure {
    /// Its name leads to no address.
    #[error("its name has no address")]
    Name,
    /// No connection.
    #[error("no connection")]
    Connect,
    /// The certificate or the handshake.
    #[error("its certificate or tls handshake is not acceptable")]
    Tls,
    /// The answer is not HTTP, or there is none.
    #[error("no valid http answer")]
    Answer,
    /// A status that may pass (5xx, 408, 425, 429), or one that means nothing here.
    #[error("status {0}")]
    Status(u16),
    /// A redirect without a place to go that is an http(s) URL without credentials.
    #[error("it redirects to no http(s) url")]
    Location,
    /// The body ends too early or breaks its framing.
    #[error("the body broke off")]
    Body,
    /// The object store, or what gives out its credentials.
    #[error("the object store does not deliver")]
    Store,
    /// Its storage.
    #[error("it cannot be read now")]
    Read,
    /// A success other than 200 without a body.
    #[error("empty body")]
    EmptyBody,
}

impl FetchError {
    /// What the caller is told.
    pub fn kind(&self) -> ItemErrorKind {
        match self {
            Self::Empty | Self::NoBytes { .. } => ItemErrorKind::EmptyImage,
            Self::DataUri | Self::Base64(_) | Self::Path => ItemErrorKind::InvalidBase64,
            Self::Url(_)
            | Self::Relative
            | Self::AddressLength { .. }
            | Self::UrlLength
            | Self::Scheme
            | Self::Credentials { .. }
            | Self::ObjectUrl => ItemErrorKind::InvalidUrl,
            Self::Blocked { .. }
            | Self::ClosedHost { .. }
            | Self::Downgrade { .. }
            | Self::FilesOff
            | Self::Outside
            | Self::Bucket { .. } => ItemErrorKind::BlockedAddress,
            Self::NotFound { .. } | Self::NoFile { .. } => ItemErrorKind::NotFound,
            Self::Refused { .. } | Self::FileRefused { .. } => ItemErrorKind::Forbidden,
            Self::TooLarge { .. } => ItemErrorKind::TooLarge,
            // Final: such a host does it each time.
            Self::Encoding { .. } => ItemErrorKind::NotAnImage,
            Self::ConnectTimeout { .. }
            | Self::FirstByteTimeout { .. }
            | Self::Slow { .. }
            | Self::Timeout { .. } => ItemErrorKind::Timeout,
            Self::Redirects { .. } | Self::Host { .. } => ItemErrorKind::HostError,
        }
    }

    /// Whether the same request may well succeed a moment later. What ran out of time has had its share of the budget,
    /// and a name was asked for more than once by the system itself.
    pub(super) fn passes_soon(&self) -> bool {
        let Self::Host { failure, .. } = self else { return false };
        match failure {
            HostFailure::Connect | HostFailure::Answer | HostFailure::Body => true,
            HostFailure::Status(status) => matches!(status, 408 | 425 | 429 | 500..=599),
            HostFailure::Name | HostFailure::Tls | HostFailure::Location | HostFailure::EmptyBody => false,
            // The client of the object store has tried again by itself, and a disk that fails takes longer.
            HostFailure::Store | HostFailure::Read => false,
        }
    }
}

impl From<ParseError> for FetchError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::RelativeUrlWithoutBase => Self::Relative,
            other => Self::Url(other),
        }
    }
}

fn picture(host: &Option<String>) -> String {
    match host {
        Some(host) => format!("the picture at `{host}`"),
        None => "the picture".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_host_the_limit_and_the_setting() {
        let too_large = FetchError::TooLarge { host: Some("a.example:8080".to_owned()), limit: 20971520 };
        assert_eq!(
            too_large.to_string(),
            "the picture at `a.example:8080` is larger than `fetch.max_bytes` 20971520; \
             raise it or send a smaller picture"
        );
        let empty = FetchError::Host { host: "a.example".to_owned(), failure: HostFailure::EmptyBody };
        assert_eq!(empty.to_string(), "`a.example` failed: empty body");
    }
}
