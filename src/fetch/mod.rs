//! From where a picture is to its encoded bytes: passed through, decoded from text, or downloaded.
//!
//! `data_url` reads data URIs and base64, `http` downloads, `hop` and `hosts` decide which hosts a download may ask, and
//! `guard` which addresses it may reach. Whether the bytes are a picture is for `imaging` to find out.

mod body;
mod client;
mod data_url;
mod error;
mod flights;
mod freshness;
mod guard;
mod hop;
mod hosts;
mod http;
mod memory;
mod places;
mod resolve;
#[cfg(test)]
mod test_server;

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

pub use error::{FetchError, FetchSetupError, HostFailure};
pub use guard::{Guard, is_global};

use self::http::Downloads;
use crate::config::FetchConfig;
use crate::domain::{ContentDigest, ImageSource};
use crate::telemetry::Metrics;

/// What became of an [`ImageSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The encoded file.
    File {
        /// At least one byte, at most `fetch.max_bytes`.
        bytes: Bytes,
        /// The file's digest, where it was taken on the way.
        digest: Option<ContentDigest>,
    },
    /// It is still the file that the caller holds.
    Unchanged,
}

/// Turns an [`ImageSource`] into the encoded file (JPEG, PNG, ...). Cheap to clone; clones share
/// their connections and the bound on downloads at once.
#[derive(Clone)]
pub struct Fetcher {
    max_bytes: usize,
    downloads: Downloads,
}

impl Fetcher {
    /// Prepares the HTTP client; reaches no host yet.
    ///
    /// # Errors
    /// [`FetchSetupError`] when the TLS settings or the client cannot be built.
    pub fn new(config: &FetchConfig, metrics: Arc<Metrics>) -> Result<Self, FetchSetupError> {
        Ok(Self { max_bytes: config.max_bytes, downloads: Downloads::new(config, metrics)? })
    }

    /// The digest of the file that `source` last led to, if it is an address that is remembered. Whether it still does is
    /// for [`fetch_unless_held`](Self::fetch_unless_held) to say.
    pub fn recall(&self, source: &ImageSource) -> Option<ContentDigest> {
        match source {
            ImageSource::Url(text) => self.downloads.recall(text.trim()),
            ImageSource::Encoded(text) if is_http(text.trim_ascii_start()) => {
                self.downloads.recall(&String::from_utf8_lossy(text.trim_ascii()))
            }
            ImageSource::Encoded(_) | ImageSource::Bytes(_) => None,
        }
    }

    /// The encoded bytes behind `source`: at least one, at most `fetch.max_bytes`.
    ///
    /// Goes by what the text is rather than by what its variant promises, since callers put
    /// addresses and data URIs into the same field. A wait for one of the `fetch.max_concurrent`
    /// downloads does not count against `fetch.timeout_ms`.
    ///
    /// # Errors
    /// [`FetchError`], whose [`kind`](FetchError::kind) says what to tell the caller.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection and frees its place among the downloads.
    pub async fn fetch(&self, source: ImageSource) -> Result<Bytes, FetchError> {
        match self.fetch_unless_held(source, None).await? {
            Fetched::File { bytes, .. } => Ok(bytes),
            Fetched::Unchanged => unreachable!("nothing is held"),
        }
    }

