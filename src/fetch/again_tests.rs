//! The same address again: what is remembered, what is confirmed, what is shared, what is tried twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;

use super::super::test_server::{Reply, TestServer, loopback};
use super::super::{Fetcher, HostFailure};
use super::*;
use crate::domain::ImageSource;

/// A client of a host, and what it counted.
struct Client {
    fetcher: Fetcher,
    metrics: Arc<Metrics>,
}

impl Client {
    fn new(config: &FetchConfig) -> Self {
        let metrics = Metrics::new();
        Self { fetcher: Fetcher::new(config, metrics.clone()).unwrap(), metrics }
    }

    /// As the pipeline asks: with what is remembered, as if its vector were stored.
    async fn ask(&self, url: &str) -> Result<Fetched, FetchError> {
        let source = ImageSource::Url(url.to_owned());
        let held = self.fetcher.recall(&source);
        self.fetcher.fetch_unless_held(source, held, Lane::Bulk).await
    }

    /// As the pipeline asks when the vector is not stored.
    async fn ask_holding_nothing(&self, url: &str) -> Result<Fetched, FetchError> {
        self.fetcher.fetch_unless_held(ImageSource::Url(url.to_owned()), None, Lane::Bulk).await
    }

    fn count(&self, outcome: &str) -> u64 {
        self.metrics.fetches.with_label_values(&[outcome]).get()
    }
}

fn file(body: &'static str) -> Result<Fetched, FetchError> {
    let digest = Some(ContentDigest::of(body.as_bytes()));
    Ok(Fetched::File { bytes: Bytes::from_static(body.as_bytes()), digest })
}

/// Says 304 to whoever knows `etag`.
fn tagged(head: &str, etag: &str, headers: &str, body: &str) -> Reply {
    match head.to_lowercase().contains(&format!("if-none-match: {etag}\r\n")) {
        true => Reply::status(304, headers, ""),
        false => Reply::status(200, &format!("etag: {etag}\r\n{headers}"), body),
    }
}

#[tokio::test]
async fn what_is_fresh_is_not_asked_for() {
    let server = TestServer::start(|path| match path {
        "/unsaid" => Reply::ok("picture"),
        "/no-store" => Reply::status(200, "cache-control: no-store\r\netag: \"a\"\r\n", "picture"),
        "/stale" => Reply::status(200, "cache-control: max-age=0\r\n", "picture"),
        _ => Reply::status(200, "cache-control: max-age=60\r\n", "picture"),
    })
    .await;
    let check = async |config: FetchConfig, path: &str, is_fresh: bool| {
        let client = Client::new(&config);
        let before = server.n_requests();
        assert_eq!(client.ask(&server.url(path)).await, file("picture"), "{path}");
        let again = client.ask(&server.url(&format!("{path}#again"))).await;
        assert_eq!(again, if is_fresh { Ok(Fetched::Unchanged) } else { file("picture") }, "{path}");
        assert_eq!(server.n_requests() - before, if is_fresh { 1 } else { 2 }, "{path}");
        assert_eq!((client.count("fresh"), client.count("ok")), if is_fresh { (1, 1) } else { (0, 2) });
    };
    check(loopback(), "/max-age", true).await;
    check(loopback(), "/unsaid", true).await;
    check(loopback(), "/no-store", false).await;
    check(loopback(), "/stale", false).await;
    check(FetchConfig { fresh_s: 0, ..loopback() }, "/unsaid", false).await;
    check(FetchConfig { fresh_s: 0, max_fresh_s: 0, ..loopback() }, "/max-age", false).await;
    check(FetchConfig { remembered_urls: 0, ..loopback() }, "/max-age", false).await;
}

