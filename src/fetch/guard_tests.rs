//! What a download may reach: addresses, hosts by name, redirects, proxies.

use bytes::Bytes;

use super::super::test_server::{Reply, TestServer, config, get, get_with, kind, loopback};
use super::super::{FetchError, HostFailure};
use super::*;
use crate::domain::ItemErrorKind::*;

#[tokio::test]
async fn checks_every_hop() {
    let other = TestServer::start(|_| Reply::ok("secret")).await;
    let port = other.address.port();
    let server = TestServer::start(move |path| match path {
        "/loopback" => Reply::redirect(302, &format!("http://127.0.0.2:{port}/")),
        "/decimal" => Reply::redirect(302, &format!("http://2130706434:{port}/")),
        "/private" => Reply::redirect(302, "//10.0.0.1/"),
        "/v6" => Reply::redirect(302, &format!("http://[::1]:{port}/")),
        "/file" => Reply::redirect(302, "file:///etc/passwd"),
        "/credentials" => Reply::redirect(302, &format!("http://a:b@127.0.0.1:{port}/")),
        "/bad" => Reply::redirect(302, "http://"),
        _ => Reply::status(302, "", ""),
    })
    .await;
    for path in ["/loopback", "/decimal", "/private", "/v6"] {
        assert_eq!(kind(get(&server.url(path)).await), BlockedAddress, "{path}");
    }
    for path in ["/file", "/credentials", "/bad", "/nowhere"] {
        let failure = HostFailure::Location;
        let expected = FetchError::Host { host: server.address.to_string(), failure };
        assert_eq!(get(&server.url(path)).await, Err(expected), "{path}");
    }
    assert_eq!(other.n_requests(), 0);
}

#[tokio::test]
async fn private_addresses_are_closed_however_they_are_written() {
    let server = TestServer::start(|_| Reply::ok("secret")).await;
    let port = server.address.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "localhost",
        "LOCALHOST",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "10.0.0.1",
        "169.254.169.254",
        "[fd00::1]",
    ] {
        let result = get_with(config(), &format!("http://{host}:{port}/a.png")).await;
        assert_eq!(kind(result), BlockedAddress, "{host}");
    }
    assert_eq!(server.n_requests(), 0);
}

#[tokio::test]
async fn a_name_is_judged_by_its_addresses() {
    let server = TestServer::start(|_| Reply::ok("picture")).await;
    let url = format!("http://localhost:{}/a.png", server.address.port());
    assert_eq!(get(&url).await, Ok(Bytes::from_static(b"picture")));
    let elsewhere = FetchConfig { allow_networks: vec!["127.0.0.2/32".parse().unwrap()], ..config() };
    let error = get_with(elsewhere, &url).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`localhost:{}` is not at a global address; list its network in `fetch.allow_networks` to allow it",
            server.address.port()
        )
    );
}
