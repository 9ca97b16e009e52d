//! How the collector is reached: by an HTTP client with a runtime of its own, on the thread that exports.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, redirect};
use rustls::pki_types::{CertificateDer, pem, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::runtime::{self, Runtime};

use crate::{config::TracesConfig, domain::root_cause};

/// Why the collector cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The certificates cannot be read.
    #[error("`traces.ca_file` {file} cannot be used: {source}; it needs certificates in PEM")]
    CaFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The certificates are none that can be trusted.
    #[error("cannot set up tls for the collector of traces: {0}")]
    Tls(#[from] rustls::Error),
    /// The client refuses its settings.
    #[error("cannot set up the client for the collector of traces: {0}")]
    Client(#[from] reqwest::Error),
    /// The operating system gave no runtime.
    #[error("cannot set up the runtime for the collector of traces: {0}")]
    Runtime(#[from] std::io::Error),
}

/// The client, and what drives it.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client,
    runtime: Runtime,
}

impl Collector {
    pub fn new(config: &TracesConfig) -> Result<Self, CollectorError> {
        let timeout = Duration::from_millis(config.timeout_ms);
        let client = Client::builder()
            .user_agent(concat!("sidelens/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers(config))
            .redirect(redirect::Policy::none())
            .no_proxy()
            // Between two exports nothing drives the client, so that a connection would die unseen.
            .pool_max_idle_per_host(0)
            .timeout(timeout)
            .tls_backend_preconfigured(tls_config(&config.ca_file)?)
            .build()?;
        Ok(Self { client, runtime: runtime::Builder::new_current_thread().enable_all().build()? })
    }
}

#[async_trait]
impl HttpClient for Collector {
    /// Blocks the thread, which is the exporter's own.
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // Beside the type of the body there are those of OTEL_EXPORTER_OTLP_HEADERS, which are not ours.
        let content_type = request.headers_mut().remove(CONTENT_TYPE);
        request.headers_mut().clear();
        request.headers_mut().extend(content_type.map(|value| (CONTENT_TYPE, value)));
        self.runtime.block_on(self.client.send_bytes(request)).inspect_err(|error| {
            let cause = root_cause(error.as_ref());
            tracing::debug!(%error, %cause, "the collector of traces gave no answer");
        })
    }
}

fn headers(config: &TracesConfig) -> HeaderMap {
    let headers = config.headers.iter().filter_map(|(name, value)| {
        let mut value = HeaderValue::from_str(value.expose()).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    });
    headers.collect()
}

/// TLS by ring, trusting the certificates of `ca_file` or else Mozilla's roots.
fn tls_config(ca_file: &str) -> Result<ClientConfig, CollectorError> {
    let mut roots = RootCertStore::empty();
    if ca_file.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    } else {
        let unusable = |source| CollectorError::CaFile { file: ca_file.to_owned(), source };
        let certificates = CertificateDer::pem_file_iter(ca_file).map_err(unusable)?;
        for certificate in certificates {
            roots.add(certificate.map_err(unusable)?)?;
        }
        if roots.is_empty() {
            return Err(unusable(pem::Error::NoItemsFound));
        }
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
