//! Downloads from a host on loopback: answers, faults, budgets.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::super::test_server::{Reply, TestServer, get, get_with, kind, loopback};
use super::super::{FetchError, Fetcher, HostFailure};
use super::guard_tests::{FakeNames, ask, downloads};
use crate::config::{FetchConfig, FetchHost};
use crate::domain::ItemErrorKind::*;
use crate::domain::{ImageSource, Lane};
use crate::telemetry::Metrics;

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
    // Nothing of whoever asked for the picture is passed on.
    let mut names: Vec<_> = head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "accept-encoding", "host", "user-agent"]);
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
        (206, HostError),
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
async fn counts_bytes_by_header_and_on_the_stream() {
    let server = TestServer::start(|path| match path {
        "/fits" => Reply::ok("12345678"),
        "/header" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").then_hold(),
        "/nothing" => {
            let mut empty = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            empty.flush().unwrap();
            let head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n";
            Reply::raw([&head[..], &empty.finish().unwrap()].concat()).then_hold()
        }
        "/absurd" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775807\r\n\r\n"),
        "/chunked" => {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n4\r\n6789\r\n")
                .then_hold()
        }
        "/endless-chunks" => {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").then_drip("1\r\nx\r\n")
        }
        _ => Reply::raw("HTTP/1.1 200 OK\r\n\r\n").then_drip("x"),
    })
    .await;
    let small = FetchConfig { max_bytes: 8, ..loopback() };
    assert_eq!(get_with(small.clone(), &server.url("/fits")).await, Ok(Bytes::from_static(b"12345678")));
    for path in ["/header", "/nothing", "/absurd", "/chunked", "/endless-chunks", "/endless"] {
        let expected = FetchError::TooLarge { host: Some(server.address.to_string()), limit: 8 };
        assert_eq!(get_with(small.clone(), &server.url(path)).await, Err(expected), "{path}");
    }
}

#[tokio::test]
async fn one_clock_runs_over_all_hops_and_the_body() {
    let server = TestServer::start(|path| match path {
        "/silent" => Reply::raw("").then_hold(),
        "/drip" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").then_drip("x"),
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
    let fetcher =
        Fetcher::new(&FetchConfig { max_concurrent: 1, timeout_ms: 500, ..loopback() }, Metrics::new())
            .unwrap();
    let started = std::time::Instant::now();
    let fetch = |path: &str| fetcher.fetch(ImageSource::Url(server.url(path)));
    let (a, b, c) = tokio::join!(fetch("/a"), fetch("/b"), fetch("/c"));
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?} {b:?} {c:?}");
    assert!(started.elapsed() >= Duration::from_millis(600), "only one at a time");
}

#[tokio::test]
async fn a_search_does_not_wait_behind_bulk() {
    let server = TestServer::start(|path| match path {
        "/search" | "/both" => Reply::ok("picture"),
        _ => Reply::raw("").then_hold(),
    })
    .await;
    let config = FetchConfig {
        max_concurrent: 2,
        max_concurrent_per_host: 2,
        timeout_ms: 60_000,
        first_byte_timeout_ms: 60_000,
        ..loopback()
    };
    let fetcher = Fetcher::new(&config, Metrics::new()).unwrap();
    let ask = |path: &str, lane| {
        let (fetcher, source) = (fetcher.clone(), ImageSource::Url(server.url(path)));
        async move { fetcher.fetch_unless_held(source, None, lane).await }
    };
    let bulk = ["/1", "/2", "/3", "/both"].map(|path| tokio::spawn(ask(path, Lane::Bulk)));
    while server.n_requests() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Nor for a download that bulk has asked for, too.
    for path in ["/search", "/both"] {
        let fetched = tokio::time::timeout(Duration::from_secs(20), ask(path, Lane::Search)).await;
        assert!(fetched.expect("a place of its own").is_ok(), "{path}");
    }
    assert!(bulk.iter().all(|task| !task.is_finished()));
}

#[tokio::test]
async fn no_more_is_fetched_than_may_wait_to_be_decoded() {
    const PICTURES: usize = 12;
    let picture = "x".repeat(1 << 20);
    let server = TestServer::start(move |_| Reply::ok(&picture)).await;
    let config = FetchConfig { max_inflight_bytes: 4 << 20, ..loopback() };
    let fetcher = Fetcher::new(&config, Metrics::new()).unwrap();
    let ask = |i: usize, lane| {
        let (fetcher, source) = (fetcher.clone(), ImageSource::Url(server.url(&format!("/{i}"))));
        async move { fetcher.fetch_unless_held(source, None, lane).await.unwrap() }
    };
    let mut bulk: FuturesUnordered<_> = (0..PICTURES).map(|i| tokio::spawn(ask(i, Lane::Bulk))).collect();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(bulk.next().await.unwrap().unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(300), bulk.next()).await.is_err());
    assert_eq!(server.n_requests(), 4, "the others are not even begun");
    drop(tokio::time::timeout(Duration::from_secs(20), ask(PICTURES, Lane::Search)).await.expect("a search"));
    // Once they are decoded.
    waiting.clear();
    assert_eq!(bulk.count().await, PICTURES - 4);
}

