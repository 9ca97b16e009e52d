//! The HTTP client: what it asks for, what it trusts, and that it does nothing by itself.

use std::sync::Arc;
use std::time::Duration;

use object_store::ClientConfigKey;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, NoProxy, Proxy, redirect};

use super::FetchSetupError;
use super::resolve::GuardedNames;
use crate::config::{BucketConfig, FetchConfig};

/// What `imaging` reads, but for AVIF, which takes longer to decode: a host with a choice is to pick another.
const FORMATS: &str =
    "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, image/*;q=0.5, */*;q=0.1";

/// For so long a connection waits for another picture of its host, and up to twice as long where nobody asks. Pictures of
/// one host come one after another; of many hosts each would leave a connection, and so a descriptor, behind.
const IDLE: Duration = Duration::from_secs(5);

/// Who tells a bucket's client its credentials: services of the machine or pod, which no proxy reaches.
const IDENTITY: &str = "169.254.0.0/16,fd00:ec2::/32,metadata.google.internal,localhost,127.0.0.0/8,::1";

/// What every client of this room has in common.
fn builder(config: &FetchConfig) -> Result<ClientBuilder, FetchSetupError> {
    Ok(Client::builder()
        .user_agent(concat!("sidelens/", env!("CARGO_PKG_VERSION")))
        // A redirect is checked before it is followed, and an object store that moves is a matter for the settings.
        .redirect(redirect::Policy::none())
        .referer(false)
        // One of the environment would dial for us, past the guard.
        .no_proxy()
        .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
        .pool_idle_timeout(IDLE)
        .tls_backend_preconfigured(tls_config()?))
}

/// The client for downloads.
pub(super) fn client(config: &FetchConfig, names: GuardedNames) -> Result<Client, FetchSetupError> {
    let builder = builder(config)?
        .default_headers(HeaderMap::from_iter([
            (ACCEPT, HeaderValue::from_static(FORMATS)),
            // Pictures are compressed already.
            (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        ]))
        // Redirects may lead more to a host than have their place there.
        .pool_max_idle_per_host(config.max_concurrent_per_host)
        .dns_resolver(names);
    Ok(proxied(builder, config, None)?.build()?)
}

/// What the client of a bucket begins with.
pub(super) fn for_bucket(
    config: &FetchConfig,
    bucket: &BucketConfig,
) -> Result<ClientBuilder, FetchSetupError> {
    if let Some(option) = bucket.options.keys().find(|option| is_of_client(option)) {
        let bucket = bucket.url.bucket_url();
        return Err(FetchSetupError::ClientOption { bucket, option: option.clone() });
    }
    let builder = builder(config)?;
    match bucket.through_proxy {
        true => proxied(builder, config, NoProxy::from_string(IDENTITY)),
        false => Ok(builder),
    }
}

/// Whether an option of a bucket is meant for the client that `object_store` would make. It keeps the type of what is
/// written among these, but heeds it itself.
fn is_of_client(option: &str) -> bool {
    let name = ["aws_", "google_", "azure_"].iter().find_map(|prefix| option.strip_prefix(prefix));
    let key = name.unwrap_or(option).parse::<ClientConfigKey>();
    key.is_ok_and(|key| key != ClientConfigKey::DefaultContentType)
}

/// Has the proxy dial, if there is one, but for those who are to be dialled directly.
fn proxied(
    builder: ClientBuilder,
    config: &FetchConfig,
    direct: Option<NoProxy>,
) -> Result<ClientBuilder, FetchSetupError> {
    let Some(url) = proxy_url(config)? else { return Ok(builder) };
    let limit = "is not a proxy that the client knows";
    let proxy = Proxy::all(url).map_err(|_| FetchSetupError::Setting { key: "fetch.proxy", limit })?;
    Ok(builder.proxy(proxy.no_proxy(direct)))
}

/// The address of the proxy, if there is one.
pub(super) fn proxy_url(config: &FetchConfig) -> Result<Option<url::Url>, FetchSetupError> {
    config.proxy_url().map_err(|limit| FetchSetupError::Setting { key: "fetch.proxy", limit })
}

/// TLS by ring, trusting Mozilla's roots: minimal images carry no certificate store.
fn tls_config() -> Result<rustls::ClientConfig, FetchSetupError> {
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
