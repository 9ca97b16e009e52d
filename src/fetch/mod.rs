//! From where a picture is to its encoded bytes: passed through, decoded from text, or fetched.
//!
//! `data_url` reads data URIs and base64. What is elsewhere has an address, and the scheme table says whose it is:
//! `http` downloads, `files` reads below one directory, `buckets` from object stores. `hop` and `hosts` decide which
//! hosts a download may ask, and `guard` which addresses it may reach. Whether the bytes are a picture is for `imaging`
//! to find out.

mod backlog;
mod body;
mod bucket_folder;
mod buckets;
mod client;
mod data_url;
mod error;
mod files;
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
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tracing::{Instrument, field::Empty};
use url::{ParseError, Url};

pub use bucket_folder::BucketFolder;
pub use error::{FetchError, FetchSetupError, HostFailure};
pub use guard::{Guard, is_global};

use self::{backlog::Backlog, buckets::Buckets, files::Files, http::Downloads, places::Places};
use crate::config::FetchConfig;
use crate::domain::{ContentDigest, ImageSource, Lane, MAX_ADDRESS_BYTES};
use crate::telemetry::{Metrics, traces::trace_span};

/// The longest path of a file in bytes, as Linux has it.
const MAX_PATH_BYTES: usize = 4096;

/// Where pictures are fetched from. Each source bounds how long it takes, and they share how much they do at once.
trait Source: Send + Sync {
    /// The file at `address`, which begins with a scheme of this source or with none; nothing is brought that the caller
    /// says to hold, by the digest that [`recall`](Self::recall) gave.
    fn fetch<'a>(
        &'a self,
        address: &'a str,
        held: Option<ContentDigest>,
        lane: Lane,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>>;

    /// The digest of the file that `address` last led to, if this source remembers.
    fn recall(&self, _address: &str) -> Option<ContentDigest> {
        None
    }
}

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

impl From<Bytes> for Fetched {
    fn from(bytes: Bytes) -> Self {
        Self::File { bytes, digest: None }
    }
}

/// Turns an [`ImageSource`] into the encoded file (JPEG, PNG, ...). Cheap to clone; clones share
/// their connections and the bounds on what is fetched at once.
#[derive(Clone)]
pub struct Fetcher {
    max_bytes: usize,
    timeout: Duration,
    /// The scheme table: who reads the addresses that begin so.
    schemes: Arc<[(&'static str, Arc<dyn Source>)]>,
    /// Who reads paths without a scheme.
    relative: Arc<dyn Source>,
}

impl Fetcher {
    /// Prepares the sources; reaches no host yet.
    ///
    /// # Errors
    /// [`FetchSetupError`] when the settings of a source cannot be used.
    pub fn new(config: &FetchConfig, metrics: Arc<Metrics>) -> Result<Self, FetchSetupError> {
        let places = Places::new(config.max_concurrent, config.max_concurrent_per_host);
        let backlog = Backlog::new(config.max_inflight_bytes);
        let downloads = Arc::new(Downloads::new(config, places.clone(), backlog.clone(), metrics)?);
        let buckets = Arc::new(Buckets::new(config, places.clone(), backlog.clone())?);
        let files = Arc::new(Files::new(config, places, backlog)?);
        let relative: Arc<dyn Source> = if files.are_on() { files.clone() } else { downloads.clone() };
        Ok(Self {
            max_bytes: config.max_bytes,
            timeout: Duration::from_millis(config.timeout_ms),
            schemes: Arc::new([
                ("http", downloads.clone()),
                ("https", downloads),
                ("s3", buckets.clone()),
                ("gs", buckets.clone()),
                ("az", buckets),
                ("file", files),
            ]),
            relative,
        })
    }

    /// The most that fetching one picture takes, once it has its place.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The digest of the file that `source` last led to, if it is an address that is remembered. Whether it still does is
    /// for [`fetch_unless_held`](Self::fetch_unless_held) to say.
    pub fn recall(&self, source: &ImageSource) -> Option<ContentDigest> {
        let (text, is_url) = match source {
            ImageSource::Url(text) => (text.trim().as_bytes(), true),
            ImageSource::Encoded(text) => (text.trim_ascii(), false),
            ImageSource::Bytes(_) => return None,
        };
        let place = self.place(text, is_url).ok()??;
        place.recall(&String::from_utf8_lossy(text))
    }

    /// The encoded bytes behind `source`, fetched as bulk: at least one, at most `fetch.max_bytes`.
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
        match self.fetch_unless_held(source, None, Lane::Bulk).await? {
            Fetched::File { bytes, .. } => Ok(bytes),
            Fetched::Unchanged => unreachable!("nothing is held"),
        }
    }

    /// As [`fetch`](Self::fetch), but nothing is brought that the caller says to hold something for: with the digest that
    /// [`recall`](Self::recall) gave, an address costs nothing while it is fresh and a conditional request afterwards. A
    /// search does not wait behind bulk.
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
        lane: Lane,
    ) -> Result<Fetched, FetchError> {
        let (mut text, is_url) = match source {
            ImageSource::Bytes(bytes) => return data_url::checked(bytes, self.max_bytes).map(Fetched::from),
            ImageSource::Url(text) => (BytesMut::from(text.trim().as_bytes()), true),
            ImageSource::Encoded(text) => (text, false),
        };
        text.truncate(text.trim_ascii_end().len());
        text.advance(text.len() - text.trim_ascii_start().len());
        if has_scheme(&text, "data") {
            text.advance("data:".len());
            data_url::decode_data_uri(text, self.max_bytes).map(Fetched::from)
        } else if text.is_empty() {
            Err(FetchError::Empty)
        } else if let Some(place) = self.place(&text, is_url)? {
            fetch_traced(place, &String::from_utf8_lossy(&text), held, lane).await
        } else if is_path(&text) {
            Err(FetchError::Path)
        } else {
            data_url::decode_base64(text, self.max_bytes).map(Fetched::from)
        }
    }

