//! Downloads from a host on loopback, and refusals that never dial.

use super::super::test_server::{Reply, TestServer, config};
use super::super::{Fetcher, HostFailure};
use super::*;
use crate::domain::ImageSource;
use crate::domain::ItemErrorKind::{self, *};

/// The default settings, with `127.0.0.1` (and nothing else) allowed.
fn loopback() -> FetchConfig {
    FetchConfig { allow_networks: vec!["127.0.0.1/32".parse().unwrap()], ..config() }
}

async fn get_with(config: FetchConfig, url: &str) -> Result<Bytes, FetchError> {
    Fetcher::new(&config).unwrap().fetch(ImageSource::Url(url.to_owned())).await
}

async fn get(url: &str) -> Result<Bytes, FetchError> {
    get_with(loopback(), url).await
}

fn kind(result: Result<Bytes, FetchError>) -> ItemErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn downloads_a_picture() {
    let server = TestServer::start(|_| Reply::ok("picture")).await;
    assert_eq!(get(&server.url("/a.png?b=c#d")).await, Ok(Bytes::from_static(b"picture")));
    let heads = server.heads.lock().unwrap();
    let head = heads[0].to_lowercase();
    assert!(head.starts_with("get /a.png?b=c http/1.1\r\n"), "{head}");
    for header in [concat!("user-agent: sidelens/", env!("CARGO_PKG_VERSION")), "accept-encoding: identity"] {
        assert!(head.contains(header), "{head}");
    }
}

#[tokio::test]
async fn sorts_statuses_by_what_they_mean_for_the_caller() {
    let server =
        TestServer::start(|path| Reply::status(path[1..].parse().unwrap(), "", "a page that explains")).await;
    for (status, expected) in [
        (404, NotFound),
        (410, NotFound),
        (400, Forbidden),
        (401, Forbidden),
        (403, Forbidden),
        (451, Forbidden),
        (408, HostError),
        (425, HostError),
        (429, HostError),
        (500, HostError),
        (503, HostError),
        (304, HostError),
    ] {
        assert_eq!(kind(get(&server.url(&format!("/{status}"))).await), expected, "{status}");
    }
}

#[tokio::test]
async fn follows_redirects() {
    let server = TestServer::start(|path| match path {
        "/1" => Reply::redirect(301, "2"),
        "/2" => Reply::redirect(302, "/3"),
        "/3" => Reply::redirect(303, "?4"),
        "/3?4" => Reply::redirect(307, "/5#fragment"),
        "/5" => Reply::redirect(308, "/end"),
        "/end" => Reply::ok("picture"),
        _ => Reply::redirect(302, "/loop"),
    })
    .await;
    assert_eq!(get(&server.url("/1")).await, Ok(Bytes::from_static(b"picture")));
    for head in server.heads.lock().unwrap().iter() {
        let head = head.to_lowercase();
        assert!(!head.contains("cookie:") && !head.contains("referer:"), "{head}");
    }

    let before = server.n_requests();
    let error = get(&server.url("/loop")).await.unwrap_err();
    assert_eq!(error, FetchError::Redirects { host: server.address.to_string(), limit: 5 });
    assert_eq!(error.kind(), HostError);
    assert_eq!(server.n_requests() - before, 6);

    let none = FetchConfig { max_redirects: 0, ..loopback() };
    assert_eq!(kind(get_with(none, &server.url("/5")).await), HostError);
}

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

#[test]
fn refuses_to_leave_https() {
    let hop = |from: &str, to: &str| {
        next_hop(&Url::parse(from).unwrap(), Some(&HeaderValue::from_str(to).unwrap()))
            .map(String::from)
            .map_err(|error| error.kind())
    };
    assert_eq!(hop("https://a.example/x", "http://a.example/y"), Err(BlockedAddress));
    assert_eq!(hop("https://a.example/x", "//b.example/y"), Ok("https://b.example/y".to_owned()));
    assert_eq!(hop("http://a.example/x", "https://a.example/y"), Ok("https://a.example/y".to_owned()));
}

#[tokio::test]
async fn counts_bytes_by_header_and_on_the_stream() {
    let server = TestServer::start(|path| match path {
        "/fits" => Reply::ok("12345678"),
        "/header" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").then_hold(),
        "/absurd" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775807\r\n\r\n"),
        "/chunked" => {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n4\r\n6789\r\n")
                .then_hold()
        }
        _ => Reply::raw("HTTP/1.1 200 OK\r\n\r\n").then_drip(),
    })
    .await;
    let small = FetchConfig { max_bytes: 8, ..loopback() };
    assert_eq!(get_with(small.clone(), &server.url("/fits")).await, Ok(Bytes::from_static(b"12345678")));
    for path in ["/header", "/absurd", "/chunked", "/endless"] {
        let expected = FetchError::TooLarge { host: Some(server.address.to_string()), limit: 8 };
        assert_eq!(get_with(small.clone(), &server.url(path)).await, Err(expected), "{path}");
    }
}

