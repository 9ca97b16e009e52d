//! A host of pictures on loopback that misbehaves on request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use super::{FetchError, Fetcher};
use crate::config::{Config, DEFAULT_TOML, FetchConfig};
use crate::domain::{ImageSource, ItemErrorKind};
use crate::telemetry::Metrics;

/// The shipped limits, closed to all but global addresses, with timeouts that suit a test.
pub(super) fn config() -> FetchConfig {
    let defaults: Config = toml::from_str(DEFAULT_TOML).unwrap();
    FetchConfig { timeout_ms: 5000, max_concurrent_per_host: 128, ..defaults.fetch }
}

/// The same, with `127.0.0.1` (and nothing else) allowed.
pub(super) fn loopback() -> FetchConfig {
    FetchConfig { allow_networks: vec!["127.0.0.1/32".parse().unwrap()], ..config() }
}

pub(super) async fn get_with(config: FetchConfig, url: &str) -> Result<Bytes, FetchError> {
    Fetcher::new(&config, Metrics::new()).unwrap().fetch(ImageSource::Url(url.to_owned())).await
}

pub(super) async fn get(url: &str) -> Result<Bytes, FetchError> {
    get_with(loopback(), url).await
}

pub(super) fn kind(result: Result<Bytes, FetchError>) -> ItemErrorKind {
    result.unwrap_err().kind()
}

/// What the server writes before it closes the connection.
#[derive(Clone)]
pub(super) struct Reply {
    bytes: Vec<u8>,
    delay: Duration,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Close,
    Drip(&'static str),
    Hold,
}

impl Reply {
    pub(super) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), delay: Duration::ZERO, then: Then::Close }
    }

    pub(super) fn ok(body: &str) -> Self {
        Self::status(200, "", body)
    }

    pub(super) fn status(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}"))
    }

    pub(super) fn redirect(status: u16, location: &str) -> Self {
        Self::status(status, &format!("location: {location}\r\nset-cookie: a=b\r\n"), "elsewhere")
    }

    /// Waits before the first byte.
    pub(super) fn after_ms(self, ms: u64) -> Self {
        Self { delay: Duration::from_millis(ms), ..self }
    }

    /// Then sends `piece` every 50 ms, for ever.
    pub(super) fn then_drip(self, piece: &'static str) -> Self {
        Self { then: Then::Drip(piece), ..self }
    }

    /// Then waits until the client closes the connection, and notes that it did.
    pub(super) fn then_hold(self) -> Self {
        Self { then: Then::Hold, ..self }
    }
}

/// Answers each connection once.
pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    /// The head of each request, in order.
    pub(super) heads: Arc<Mutex<Vec<String>>>,
    /// Tells of each request read.
    pub(super) asked: Arc<Notify>,
    /// A permit for each connection that the client closed before the server did.
    pub(super) left: Arc<Semaphore>,
}

impl TestServer {
    /// Listens on a free port of 127.0.0.1; `reply` maps a request's path to its answer.
    pub(super) async fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        Self::by_head("127.0.0.1:0", move |head| reply(head.split(' ').nth(1).unwrap_or_default())).await
    }

    /// Listens on `address`; `reply` maps a request's head to its answer.
    pub(super) async fn by_head(
        address: &str,
        reply: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
            asked: Arc::default(),
            left: Arc::new(Semaphore::new(0)),
        };
        let (heads, asked, left) = (server.heads.clone(), server.asked.clone(), server.left.clone());
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (heads, asked, left) = (heads.clone(), asked.clone(), left.clone());
                let reply = reply.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    // A TLS client never sends an empty line; its first bytes are all that is needed.
                    while !head.ends_with(b"\r\n\r\n") && head.first() != Some(&0x16) {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let reply = reply(&head);
                    heads.lock().unwrap().push(head);
                    asked.notify_one();
                    tokio::time::sleep(reply.delay).await;
                    // The client may leave at any byte, which some tests are about.
                    let mut open = stream.write_all(&reply.bytes).await.is_ok();
                    match reply.then {
                        Then::Close => {
                            let _ = stream.shutdown().await;
                        }
                        Then::Drip(piece) => {
                            while open {
                                tokio::time::sleep(Duration::from_millis(50)).await;
                                open = stream.write_all(piece.as_bytes()).await.is_ok();
                            }
                        }
                        Then::Hold => {
                            let _ = stream.read_u8().await;
                            left.add_permits(1);
                        }
                    }
                });
            }
        });
        server
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn n_requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}
