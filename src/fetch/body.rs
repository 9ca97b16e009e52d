//! The body of an answer: counted, timed, decompressed and hashed as it comes.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::hop::failed;
use super::{FetchError, HostFailure};
use crate::domain::ContentDigest;

/// Long enough that a lost packet or two are no fault.
const WINDOW: Duration = Duration::from_secs(2);
/// Compressed bytes taken at a time: four megabytes at the very most once unpacked, some ten milliseconds.
const PIECE_BYTES: usize = 4 << 10;

/// What IANA lists as done to a body. Any other word is a host's mistake, and nothing was done: `utf-8`, `binary`, and
/// `aws-chunked`, which object stores keep of an upload.
const CODINGS: [&str; 12] = [
    "aes128gcm",
    "br",
    "compress",
    "dcb",
    "dcz",
    "deflate",
    "exi",
    "gzip",
    "pack200-gzip",
    "x-compress",
    "x-gzip",
    "zstd",
];

/// What a body must keep to.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    pub max_bytes: usize,
    /// Over two seconds; 0 for no limit.
    pub min_bytes_per_s: u64,
}

impl BodyLimits {
    /// The body of `response` and its digest; at least one byte.
    pub async fn read(
        &self,
        host: &str,
        mut response: Response,
    ) -> Result<(Bytes, ContentDigest), FetchError> {
        let fault = |fault| self.error(host, fault);
        let announced = usize::try_from(response.content_length().unwrap_or(0)).unwrap_or(usize::MAX);
        if announced > self.max_bytes {
            return Err(fault(Fault::TooLarge));
        }
        let mut decoder =
            Decoder::new(response.headers(), Sink::new(announced, self.max_bytes)).map_err(fault)?;
        let mut pace = Pace::new(self.min_bytes_per_s, Instant::now());
        let mut n_received = 0;
        loop {
            match timeout_at(pace.window_end(), response.chunk()).await {
                Ok(Ok(None)) => break,
                Ok(Ok(Some(chunk))) => {
                    pace.add(chunk.len());
                    n_received += chunk.len();
                    // Of endless empty members of gzip nothing comes out.
                    if n_received > self.max_bytes {
                        return Err(fault(Fault::TooLarge));
                    }
                    decoder.take(&chunk).await.map_err(fault)?;
                }
                Ok(Err(error)) => return Err(failed(host.to_owned(), HostFailure::Body, error)),
                Err(_elapsed) => {}
            }
            if !pace.is_kept(Instant::now()) {
                return Err(fault(Fault::Slow));
            }
        }
        // A 202 or a 204 has the picture later, maybe; a 200 is all there is.
        let empty = || match response.status() {
            StatusCode::OK => FetchError::NoBytes { host: host.to_owned() },
            _ => fault(Fault::Host(HostFailure::EmptyBody)),
        };
        // Whatever was done to no bytes.
        if n_received == 0 {
            return Err(empty());
        }
        let sink = decoder.finish().map_err(fault)?;
        if sink.body.is_empty() {
            return Err(empty());
        }
        Ok((sink.body.freeze(), ContentDigest::of_hasher(&sink.hasher)))
    }

    fn error(&self, host: &str, fault: Fault) -> FetchError {
        let host = host.to_owned();
        match fault {
            Fault::TooLarge => FetchError::TooLarge { host: Some(host), limit: self.max_bytes },
            Fault::Slow => FetchError::Slow { host, limit: self.min_bytes_per_s },
            Fault::Encoding => FetchError::Encoding { host },
            Fault::Host(failure) => FetchError::Host { host, failure },
        }
    }
}

enum Fault {
    TooLarge,
    Slow,
    Encoding,
    Host(HostFailure),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::FileTooLarge => Self::TooLarge,
            // The decompressor's: the stream contradicts itself or ends early.
            _ => Self::Host(HostFailure::Body),
        }
    }
}

/// Where the picture's own bytes arrive.
struct Sink {
    body: BytesMut,
    hasher: blake3::Hasher,
    max_bytes: usize,
}