    /// As [`fetch`](Self::fetch), but nothing is brought that the caller says to hold something for: with the digest that
    /// [`recall`](Self::recall) gave, an address costs nothing while it is fresh and a conditional request afterwards.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    ///
    /// # Cancel safety
    /// As [`fetch`](Self::fetch), unless others ask for the same address at that moment: they still get it.
    pub async fn fetch_unless_held(
        &self,
        source: ImageSource,
        held: Option<ContentDigest>,
    ) -> Result<Fetched, FetchError> {
        let (mut text, is_url) = match source {
            ImageSource::Bytes(bytes) => return data_url::checked(bytes, self.max_bytes).map(Fetched::from),
            ImageSource::Url(text) => (BytesMut::from(text.trim().as_bytes()), true),
            ImageSource::Encoded(text) => (text, false),
        };
        text.truncate(text.trim_ascii_end().len());
        text.advance(text.len() - text.trim_ascii_start().len());
        if has_scheme(&text, "data:") {
            text.advance("data:".len());
            data_url::decode_data_uri(text, self.max_bytes).map(Fetched::from)
        } else if text.is_empty() {
            Err(FetchError::Empty)
        } else if is_url || is_http(&text) {
            self.downloads.get(&String::from_utf8_lossy(&text), held).await
        } else {
            data_url::decode_base64(text, self.max_bytes).map(Fetched::from)
        }
    }
}

impl From<Bytes> for Fetched {
    fn from(bytes: Bytes) -> Self {
        Self::File { bytes, digest: None }
    }
}

fn is_http(text: &[u8]) -> bool {
    has_scheme(text, "http://") || has_scheme(text, "https://")
}

/// Whether `text` begins with `scheme`, in whatever case.
fn has_scheme(text: &[u8], scheme: &str) -> bool {
    text.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::test_server::{Reply, TestServer, config};
    use super::*;
    use crate::domain::ItemErrorKind::{self, *};

    async fn fetched(source: ImageSource) -> Result<Bytes, ItemErrorKind> {
        let server_less = FetchConfig { max_bytes: 20, ..config() };
        Fetcher::new(&server_less, Metrics::new()).unwrap().fetch(source).await.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn passes_bytes_through_within_the_cap() {
        let bytes = Bytes::from_static(b"a picture of 20 byte");
        assert_eq!(fetched(ImageSource::Bytes(bytes.clone())).await, Ok(bytes));
        assert_eq!(
            fetched(ImageSource::Bytes(Bytes::from_static(b"a picture of 21 bytes"))).await,
            Err(TooLarge)
        );
        assert_eq!(fetched(ImageSource::Bytes(Bytes::new())).await, Err(EmptyImage));
    }

    #[tokio::test]
    async fn goes_by_what_the_text_is() {
        let abc = Bytes::from_static(b"abc");
        for (text, as_encoded, as_url) in [
            ("YWJj", Ok(abc.clone()), Err(InvalidUrl)),
            ("data:image/png;base64,YWJj", Ok(abc.clone()), Ok(abc.clone())),
            (" DATA:,abc\n", Ok(abc.clone()), Ok(abc.clone())),
            ("", Err(EmptyImage), Err(EmptyImage)),
            (" \n", Err(EmptyImage), Err(EmptyImage)),
            ("ftp://example.com/a.png", Err(InvalidBase64), Err(InvalidUrl)),
            ("http://", Err(InvalidUrl), Err(InvalidUrl)),
            ("http://10.0.0.1/a.png", Err(BlockedAddress), Err(BlockedAddress)),
            ("é", Err(InvalidBase64), Err(InvalidUrl)),
        ] {
            assert_eq!(fetched(ImageSource::Encoded(text.into())).await, as_encoded, "encoded {text:?}");
            assert_eq!(fetched(ImageSource::Url(text.to_owned())).await, as_url, "url {text:?}");
        }
    }

    #[tokio::test]
    async fn an_encoded_string_may_be_an_address() {
        let server = TestServer::start(|_| Reply::ok("abc")).await;
        let source = ImageSource::Encoded(server.url("/a.png").replace("http", "HTTP").as_str().into());
        let config = FetchConfig { allow_networks: vec!["127.0.0.1/32".parse().unwrap()], ..config() };
        let fetcher = Fetcher::new(&config, Metrics::new()).unwrap();
        assert_eq!(fetcher.fetch(source.clone()).await, Ok(Bytes::from_static(b"abc")));
        assert_eq!(fetcher.recall(&source), Some(ContentDigest::of(b"abc")));
    }
}
