//! From where a picture is to its encoded bytes: passed through, decoded from text, or fetched.
//!
//! `data_url` reads data URIs and base64. What is elsewhere has an address, and the scheme table
//! says whose it is: `http` downloads, and `guard` decides which addresses a download may reach;
//! `files` reads below one directory, `buckets` from object stores. Whether the bytes are a picture is for `imaging` to find out.

mod buckets;
mod data_url;
mod error;
mod files;
mod guard;
mod http;
mod places;
#[cfg(test)]
mod test_server;

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use url::{ParseError, Url};

pub use error::{FetchError, FetchSetupError, HostFailure};
pub use guard::{Guard, is_global};

use self::{buckets::Buckets, files::Files, http::Downloads};
use crate::config::FetchConfig;
use crate::domain::ImageSource;

/// Where pictures are fetched from. Each source bounds how much it does at once, and how long.
trait Source: Send + Sync {
    /// The bytes at `address`, which begins with a scheme of this source: at least one, at most
    /// `fetch.max_bytes`.
    fn fetch<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Bytes, FetchError>>;
}

/// Turns an [`ImageSource`] into the encoded file (JPEG, PNG, ...). Cheap to clone; clones share
/// their connections and the bounds on what is fetched at once.
#[derive(Clone)]
pub struct Fetcher {
    max_bytes: usize,
    /// The scheme table: who reads the addresses that begin so.
    schemes: Arc<[(&'static str, Arc<dyn Source>)]>,
    files: Arc<Files>,
}

impl Fetcher {
    /// Prepares the sources; reaches no host yet.
    ///
    /// # Errors
    /// [`FetchSetupError`] when the settings of a source cannot be used.
    pub fn new(config: &FetchConfig) -> Result<Self, FetchSetupError> {
        let downloads = Arc::new(Downloads::new(config)?);
        let buckets = Arc::new(Buckets::new(config)?);
        let files = Arc::new(Files::new(config)?);
        Ok(Self {
            max_bytes: config.max_bytes,
            schemes: Arc::new([
                ("http", downloads.clone()),
                ("https", downloads),
                ("s3", buckets.clone()),
                ("gs", buckets.clone()),
                ("az", buckets),
                ("file", files.clone()),
            ]),
            files,
        })
    }

    /// The encoded bytes behind `source`: at least one, at most `fetch.max_bytes`.
    ///
    /// Goes by what the text is rather than by what its variant promises, since callers put
    /// addresses and data URIs into the same field. A wait for one of the `fetch.max_concurrent`
    /// places does not count against `fetch.timeout_ms`.
    ///
    /// # Errors
    /// [`FetchError`], whose [`kind`](FetchError::kind) says what to tell the caller.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection and frees its place; a file is read to its end.
    pub async fn fetch(&self, source: ImageSource) -> Result<Bytes, FetchError> {
        let (mut text, is_url) = match source {
            ImageSource::Bytes(bytes) => return data_url::checked(bytes, self.max_bytes),
            ImageSource::Url(text) => (BytesMut::from(text.trim().as_bytes()), true),
            ImageSource::Encoded(text) => (text, false),
        };
        text.truncate(text.trim_ascii_end().len());
        text.advance(text.len() - text.trim_ascii_start().len());
        // Base64 has no colon, so a scheme is never mistaken.
        if has_scheme(&text, "data") {
            text.advance("data:".len());
            data_url::decode_data_uri(text, self.max_bytes)
        } else if text.is_empty() {
            Err(FetchError::Empty)
        } else if let Some((_, source)) = self.schemes.iter().find(|(scheme, _)| has_scheme(&text, scheme)) {
            source.fetch(&String::from_utf8_lossy(&text)).await
        } else if is_url {
            self.fetch_without_scheme(&String::from_utf8_lossy(&text)).await
        } else {
            data_url::decode_base64(text, self.max_bytes)
        }
    }

    /// What stands where an address is expected, but begins with no scheme of the table.
    async fn fetch_without_scheme(&self, text: &str) -> Result<Bytes, FetchError> {
        match Url::parse(text) {
            Err(ParseError::RelativeUrlWithoutBase) if self.files.are_on() => self.files.fetch(text).await,
            Err(error) => Err(error.into()),
            Ok(_) => Err(FetchError::Scheme),
        }
    }
}

/// Whether `text` begins with `scheme`, in whatever case, and a colon.
fn has_scheme(text: &[u8], scheme: &str) -> bool {
    text.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme.as_bytes()))
        && text.get(scheme.len()) == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::test_server::{Reply, TestServer, config};
    use super::*;
    use crate::domain::ItemErrorKind::{self, *};

    async fn fetched(source: ImageSource) -> Result<Bytes, ItemErrorKind> {
        let server_less = FetchConfig { max_bytes: 20, ..config() };
        Fetcher::new(&server_less).unwrap().fetch(source).await.map_err(|error| error.kind())
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
            ("file:///etc/hostname", Err(BlockedAddress), Err(BlockedAddress)),
            ("pictures/a.png", Err(InvalidBase64), Err(InvalidUrl)),
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
        let fetcher =
            Fetcher::new(&FetchConfig { allow_networks: vec!["127.0.0.1/32".parse().unwrap()], ..config() });
        assert_eq!(fetcher.unwrap().fetch(source).await, Ok(Bytes::from_static(b"abc")));
    }
}