impl Sink {
    fn new(announced: usize, max_bytes: usize) -> Self {
        Self { body: BytesMut::with_capacity(announced), hasher: blake3::Hasher::new(), max_bytes }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max_bytes - self.body.len() {
            return Err(ErrorKind::FileTooLarge.into());
        }
        self.body.extend_from_slice(bytes);
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What undoes the compression that some hosts apply although none is asked for.
enum Decoder {
    Plain(Sink),
    Gzip(MultiGzDecoder<Sink>),
    /// "deflate" is the zlib format, but some hosts send it without zlib's frame: the first byte tells.
    Deflate(Option<Sink>),
    Zlib(ZlibDecoder<Sink>),
    Raw(DeflateDecoder<Sink>),
}

impl Decoder {
    fn new(headers: &HeaderMap, sink: Sink) -> Result<Self, Fault> {
        let mut codings = headers
            .get_all(CONTENT_ENCODING)
            .into_iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(|coding| coding.trim_ascii().to_ascii_lowercase())
            .filter(|coding| CODINGS.iter().any(|known| known.as_bytes() == coding));
        match (codings.next().as_deref(), codings.next()) {
            (None, _) => Ok(Self::Plain(sink)),
            (Some(b"gzip" | b"x-gzip"), None) => Ok(Self::Gzip(MultiGzDecoder::new(sink))),
            (Some(b"deflate"), None) => Ok(Self::Deflate(Some(sink))),
            _ => Err(Fault::Encoding),
        }
    }

    async fn take(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        if let Self::Plain(sink) = self {
            return Ok(sink.write_all(chunk)?);
        }
        for piece in chunk.chunks(PIECE_BYTES) {
            self.unpack(piece)?;
            // A little may unpack to much, and others wait for this thread.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn unpack(&mut self, piece: &[u8]) -> io::Result<()> {
        if let Self::Deflate(sink) = self {
            let sink = sink.take().expect("it is looked into once");
            // zlib's first byte names the method in its lower half, and 8 is the only one.
            let is_zlib = piece.first().is_some_and(|byte| byte & 0x0f == 8);
            *self = match is_zlib {
                true => Self::Zlib(ZlibDecoder::new(sink)),
                false => Self::Raw(DeflateDecoder::new(sink)),
            };
        }
        match self {
            Self::Plain(sink) => sink.write_all(piece),
            Self::Gzip(decoder) => decoder.write_all(piece),
            Self::Zlib(decoder) => decoder.write_all(piece),
            Self::Raw(decoder) => decoder.write_all(piece),
            Self::Deflate(_) => unreachable!("it has just become one of the two"),
        }
    }

    /// What arrived, if that was all.
    fn finish(self) -> Result<Sink, Fault> {
        let sink = match self {
            Self::Plain(sink) => Ok(sink),
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zlib(decoder) => decoder.finish(),
            Self::Raw(decoder) => decoder.finish(),
            Self::Deflate(sink) => Ok(sink.expect("it was not looked into")),
        };
        Ok(sink?)
    }
}

/// How fast a body comes.
struct Pace {
    min_bytes_per_s: u64,
    window_start: Instant,
    n_bytes: u64,
}

impl Pace {
    fn new(min_bytes_per_s: u64, now: Instant) -> Self {
        Self { min_bytes_per_s, window_start: now, n_bytes: 0 }
    }

    fn window_end(&self) -> Instant {
        self.window_start + WINDOW
    }

    fn add(&mut self, n_bytes: usize) {
        self.n_bytes += n_bytes as u64;
    }

    /// Whether a window that has ended by `now` was filled; then the next one begins.
    fn is_kept(&mut self, now: Instant) -> bool {
        if now < self.window_end() {
            return true;
        }
        let is_filled = self.n_bytes >= self.min_bytes_per_s.saturating_mul(WINDOW.as_secs());
        (self.window_start, self.n_bytes) = (now, 0);
        is_filled
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use reqwest::header::HeaderValue;

    use super::*;

    fn encoded(encoding: &str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_str(encoding).unwrap())])
    }

    async fn decode(encoding: &str, bytes: &[u8], max_bytes: usize) -> Result<Vec<u8>, FetchError> {
        let limits = BodyLimits { max_bytes, min_bytes_per_s: 0 };
        let error = |fault| limits.error("a.example", fault);
        let mut decoder = Decoder::new(&encoded(encoding), Sink::new(0, max_bytes)).map_err(error)?;
        for chunk in bytes.chunks(7) {
            decoder.take(chunk).await.map_err(error)?;
        }
        let sink = decoder.finish().map_err(error)?;
        assert_eq!(sink.hasher.finalize(), blake3::hash(&sink.body));
        Ok(sink.body.to_vec())
    }

    fn packed<W: Write>(
        mut encoder: W,
        bytes: &[u8],
        finish: impl FnOnce(W) -> io::Result<Vec<u8>>,
    ) -> Vec<u8> {
        encoder.write_all(bytes).unwrap();
        finish(encoder).unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        packed(GzEncoder::new(Vec::new(), Compression::best()), bytes, GzEncoder::finish)
    }

    #[tokio::test]
    async fn undoes_what_hosts_do_unasked() {
        let picture: Vec<u8> = (0..3000).map(|i| (i % 251) as u8).collect();
        let level = Compression::default();
        let zlib = packed(ZlibEncoder::new(Vec::new(), level), &picture, ZlibEncoder::finish);
        let raw = packed(DeflateEncoder::new(Vec::new(), level), &picture, DeflateEncoder::finish);
        let members = [gzip(&picture[..1000]), gzip(&picture[1000..])].concat();
        for (encoding, bytes) in [
            ("identity", &picture),
            ("utf-8", &picture),
            ("Binary", &picture),
            ("none", &picture),
            ("", &picture),
            ("aws-chunked", &picture),
            ("aws-chunked, gzip", &gzip(&picture)),
            ("gzip", &gzip(&picture)),
            ("X-GZIP", &gzip(&picture)),
            ("identity, gzip", &gzip(&picture)),
            ("gzip", &members),
            ("deflate", &zlib),
            ("deflate", &raw),
        ] {
            assert_eq!(decode(encoding, bytes, 3000).await.as_ref(), Ok(&picture), "{encoding}");
        }
    }

    #[tokio::test]
    async fn refuses_what_it_cannot_undo() {
        let host = "a.example".to_owned();
        let failure = |failure| Err(FetchError::Host { host: host.clone(), failure });
        for encoding in ["BR", "zstd", "compress", "gzip, gzip", "gzip, br", "aws-chunked, br", "dcb", "exi"]
        {
            let refused = decode(encoding, b"", 100).await.unwrap_err();
            assert_eq!(refused, FetchError::Encoding { host: host.clone() }, "{encoding}");
            // A host that does it unasked does it each time.
            assert!(!refused.kind().is_transient());
        }
        let whole = gzip(b"a picture");
        assert_eq!(decode("gzip", b"not gzip at all", 100).await, failure(HostFailure::Body));
        for n_bytes in [5, 12, whole.len() - 6, whole.len() - 1] {
            assert_eq!(decode("gzip", &whole[..n_bytes], 100).await, failure(HostFailure::Body), "{n_bytes}");
        }
        let mut wrong_sum = whole;
        let n = wrong_sum.len();
        wrong_sum[n - 8] ^= 1;
        assert_eq!(decode("gzip", &wrong_sum, 100).await, failure(HostFailure::Body));
    }

    #[tokio::test]
    async fn the_cap_holds_for_what_comes_out() {
        let bomb = gzip(&vec![0; 10 << 20]);
        assert!(bomb.len() < 20_000);
        let too_large = |limit| Err(FetchError::TooLarge { host: Some("a.example".into()), limit });
        assert_eq!(decode("gzip", &bomb, 1 << 20).await, too_large(1 << 20));
        assert_eq!(decode("gzip", &bomb, (10 << 20) - 1).await, too_large((10 << 20) - 1));
        assert_eq!(decode("gzip", &bomb, 10 << 20).await.map(|body| body.len()), Ok(10 << 20));
    }

    #[test]
    fn a_short_stall_is_no_fault() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(1000, start);
        pace.add(2000);
        assert!(pace.is_kept(at(100)));
        assert!(pace.is_kept(at(1999)) && pace.is_kept(at(2000)), "a stall of 1.9 s after a good start");
        pace.add(1999);
        assert!(pace.is_kept(at(3999)) && !pace.is_kept(at(4000)), "one byte too few in the second window");
        let mut unlimited = Pace::new(0, start);
        assert!(unlimited.is_kept(at(60_000)));
    }
}