#[tokio::test]
async fn what_is_not_held_is_downloaded_although_it_is_fresh() {
    let server = TestServer::by_head("127.0.0.1:0", |head| tagged(head, "\"a\"", "", "picture")).await;
    let client = Client::new(&loopback());
    let url = server.url("/");
    for _ in 0..2 {
        assert_eq!(client.ask_holding_nothing(&url).await, file("picture"));
    }
    let other = Some(ContentDigest::of(b"another"));
    let fetched = client.fetcher.fetch_unless_held(ImageSource::Url(url), other, Lane::Bulk).await;
    assert_eq!(fetched, file("picture"));
    assert!(server.heads.lock().unwrap().iter().all(|head| !head.to_lowercase().contains("if-")));
}

#[tokio::test]
async fn what_is_stale_is_confirmed() {
    let server = TestServer::by_head("127.0.0.1:0", |head| match head.split(' ').nth(1) {
        Some("/tag") => tagged(head, "\"a\"", "cache-control: max-age=0\r\n", "picture"),
        Some("/weak") => tagged(head, "w/\"a\"", "cache-control: no-cache\r\n", "picture"),
        _ if head.contains("if-modified-since: Sat, 21 Nov 2026 12:00:00 GMT\r\n") => {
            Reply::status(304, "", "")
        }
        _ => {
            let headers = "last-modified: Sat, 21 Nov 2026 12:00:00 GMT\r\ncache-control: max-age=0\r\n";
            Reply::status(200, headers, "picture")
        }
    })
    .await;
    for path in ["/tag", "/weak", "/date"] {
        let client = Client::new(&loopback());
        assert_eq!(client.ask(&server.url(path)).await, file("picture"), "{path}");
        for n in 1..3 {
            assert_eq!(client.ask(&server.url(path)).await, Ok(Fetched::Unchanged), "{path}");
            assert_eq!(client.count("not_modified"), n, "{path}");
        }
    }
}

#[tokio::test]
async fn a_confirmation_may_make_fresh_again_or_forget() {
    let server = TestServer::by_head("127.0.0.1:0", |head| {
        let is_known = head.to_lowercase().contains("if-none-match");
        match head.split(' ').nth(1) {
            _ if !is_known => Reply::status(200, "etag: \"a\"\r\ncache-control: no-cache\r\n", "picture"),
            Some("/fresh") => Reply::status(304, "cache-control: max-age=60\r\n", ""),
            _ => Reply::status(304, "cache-control: no-store\r\n", ""),
        }
    })
    .await;
    for (path, n_requests) in [("/fresh", 2), ("/no-store", 3)] {
        let client = Client::new(&loopback());
        let before = server.n_requests();
        client.ask(&server.url(path)).await.unwrap();
        assert_eq!(client.ask(&server.url(path)).await, Ok(Fetched::Unchanged), "{path}");
        client.ask(&server.url(path)).await.unwrap();
        assert_eq!(server.n_requests() - before, n_requests, "{path}");
    }
}

#[tokio::test]
async fn a_changed_picture_replaces_the_known_one() {
    let n = Arc::new(AtomicUsize::new(0));
    let server = TestServer::by_head("127.0.0.1:0", {
        let n = n.clone();
        move |head| match n.load(Ordering::SeqCst) {
            0 => tagged(head, "\"a\"", "cache-control: no-cache\r\n", "first"),
            _ => tagged(head, "\"b\"", "cache-control: no-cache\r\n", "second"),
        }
    })
    .await;
    let client = Client::new(&loopback());
    assert_eq!(client.ask(&server.url("/")).await, file("first"));
    n.store(1, Ordering::SeqCst);
    assert_eq!(client.ask(&server.url("/")).await, file("second"));
    assert_eq!(client.ask(&server.url("/")).await, Ok(Fetched::Unchanged));
}