    /// Who reads `text` if it is an address: by its scheme, or as a path where an address is expected.
    fn place(&self, text: &[u8], is_url: bool) -> Result<Option<&dyn Source>, FetchError> {
        // Base64 has no colon, so a scheme is never mistaken.
        let known = self.schemes.iter().find(|(scheme, _)| has_scheme(text, scheme));
        if known.is_none() && !is_url {
            return Ok(None);
        }
        // Before it is read as one: that takes a second for a hundred megabytes, of a thread that others wait for.
        if text.len() > MAX_ADDRESS_BYTES {
            return Err(FetchError::AddressLength { n_bytes: text.len() });
        }
        if let Some((_, source)) = known {
            return Ok(Some(&**source));
        }
        match Url::parse(&String::from_utf8_lossy(text)) {
            Err(ParseError::RelativeUrlWithoutBase) => Ok(Some(&*self.relative)),
            Err(error) => Err(error.into()),
            Ok(_) => Err(FetchError::Scheme),
        }
    }
}

/// Fetches within a span of its own. The source adds which host it asks, and what came of it.
async fn fetch_traced(
    place: &dyn Source,
    address: &str,
    held: Option<ContentDigest>,
    lane: Lane,
) -> Result<Fetched, FetchError> {
    let span = trace_span!(
        "fetch",
        otel.kind = "client",
        otel.status_code = Empty,
        server.address = Empty,
        http.response.status_code = Empty,
        sidelens.outcome = Empty,
        sidelens.bytes = Empty,
        error.r#type = Empty,
    );
    let result = place.fetch(address, held, lane).instrument(span.clone()).await;
    match &result {
        Ok(Fetched::File { bytes, .. }) => _ = span.record("sidelens.bytes", bytes.len()),
        Ok(Fetched::Unchanged) => {}
        Err(error) => {
            span.record("otel.status_code", "error").record("error.type", error.kind().as_str());
        }
    }
    result
}

/// Whether what is no base64 is the path of a file: no alphabet of that has a dot.
fn is_path(text: &[u8]) -> bool {
    text.len() <= MAX_PATH_BYTES && text.contains(&b'.')
}

/// Whether `text` begins with `scheme`, in whatever case, and a colon.
fn has_scheme(text: &[u8], scheme: &str) -> bool {
    text.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme.as_bytes()))
        && text.get(scheme.len()) == Some(&b':')
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::test_server::{Reply, TestServer, config};
    use super::*;
    use crate::config::BucketConfig;
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
            ("file:///etc/hostname", Err(BlockedAddress), Err(BlockedAddress)),
            ("pictures/a.png", Err(InvalidBase64), Err(InvalidUrl)),
            ("é", Err(InvalidBase64), Err(InvalidUrl)),
        ] {
            assert_eq!(fetched(ImageSource::Encoded(text.into())).await, as_encoded, "encoded {text:?}");
            assert_eq!(fetched(ImageSource::Url(text.to_owned())).await, as_url, "url {text:?}");
        }
    }

    #[tokio::test]
    async fn a_path_is_told_where_it_belongs() {
        let fetcher = Fetcher::new(&config(), Metrics::new()).unwrap();
        for path in ["0042.jpg", " ../photos/0042", "photos/red_house-2.webp\n"] {
            assert_eq!(
                fetcher.fetch(ImageSource::Encoded(path.into())).await,
                Err(FetchError::Path),
                "{path}"
            );
            let as_url = fetcher.fetch(ImageSource::Url(path.into())).await;
            assert_eq!(as_url, Err(FetchError::Relative), "{path}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_for_an_address_is_not_read_as_one() {
        let long = "a".repeat(MAX_ADDRESS_BYTES);
        let n_bytes = MAX_ADDRESS_BYTES + 8;
        // Each of them would be refused for something else.
        for address in [format!("http://:{long}"), format!("ftp://ab{long}"), format!("pictures{long}")] {
            let result =
                Fetcher::new(&config(), Metrics::new()).unwrap().fetch(ImageSource::Url(address)).await;
            assert_eq!(result, Err(FetchError::AddressLength { n_bytes }));
        }
        assert_eq!(
            fetched(ImageSource::Encoded(format!("http://{long}").as_str().into())).await,
            Err(InvalidUrl)
        );
        // The picture itself may be longer.
        let picture =
            fetched(ImageSource::Url(format!("data:;base64,YWJj{}", " ".repeat(MAX_ADDRESS_BYTES))));
        assert_eq!(picture.await, Ok(Bytes::from_static(b"abc")));
        assert_eq!(fetched(ImageSource::Encoded(long.as_str().into())).await, Err(TooLarge));
    }

    #[tokio::test]
    async fn the_settings_name_the_schemes_of_the_table() {
        let fetcher = Fetcher::new(&config(), Metrics::new()).unwrap();
        let buckets = ["s3", "gs", "az"].map(|scheme| BucketConfig {
            url: format!("{scheme}://photos").parse().unwrap(),
            endpoint: String::new(),
            region: String::new(),
            options: BTreeMap::new(),
            through_proxy: true,
        });
        let open = FetchConfig { files_root: "/".into(), buckets: buckets.into(), ..config() };
        let table = fetcher.schemes.iter().map(|(scheme, _)| *scheme).chain(["data"]);
        assert_eq!(BTreeSet::from_iter(open.schemes()), table.collect());
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