#[tokio::test]
async fn tells_how_a_host_failed() {
    let server = TestServer::start(|path| match path {
        "/short" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"),
        "/cut" => Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n123"),
        "/204" => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        "/nothing" => Reply::raw(""),
        _ => Reply::raw("220 mail.example ESMTP\r\n"),
    })
    .await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, expected) in [
        (server.url("/short"), HostFailure::Body),
        (server.url("/cut"), HostFailure::Body),
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

/// As in a bucket or a directory: the file is there, and is none that its host would mend by itself.
#[tokio::test]
async fn a_file_without_bytes_is_an_empty_picture() {
    let server = TestServer::start(|path| match path {
        "/chunked" => Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        "/closed" => Reply::raw("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"),
        // As an object store has it that was told so of each upload.
        "/gzip" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n"),
        _ => Reply::ok(""),
    })
    .await;
    for path in ["/empty", "/chunked", "/closed", "/gzip"] {
        let error = get(&server.url(path)).await.unwrap_err();
        assert_eq!(error, FetchError::NoBytes { host: server.address.to_string() }, "{path}");
    }
}

#[tokio::test]
async fn refuses_urls_that_cannot_be_fetched() {
    let long_host = format!("http://{}/", "a.".repeat(200));
    let long_path = format!("http://127.0.0.1:9/{}", "a".repeat(70_000));
    for url in ["a.png", "/a.png", "http://", "http:///", "http://a b/", "http://[::1", "http://127.0.0.256/"]
        .into_iter()
        .chain([
            "ftp://127.0.0.1/a.png",
            "http://[fe80::1%25eth0]/",
            "http://[fe80::1%eth0]/",
            "http://[::1%lo]/",
            "http://1.2.3.4.5/",
            "http://0x1ffffffff/",
            "http://u:p@127.0.0.1/",
            "http://u@127.0.0.1/",
        ])
        .chain([long_host.as_str(), long_path.as_str()])
    {
        assert_eq!(kind(get(url).await), InvalidUrl, "{url:.80}");
    }
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_messages_nor_logs_show_paths_queries_or_credentials() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // The test's runtime has one thread, so that all that is logged passes here.
    let _logging = tracing::subscriber::set_default(subscriber);
    let server = TestServer::start(|path| match path.split('?').next() {
        Some("/secret/short") => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"),
        Some("/secret/moved") => Reply::redirect(302, "http://10.0.0.1/secret?token=secret"),
        Some("/secret/keyed") => Reply::redirect(302, "http://secret:secret@127.0.0.1/secret"),
        _ => Reply::status(403, "", "secret"),
    })
    .await;
    let headers = [("X-Key".to_owned(), "secret".into())].into();
    let hosts = vec![FetchHost { host: "127.0.0.1".parse().unwrap(), headers, plain_http: true }];
    for url in [
        server.url("/secret/short?token=secret"),
        server.url("/secret/moved?token=secret"),
        server.url("/secret/keyed?token=secret"),
        server.url("/secret/a.png?token=secret"),
        "http://secret:secret@127.0.0.1/secret".to_owned(),
        "http://127.0.0.2/secret?token=secret".to_owned(),
    ] {
        let error = get_with(FetchConfig { hosts: hosts.clone(), ..loopback() }, &url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    let heads = server.heads.lock().unwrap().concat();
    assert!(heads.contains("x-key: secret"), "{heads}");
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("a picture's host failed") && !logged.contains("secret"), "{logged}");
}

#[tokio::test]
async fn dropping_the_future_closes_the_connection_and_frees_the_permit() {
    let server = TestServer::start(|path| match path {
        "/hold" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345").then_hold(),
        _ => Reply::ok("picture"),
    })
    .await;
    let fetcher = Fetcher::new(&FetchConfig { max_concurrent: 1, ..loopback() }, Metrics::new()).unwrap();
    let held = ImageSource::Url(server.url("/hold"));
    let task = tokio::spawn({
        let fetcher = fetcher.clone();
        async move { fetcher.fetch(held).await }
    });
    server.asked.notified().await;
    task.abort();
    let left = tokio::time::timeout(Duration::from_secs(5), server.left.acquire()).await;
    left.expect("the client left").unwrap().forget();
    assert!(fetcher.fetch(ImageSource::Url(server.url("/"))).await.is_ok());
}

#[tokio::test]
async fn connections_that_nobody_needs_are_closed_soon() {
    const HOSTS: u32 = 20;
    let server = TestServer::start(|_| Reply::ok("picture").then_hold()).await;
    let downloads = downloads(&loopback(), FakeNames::new(&[&["127.0.0.1"]]));
    for i in 0..HOSTS {
        let url = format!("http://h{i}.example:{}/", server.address.port());
        assert_eq!(ask(&downloads, &url).await, Ok(Bytes::from_static(b"picture")));
    }
    // Nothing is under way that the leap could make late.
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(20)).await;
    tokio::time::resume();
    let left = tokio::time::timeout(Duration::from_secs(10), server.left.acquire_many(HOSTS)).await;
    assert!(left.is_ok(), "{} of {HOSTS} are closed", server.left.available_permits());
}

#[tokio::test]
async fn a_host_that_stays_silent_is_left_early() {
    let server = TestServer::start(|path| match path {
        "/moved" => Reply::redirect(302, "/silent"),
        _ => Reply::raw("").then_hold(),
    })
    .await;
    let hasty = FetchConfig { first_byte_timeout_ms: 200, ..loopback() };
    for path in ["/silent", "/moved"] {
        let expected = FetchError::FirstByteTimeout { host: server.address.to_string(), limit_ms: 200 };
        assert_eq!(expected.kind(), Timeout);
        assert_eq!(get_with(hasty.clone(), &server.url(path)).await, Err(expected), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
    let server = TestServer::start(move |path| match path {
        "/drip" => Reply::raw(head).then_drip("x"),
        _ => Reply::raw(head).then_hold(),
    })
    .await;
    let (drip, stall) = (server.url("/drip"), server.url("/stall"));
    for result in <[_; 2]>::from(tokio::join!(get(&drip), get(&stall))) {
        let expected = FetchError::Slow { host: server.address.to_string(), limit: 1024 };
        assert_eq!(expected.kind(), Timeout);
        assert_eq!(result, Err(expected));
    }
}

#[tokio::test]
async fn what_comes_after_the_announced_length_is_nobodys_answer() {
    let server = TestServer::start(|path| match path {
        "/long" => Reply::raw(
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\npictureHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
        )
        .then_hold(),
        "/two" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 7\r\ncontent-length: 8\r\n\r\npicture!"),
        _ => Reply::ok("honest"),
    })
    .await;
    let fetcher = Fetcher::new(&loopback(), Metrics::new()).unwrap();
    let ask = |path: &str| fetcher.fetch(ImageSource::Url(server.url(path)));
    assert_eq!(ask("/long").await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(ask("/next").await, Ok(Bytes::from_static(b"honest")));
    let failure = HostFailure::Answer;
    assert_eq!(ask("/two").await, Err(FetchError::Host { host: server.address.to_string(), failure }));
}

#[tokio::test]
async fn unpacks_what_was_compressed_unasked() {
    let gzip = |body: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    let answer = |head: &str, body: &[u8]| Reply::raw([head.as_bytes(), b"\r\n\r\n", body].concat());
    let (picture, bomb) = (gzip(b"picture"), gzip(&vec![0; 30 << 20]));
    assert!(bomb.len() < 40_000);
    let server = TestServer::start(move |path| {
        let head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip";
        match path {
            "/picture" => answer(head, &picture),
            "/short" => answer(&format!("{head}\r\ncontent-length: 9"), &picture),
            "/bomb" => answer(head, &bomb),
            "/br" => answer("HTTP/1.1 200 OK\r\ncontent-encoding: br", b"picture"),
            _ => answer(head, b"picture"),
        }
    })
    .await;
    assert_eq!(get(&server.url("/picture")).await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(kind(get(&server.url("/bomb")).await), TooLarge);
    let host = || server.address.to_string();
    for path in ["/short", "/plain"] {
        let expected = FetchError::Host { host: host(), failure: HostFailure::Body };
        assert_eq!(get(&server.url(path)).await, Err(expected), "{path}");
    }
    assert_eq!(get(&server.url("/br")).await, Err(FetchError::Encoding { host: host() }));
}

#[tokio::test]
async fn relative_paths_are_below_the_base() {
    let server = TestServer::start(|path| match path {
        "/shop/images/a.png?b" => Reply::ok("picture"),
        "/b.png" => Reply::ok("other"),
        _ => Reply::status(404, "", ""),
    })
    .await;
    let based = FetchConfig { base_url: server.url("/shop/images"), ..loopback() };
    assert_eq!(get_with(based.clone(), "a.png?b").await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(get_with(based.clone(), "./x/../a.png?b").await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(get_with(based.clone(), "/b.png").await, Ok(Bytes::from_static(b"other")));
    assert_eq!(get_with(based.clone(), &server.url("/b.png")).await, Ok(Bytes::from_static(b"other")));
    assert_eq!(kind(get_with(based.clone(), "//10.0.0.1/a.png").await), BlockedAddress);
    assert_eq!(kind(get_with(based, "file:///etc/passwd").await), BlockedAddress);
    assert_eq!(kind(get("a.png").await), InvalidUrl);
}

/// Runs `downloads_a_picture` in a process whose environment names a proxy that is not there.
#[test]
fn proxies_of_the_environment_are_ignored() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "fetch::http::tests::downloads_a_picture"]);
    for variable in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(variable, "http://127.0.0.1:9");
    }
    let output = command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