#[tokio::test]
async fn a_chain_of_redirects_holds_as_long_as_its_weakest_link() {
    let server = TestServer::by_head("127.0.0.1:0", |head| match head.split(' ').nth(1) {
        Some("/stale") => Reply::status(302, "location: /end\r\ncache-control: no-cache\r\n", ""),
        Some("/fresh") => Reply::status(302, "location: /end\r\ncache-control: max-age=60\r\n", ""),
        Some("/secret") => Reply::status(302, "location: /end\r\ncache-control: no-store\r\n", ""),
        _ => tagged(head, "\"a\"", "cache-control: max-age=60\r\n", "picture"),
    })
    .await;
    for (path, again, n_requests) in [
        ("/fresh", Ok(Fetched::Unchanged), 2),
        ("/stale", Ok(Fetched::Unchanged), 4),
        ("/secret", file("picture"), 4),
    ] {
        let client = Client::new(&loopback());
        let before = server.n_requests();
        assert_eq!(client.ask(&server.url(path)).await, file("picture"), "{path}");
        assert_eq!(client.ask(&server.url(path)).await, again, "{path}");
        assert_eq!(server.n_requests() - before, n_requests, "{path}");
    }
    // The validator belongs to the end of the chain, and is shown to no other hop.
    for head in server.heads.lock().unwrap().iter().filter(|head| !head.starts_with("GET /end ")) {
        assert!(!head.to_lowercase().contains("if-none-match"), "{head}");
    }
}

#[tokio::test]
async fn a_redirect_that_leads_elsewhere_now_is_followed() {
    let n = Arc::new(AtomicUsize::new(0));
    let server = TestServer::by_head("127.0.0.1:0", {
        let n = n.clone();
        move |head| match (head.split(' ').nth(1), n.load(Ordering::SeqCst)) {
            (Some("/latest"), 0) => Reply::status(302, "location: /1\r\ncache-control: no-cache\r\n", ""),
            (Some("/latest"), _) => Reply::status(302, "location: /2\r\ncache-control: no-cache\r\n", ""),
            // Hosts that count their versions may well use a tag twice.
            (Some("/1"), _) => tagged(head, "\"a\"", "", "first"),
            _ => tagged(head, "\"a\"", "", "second"),
        }
    })
    .await;
    let client = Client::new(&loopback());
    assert_eq!(client.ask(&server.url("/latest")).await, file("first"));
    n.store(1, Ordering::SeqCst);
    assert_eq!(client.ask(&server.url("/latest")).await, file("second"));
}

#[tokio::test]
async fn dead_addresses_are_remembered_and_passing_faults_are_not() {
    let server = TestServer::start(|path| match path {
        "/large" => Reply::status(200, "", "much too large"),
        "/loop" => Reply::redirect(302, "/loop"),
        "/away" => Reply::redirect(302, "http://10.0.0.1/"),
        path => Reply::status(path[1..].parse().unwrap(), "", ""),
    })
    .await;
    for (path, is_remembered) in [
        ("/404", true),
        ("/410", true),
        ("/403", true),
        ("/401", true),
        ("/large", true),
        ("/away", true),
        ("/429", false),
        ("/500", false),
        ("/503", false),
        ("/loop", false),
    ] {
        let client = Client::new(&FetchConfig { max_bytes: 10, ..loopback() });
        let first = client.ask(&server.url(path)).await.unwrap_err();
        let before = server.n_requests();
        assert_eq!(client.ask(&server.url(path)).await, Err(first), "{path}");
        assert_eq!(server.n_requests() == before, is_remembered, "{path}");
        assert_eq!(client.count("remembered_failure"), u64::from(is_remembered), "{path}");
        assert_eq!(client.count("error"), 2 - u64::from(is_remembered), "{path}");
    }
    let client = Client::new(&FetchConfig { dead_url_ttl_s: 0, ..loopback() });
    let before = server.n_requests();
    for _ in 0..2 {
        client.ask(&server.url("/404")).await.unwrap_err();
    }
    assert_eq!(server.n_requests() - before, 2);
}

#[tokio::test]
async fn whoever_asks_at_once_shares_one_download() {
    let server = TestServer::start(|_| Reply::ok("picture").after_ms(100)).await;
    let client = Client::new(&loopback());
    let url = server.url("/");
    for fetched in join_all((0..10).map(|_| client.ask(&url))).await {
        assert_eq!(fetched, file("picture"));
    }
    assert_eq!((server.n_requests(), client.count("ok"), client.count("joined")), (1, 1, 9));
}

