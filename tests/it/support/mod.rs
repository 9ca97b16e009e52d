//! The service in one line, so that a test reads as request, then answer.

mod actix_server;
mod binary;
#[cfg(feature = "torch")]
mod bucket_server;
#[cfg(feature = "torch")]
mod collector;
mod hub_server;
mod machine;
mod picture_server;
mod raw_server;
mod slow;

use std::{net::SocketAddr, thread, time::Duration};

use reqwest::{Client, header::CONTENT_TYPE};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use sidelens::{
    app::{self, AppError, Foundation},
    config::{Config, DEFAULT_TOML},
    runtime::{LoadedModel, stub::stub_model},
};
use tokio::sync::oneshot;

pub use binary::{Running, decode_worker, sidelens};
#[cfg(feature = "torch")]
pub use bucket_server::BucketServer;
#[cfg(feature = "torch")]
pub use collector::{Collector, attributes};
pub use hub_server::{COMMIT, Faults, HubServer, SIGNATURE, TOKEN};
pub use machine::{Machine, directory, refusal};
pub use picture_server::PictureServer;
pub use raw_server::{closed_address, respond, server};
pub use slow::slow_model;

/// Components of the stub's vectors.
pub const STUB_DIMENSIONS: usize = 8;

/// A service of its own on a free port, with its own threads; stops when dropped.
pub struct TestApp {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    url: String,
    /// Opens a new connection for each request, as Meilisearch does.
    pub client: Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<Result<(), AppError>>>,
}

impl TestApp {
    /// The stub model, warmed up; `tweak` changes the default settings.
    pub async fn spawn(tweak: impl FnOnce(&mut Config)) -> Self {
        Self::spawn_with(stub_model(STUB_DIMENSIONS), tweak).await
    }

    /// Any model, warmed up; `tweak` changes the default settings.
    pub async fn spawn_with(model: LoadedModel, tweak: impl FnOnce(&mut Config)) -> Self {
        Self::spawn_many(vec![model], tweak).await
    }

    /// Several models, the default first; `tweak` lists as many in `models`.
    pub async fn spawn_many(models: Vec<LoadedModel>, tweak: impl FnOnce(&mut Config)) -> Self {
        Self::spawn_for(client(), models, tweak).await
    }

    /// The stub model behind TLS, asked by a client that trusts `root`.
    pub async fn spawn_tls(root: CertificateDer<'static>, tweak: impl FnOnce(&mut Config)) -> Self {
        Self::spawn_for(client_trusting(Some(root)), vec![stub_model(STUB_DIMENSIONS)], tweak).await
    }

    /// Any model, still to be warmed up; `tweak` changes the default settings.
    pub async fn spawn_cold(model: LoadedModel, tweak: impl FnOnce(&mut Config)) -> Self {
        Self::start(client(), vec![model], tweak).await
    }

    async fn spawn_for(client: Client, models: Vec<LoadedModel>, tweak: impl FnOnce(&mut Config)) -> Self {
        let app = Self::start(client, models, tweak).await;
        app.wait_until("it is ready", async || app.get("/ready").await.0 == 200).await;
        app
    }

    async fn start(client: Client, models: Vec<LoadedModel>, tweak: impl FnOnce(&mut Config)) -> Self {
        let mut config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are valid");
        config.server.listen = "127.0.0.1:0".parse().expect("an address");
        config.server.workers = 2;
        tweak(&mut config);
        config.validate().expect("the tweaked settings are valid");

        let (started, start) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome = runtime.block_on(async {
                let listener = app::bind(&config.server)?.listen()?;
                let app = Foundation::lay(config, decode_worker)?.build(models, listener)?;
                // Whoever asked is gone: then the other channel is closed as well.
                let _gone = started.send((app.address(), app.admin_address(), app.url()));
                app.run_until_stopped(async { _ = stopped.await }).await
            });
            runtime.shutdown_background();
            outcome
        });
        let (address, admin_address, url) = start.await.expect("the app is built");
        Self { address, admin_address, url, client, stop: Some(stop), thread: Some(thread) }
    }

    /// The address of a route of this service.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// The address of a route of its second listener.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin_address.expect("`server.admin_listen` is set"))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Posts JSON; returns the status, and the body as JSON or else as a string.
    pub async fn post(&self, path: &str, body: impl Into<String>) -> (u16, Value) {
        let request = self.client.post(self.url(path)).header(CONTENT_TYPE, "application/json");
        answer(request.body(body.into())).await
    }

    /// Gets; returns the status, and the body as JSON or else as a string.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.client.get(self.url(path))).await
    }

    /// The value of one series of `/metrics`, written as there: `sidelens_queue_depth`.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, body) = self.get("/metrics").await;
        let text = body.as_str().expect("text").to_string();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series} in\n{text}")).parse().expect("a number")
    }

    /// Waits for something that happens on other threads, for up to 20 s.
    pub async fn wait_until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        for _ in 0..4000 {
            if condition().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("waited 20 s, in vain, until {what}");
    }

    /// Begins a graceful stop, and returns at once; see [`ended`](Self::ended).
    pub fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The app may have ended by itself.
            let _ended = stop.send(());
        }
    }

    /// Waits for the service to end, by itself or by an earlier [`begin_stop`](Self::begin_stop).
    pub async fn ended(&mut self) -> Result<(), AppError> {
        let thread = self.thread.take().expect("ended only once");
        tokio::task::spawn_blocking(|| thread.join()).await.expect("joined").expect("the app does not panic")
    }
}

/// A client with a new connection for each request.
pub fn client() -> Client {
    client_trusting(None)
}

/// A client with a new connection for each request, for HTTPS too if there is a root to trust.
fn client_trusting(root: Option<CertificateDer<'static>>) -> Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(root);
    // reqwest asks for a provider even where only plain HTTP is spoken.
    let mut tls =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
    // Each connection is to show the certificate anew.
    tls.resumption = rustls::client::Resumption::disabled();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .tls_info(true)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(60))
        .build()
        .expect("a client")
}

/// Sends; returns the status, and the body as JSON or else as a string.
pub async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("the service answers");
    let status = response.status().as_u16();
    let body = response.text().await.expect("a whole body");
    let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
    (status, body)
}

/// Prints a line although the test passes: cargo captures what the print macros write.
pub fn say(line: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{line}").expect("stderr is open");
}
