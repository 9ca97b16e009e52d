//! `sidelens healthcheck`: whether the service with these settings, on this machine, is ready. For containers, which
//! have no shell and no curl to ask with. Where there is an admin listener it is asked, as it waits behind no caller.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::{Client, StatusCode};

use super::ConfigArgs;
use crate::{
    config::{ConfigError, ServerConfig},
    load::Failure,
};

/// A ready service answers at once. The image's health check allows ten seconds, most of them for loading libtorch.
const TIMEOUT: Duration = Duration::from_millis(2500);

/// Why the service does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum HealthcheckError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody knows which one it is.
    #[error("`{key}` is {address}, whose port is picked at the start; give it a fixed one")]
    AnyPort {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// No runtime, or no client.
    #[error("cannot ask: {0}")]
    Client(String),
    /// No answer.
    #[error("no answer from {address}, where the service is by these settings: {cause}")]
    NoAnswer {
        /// Who was asked.
        address: SocketAddr,
        /// What went wrong.
        cause: String,
    },
    /// It says so.
    #[error("{address} answered {status}: the model is loading, or its device is lost")]
    NotReady {
        /// Who was asked.
        address: SocketAddr,
        /// What it answered to `/ready`.
        status: StatusCode,
    },
}

/// Asks `/ready`.
pub(super) fn run(args: &ConfigArgs) -> Result<(), HealthcheckError> {
    let ServerConfig { listen, admin_listen, tls_cert, .. } = args.load()?.server;
    let (key, listens) = match admin_listen {
        Some(admin_listen) => ("server.admin_listen", admin_listen),
        None => ("server.listen", listen),
    };
    let address = loopback(listens).ok_or(HealthcheckError::AnyPort { key, address: listens })?;
    let scheme = if tls_cert.is_some() { "https" } else { "http" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| HealthcheckError::Client(error.to_string()))?;
    let status = runtime.block_on(async {
        let client = client()?;
        let answer = client.get(format!("{scheme}://{address}/ready")).send().await;
        answer.map(|answer| answer.status()).map_err(|error| {
            let cause = match Failure::from(error) {
                Failure::Timeout => format!("none within {} s", TIMEOUT.as_secs_f64()),
                failure => failure.to_string(),
            };
            HealthcheckError::NoAnswer { address, cause }
        })
    })?;
    if status.is_success() { Ok(()) } else { Err(HealthcheckError::NotReady { address, status }) }
}

/// A client that asks this machine only, so that there is nobody to impersonate: the certificate is for another name.
fn client() -> Result<Client, HealthcheckError> {
    // Fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .tls_danger_accept_invalid_certs(true)
        .build()
        .map_err(|error| HealthcheckError::Client(error.to_string()))
}

/// Where a service that listens on `address` is reached from its own machine.
fn loopback(address: SocketAddr) -> Option<SocketAddr> {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    (address.port() != 0).then(|| SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reached_from_this_machine() {
        let check = |listen: &str, expected: Option<&str>| {
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(loopback(listen.parse().unwrap()), expected, "{listen}");
        };
        check("0.0.0.0:7800", Some("127.0.0.1:7800"));
        check("[::]:7800", Some("[::1]:7800"));
        check("10.1.2.3:7800", Some("10.1.2.3:7800"));
        check("127.0.0.1:0", None);
    }
}