#[tokio::test]
async fn those_who_are_left_get_what_others_began() {
    let server = TestServer::start(|_| Reply::ok("picture").after_ms(200)).await;
    let client = Arc::new(Client::new(&loopback()));
    let ask = || {
        let (client, url) = (client.clone(), server.url("/"));
        tokio::spawn(async move { client.ask(&url).await })
    };
    let first = ask();
    server.asked.notified().await;
    let second = ask();
    tokio::task::yield_now().await;
    first.abort();
    assert_eq!(second.await.unwrap(), file("picture"));
    assert_eq!(server.n_requests(), 1);
}

#[tokio::test]
async fn a_passing_fault_is_tried_once_more() {
    for (fault, failure) in [
        (Reply::status(503, "", ""), HostFailure::Status(503)),
        (Reply::status(500, "", ""), HostFailure::Status(500)),
        (Reply::status(429, "", ""), HostFailure::Status(429)),
        (Reply::status(408, "", ""), HostFailure::Status(408)),
        (Reply::status(425, "", ""), HostFailure::Status(425)),
        (Reply::raw(""), HostFailure::Answer),
        (Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"), HostFailure::Body),
    ] {
        let server = TestServer::start({
            let n = AtomicUsize::new(0);
            move |path| match path {
                "/once" if n.fetch_add(1, Ordering::SeqCst) > 0 => Reply::ok("picture"),
                _ => fault.clone(),
            }
        })
        .await;
        let client = Client::new(&loopback());
        assert_eq!(client.ask(&server.url("/once")).await, file("picture"), "{failure}");
        assert_eq!((server.n_requests(), client.metrics.fetch_retries.get()), (2, 1));
        let host = server.address.to_string();
        assert_eq!(client.ask(&server.url("/always")).await, Err(FetchError::Host { host, failure }));
        assert_eq!((server.n_requests(), client.metrics.fetch_retries.get()), (4, 2));
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_once_more() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(&loopback());
    let late = async {
        tokio::time::sleep(Duration::from_millis(PAUSE_MS.start / 2)).await;
        TestServer::by_head(&free.to_string(), |_| Reply::ok("picture")).await
    };
    let url = format!("http://{free}/");
    let (fetched, server) = tokio::join!(client.ask(&url), late);
    assert_eq!(fetched, file("picture"));
    assert_eq!((server.n_requests(), client.metrics.fetch_retries.get()), (1, 1));
}

#[tokio::test]
async fn lasting_faults_are_not_tried_again() {
    let server = TestServer::start(|path| match path {
        "/empty" => Reply::ok(""),
        "/br" => Reply::status(200, "content-encoding: br\r\n", "picture"),
        "/away" => Reply::redirect(302, "ftp://a.example/"),
        path => Reply::status(path[1..].parse().unwrap(), "", ""),
    })
    .await;
    for path in ["/404", "/403", "/304", "/empty", "/br", "/away"] {
        let (client, before) = (Client::new(&loopback()), server.n_requests());
        client.ask(&server.url(path)).await.unwrap_err();
        assert_eq!((server.n_requests() - before, client.metrics.fetch_retries.get()), (1, 0), "{path}");
    }
}

#[tokio::test]
async fn both_attempts_share_one_budget() {
    let server = TestServer::start(|_| Reply::status(503, "", "").after_ms(300)).await;
    let client = Client::new(&FetchConfig { timeout_ms: 650, ..loopback() });
    let started = Instant::now();
    let error = client.ask(&server.url("/")).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(1000), "{:?}", started.elapsed());
    let failure = HostFailure::Status(503);
    assert_eq!(error, FetchError::Host { host: server.address.to_string(), failure });
    assert!(server.n_requests() <= 2);
}