#[tokio::test]
async fn one_clock_runs_over_all_hops_and_the_body() {
    let server = TestServer::start(|path| match path {
        "/silent" => Reply::raw("").then_hold(),
        "/drip" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").then_drip(),
        _ => Reply::redirect(302, "/hops").after_ms(120),
    })
    .await;
    let hasty = FetchConfig { timeout_ms: 300, ..loopback() };
    for path in ["/silent", "/drip", "/hops"] {
        let expected = FetchError::Timeout { host: server.address.to_string(), limit_ms: 300 };
        assert_eq!(get_with(hasty.clone(), &server.url(path)).await, Err(expected), "{path}");
    }
}

#[tokio::test]
async fn a_wait_for_a_permit_does_not_run_the_clock() {
    let server = TestServer::start(|_| Reply::ok("picture").after_ms(200)).await;
    let fetcher = Fetcher::new(&FetchConfig { max_concurrent: 1, timeout_ms: 500, ..loopback() }).unwrap();
    let source = ImageSource::Url(server.url("/"));
    let started = std::time::Instant::now();
    let fetch = || fetcher.fetch(source.clone());
    let (a, b, c) = tokio::join!(fetch(), fetch(), fetch());
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?} {b:?} {c:?}");
    assert!(started.elapsed() >= Duration::from_millis(600), "only one at a time");
}

#[tokio::test]
async fn tells_how_a_host_failed() {
    let server = TestServer::start(|path| match path {
        "/short" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"),
        "/cut" => Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n123"),
        "/empty" => Reply::ok(""),
        "/204" => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "/nothing" => Reply::raw(""),
        _ => Reply::raw("220 mail.example ESMTP\r\n"),
    })
    .await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, expected) in [
        (server.url("/short"), HostFailure::Body),
        (server.url("/cut"), HostFailure::Body),
        (server.url("/empty"), HostFailure::EmptyBody),
        (server.url("/204"), HostFailure::EmptyBody),
        (server.url("/nothing"), HostFailure::Answer),
        (server.url("/smtp"), HostFailure::Answer),
        (format!("https://{}/", server.address), HostFailure::Tls),
        (format!("http://{free}/"), HostFailure::Connect),
        // A label too long for DNS: the name fails without a query leaving the machine.
        (format!("http://{}.invalid/", "a".repeat(64)), HostFailure::Name),
    ] {
        match get(&url).await {
            Err(FetchError::Host { failure, .. }) => assert_eq!(failure, expected, "{url}"),
            other => panic!("{url}: {other:?}"),
        }
    }
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

#[tokio::test]
async fn refuses_urls_that_cannot_be_fetched() {
    let long_host = format!("http://{}/", "a.".repeat(200));
    let long_path = format!("http://127.0.0.1:9/{}", "a".repeat(70_000));
    for url in ["a.png", "/a.png", "http://", "http:///", "http://a b/", "http://[::1", "http://127.0.0.256/"]
        .into_iter()
        .chain(["ftp://127.0.0.1/a.png", "http://u:p@127.0.0.1/", "http://u@127.0.0.1/"])
        .chain([long_host.as_str(), long_path.as_str()])
    {
        assert_eq!(kind(get(url).await), InvalidUrl, "{url:.80}");
    }
}

#[tokio::test]
async fn messages_show_neither_path_nor_query_nor_credentials() {
    let server = TestServer::start(|path| match path.split('?').next() {
        Some("/secret/short") => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"),
        Some("/secret/moved") => Reply::redirect(302, "http://10.0.0.1/secret?token=secret"),
        _ => Reply::status(403, "", "secret"),
    })
    .await;
    for url in [
        server.url("/secret/short?token=secret"),
        server.url("/secret/moved?token=secret"),
        server.url("/secret/a.png?token=secret"),
        "http://secret:secret@127.0.0.1/secret".to_owned(),
        "http://127.0.0.2/secret?token=secret".to_owned(),
    ] {
        let error = get(&url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
}

#[tokio::test]
async fn dropping_the_future_closes_the_connection_and_frees_the_permit() {
    let server = TestServer::start(|path| match path {
        "/hold" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345").then_hold(),
        _ => Reply::ok("picture"),
    })
    .await;
    let fetcher = Fetcher::new(&FetchConfig { max_concurrent: 1, ..loopback() }).unwrap();
    let held = ImageSource::Url(server.url("/hold"));
    let task = tokio::spawn({
        let fetcher = fetcher.clone();
        async move { fetcher.fetch(held).await }
    });
    server.asked.notified().await;
    task.abort();
    tokio::time::timeout(Duration::from_secs(5), server.left.notified()).await.expect("the client left");
    assert!(fetcher.fetch(ImageSource::Url(server.url("/"))).await.is_ok());
}
