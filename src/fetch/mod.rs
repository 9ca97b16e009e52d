//! From where a picture is to its encoded bytes: passed through, decoded from text, or downloaded.
//!
//! `data_url` reads data URIs and base64, `http` downloads, and `guard` decides which addresses a
//! download may reach. Whether the bytes are a picture is for `imaging` to find out.

mod data_url;
mod error;
mod guard;
mod http;
mod places;
#[cfg(test)]
mod test_server;

use bytes::{Buf, Bytes, BytesMut};

pub use error::{FetchError, FetchSetupError, HostFailure};
pub use guard::{Guard, is_global};

use self::http::Downloads;
use crate::config::FetchConfig;
use crate::domain::ImageSource;

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
    pub fn new(config: &FetchConfig) -> Result<Self, FetchSetupError> {
        Ok(Self { max_bytes: config.max_bytes, downloads: Downloads::new(config)? })
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
        let (mut text, is_url) = match source {
            ImageSource::Bytes(bytes) => return data_url::checked(bytes, self.max_bytes),
            ImageSource::Url(text) => (BytesMut::from(text.trim().as_bytes()), true),
            ImageSource::Encoded(text) => (text, false),
        };
        text.truncate(text.trim_ascii_end().len());
        text.advance(text.len() - text.trim_ascii_start().len());
        if has_scheme(&text, "data:") {
            text.advance("data:".len());
            data_url::decode_data_uri(text, self.max_bytes)
        } else if text.is_empty() {
            Err(FetchError::Empty)
        } else if is_url || has_scheme(&text, "http://") || has_scheme(&text, "https://") {
            self.downloads.get(&String::from_utf8_lossy(&text)).await
        } else {
            data_url::decode_base64(text, self.max_bytes)
        }
    }
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
