//! What a download may reach: addresses, hosts by name, redirects, proxies.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use reqwest::dns::{Addrs, Name, Resolving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::test_server::{Reply, TestServer, config, get, get_with, kind, loopback};
use super::super::{FetchError, HostFailure};
use super::*;
use crate::config::FetchHost;
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
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[2a00:1450::5efe:127.0.0.1]",
        "[2a00:1450::200:5efe:127.0.0.1]",
        "017700000001",
        "%31%32%37.0.0.1",
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

/// Names whose addresses change: each look-up takes the next answer, the last one stays.
pub(super) struct FakeNames {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    n_asked: AtomicUsize,
}

impl FakeNames {
    pub(super) fn new(answers: &[&[&str]]) -> Arc<Self> {
        let answers =
            answers.iter().map(|answer| answer.iter().map(|address| address.parse().unwrap()).collect());
        Arc::new(Self { answers: Mutex::new(answers.collect()), n_asked: AtomicUsize::new(0) })
    }
}

impl Resolve for FakeNames {
    fn resolve(&self, _: Name) -> Resolving {
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() };
        Box::pin(async move {
            Ok(Box::new(answer.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

pub(super) fn downloads(config: &FetchConfig, names: Arc<FakeNames>) -> Downloads {
    Downloads::with_names(config, Places::new(8, 8), Backlog::new(8 << 20), Metrics::new(), names).unwrap()
}

/// The port that a request was sent to, for a redirect to another name of the same server.
fn port_of(head: &str) -> String {
    let host = head.lines().find(|line| line.to_lowercase().starts_with("host:")).unwrap();
    host.rsplit(':').next().unwrap().to_owned()
}

pub(super) async fn ask(downloads: &Downloads, url: &str) -> Result<Bytes, FetchError> {
    match downloads.get(url, None, Lane::Bulk).await? {
        Fetched::File { bytes, .. } => Ok(bytes),
        Fetched::Unchanged => panic!("nothing is held"),
    }
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_dialled() {
    let server = TestServer::start(|_| Reply::ok("picture")).await;
    let port = server.address.port();
    let secret = TestServer::by_head(&format!("127.0.0.2:{port}"), |_| Reply::ok("secret")).await;
    let url = |path: &str| format!("http://rebind.test:{port}{path}");

    let names = FakeNames::new(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let fetch = downloads(&loopback(), names.clone());
    assert_eq!(ask(&fetch, &url("/1")).await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(names.n_asked.load(Ordering::SeqCst), 1, "a check of its own would be a second answer");
    assert_eq!(kind(ask(&fetch, &url("/2")).await), BlockedAddress);

    let both = FakeNames::new(&[&["127.0.0.2", "10.0.0.1", "127.0.0.1", "::1"]]);
    let both = downloads(&loopback(), both);
    assert_eq!(ask(&both, &url("/3")).await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(secret.n_requests(), 0);
}

#[tokio::test]
async fn hosts_are_judged_by_name_at_every_hop() {
    let server = TestServer::by_head("127.0.0.1:0", |head| {
        let port = port_of(head);
        match head.split(' ').nth(1) {
            Some("/away") => Reply::redirect(302, &format!("http://B.TEST.:{port}/end")),
            _ => Reply::ok("picture"),
        }
    })
    .await;
    let port = server.address.port();
    let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    for (allow, deny, url, expected) in [
        (&[][..], &[][..], "http://a.test/away", Ok(())),
        (&["a.test"], &[], "http://A.Test./end", Ok(())),
        (&["a.test"], &[], "http://a.test/away", Err("b.test.")),
        (&["*.test"], &["b.test"], "http://a.test/away", Err("b.test.")),
        (&[], &["a.test"], "http://A.TEST./end", Err("a.test.")),
        (&["a.test"], &[], "http://127.0.0.1/end", Err("127.0.0.1")),
        (&[], &["bücher.test"], "http://xn--bcher-kva.test/end", Err("xn--bcher-kva.test")),
        (&[], &["127.0.0.1"], "http://2130706433/end", Err("127.0.0.1")),
    ] {
        let config = FetchConfig { allow_hosts: patterns(allow), deny_hosts: patterns(deny), ..loopback() };
        let mut address = Url::parse(url).unwrap();
        address.set_port(Some(port)).unwrap();
        let before = server.n_requests();
        let result = ask(&downloads(&config, FakeNames::new(&[&["127.0.0.1"]])), address.as_str()).await;
        let expected = expected.map_err(|host| FetchError::ClosedHost { host: format!("{host}:{port}") });
        assert_eq!(result.map(drop), expected, "{url}");
        let n_hops = 1 + usize::from(url.ends_with("/away"));
        assert_eq!(server.n_requests() - before, n_hops - usize::from(expected.is_err()), "{url}");
    }
}

#[tokio::test]
async fn denied_networks_are_closed_at_every_hop() {
    let secret = TestServer::by_head("127.0.0.2:0", |_| Reply::ok("secret")).await;
    let elsewhere = secret.url("/");
    let server = TestServer::start(move |_| Reply::redirect(302, &elsewhere)).await;
    let networks = |text: &str| vec![text.parse().unwrap()];
    let open = FetchConfig { allow_networks: networks("127.0.0.0/8"), ..config() };
    assert_eq!(get_with(open.clone(), &server.url("/")).await, Ok(Bytes::from_static(b"secret")));
    let closed = FetchConfig { deny_networks: networks("127.0.0.2/32"), ..open };
    assert_eq!(kind(get_with(closed, &server.url("/")).await), BlockedAddress);
    assert_eq!(secret.n_requests(), 1);
}

#[tokio::test]
async fn headers_of_a_host_stay_with_it() {
    let server = TestServer::by_head("127.0.0.1:0", |head| {
        let port = port_of(head);
        match head.split(' ').nth(1) {
            Some("/1") => Reply::redirect(302, &format!("http://b.test:{port}/2")),
            Some("/2") => Reply::redirect(302, &format!("http://a.test:{port}/3")),
            _ => Reply::ok("picture"),
        }
    })
    .await;
    let url = format!("http://a.test:{}/1", server.address.port());
    for (plain_http, expected) in [(true, [true, false, true]), (false, [false; 3])] {
        let headers = [("X-Key".to_owned(), "secret".into())].into();
        let hosts = vec![FetchHost { host: "a.test".parse().unwrap(), headers, plain_http }];
        let config = FetchConfig { hosts, ..loopback() };
        let before = server.n_requests();
        ask(&downloads(&config, FakeNames::new(&[&["127.0.0.1"]])), &url).await.unwrap();
        let heads = server.heads.lock().unwrap();
        let shown: Vec<_> =
            heads[before..].iter().map(|head| head.to_lowercase().contains("x-key: secret\r\n")).collect();
        assert_eq!(shown, expected);
    }
}

#[tokio::test]
async fn a_proxy_is_asked_only_for_what_was_judged() {
    let proxy = TestServer::start(|path| match path {
        "http://a.test/moved" => Reply::redirect(302, "http://10.0.0.1/"),
        _ => Reply::ok("picture"),
    })
    .await;
    // The proxy itself stands in a network that pictures may not come from.
    let through = |addresses: &[&str]| {
        let names = FakeNames::new(&[addresses]);
        let proxy = proxy.url("").replace("http://", "http://user:secret@").as_str().into();
        downloads(&FetchConfig { proxy, ..config() }, names)
    };
    assert_eq!(ask(&through(&["1.1.1.1"]), "http://a.test/a.png").await, Ok(Bytes::from_static(b"picture")));
    let head = proxy.heads.lock().unwrap()[0].to_lowercase();
    assert!(head.starts_with("get http://a.test/a.png http/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: basic dxnlcjpzzwnyzxq=\r\n"), "{head}");
    for (addresses, url, n_requests) in [
        (&["10.0.0.1"][..], "http://a.test/a.png", 0),
        // The proxy might take the other one.
        (&["1.1.1.1", "10.0.0.1"], "http://a.test/a.png", 0),
        (&["1.1.1.1"], "http://10.0.0.1/a.png", 0),
        (&["1.1.1.1"], "http://127.0.0.1/a.png", 0),
        (&["1.1.1.1"], "http://[::1]/a.png", 0),
        (&["1.1.1.1"], "http://a.test/moved", 1),
    ] {
        let before = proxy.n_requests();
        assert_eq!(kind(ask(&through(addresses), url).await), BlockedAddress, "{addresses:?} {url}");
        assert_eq!(proxy.n_requests() - before, n_requests, "{addresses:?} {url}");
    }
    let nameless =
        downloads(&FetchConfig { proxy: proxy.url("").as_str().into(), ..config() }, FakeNames::new(&[&[]]));
    let failure = HostFailure::Name;
    assert_eq!(
        ask(&nameless, "http://a.test/").await,
        Err(FetchError::Host { host: "a.test".into(), failure })
    );
}

#[tokio::test]
async fn a_socks5_proxy_is_handed_the_address_that_was_judged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        let mut request = [0; 10];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\npicture").await.unwrap();
        request
    });
    // Asked once to judge, and once to dial.
    let names = FakeNames::new(&[&["1.2.3.3"], &["10.0.0.1", "1.2.3.4"]]);
    let config = FetchConfig { proxy: format!("socks5://{proxy}").as_str().into(), ..config() };
    assert_eq!(ask(&downloads(&config, names), "http://a.test/").await, Ok(Bytes::from_static(b"picture")));
    assert_eq!(asked.await.unwrap(), [5, 1, 0, 1, 1, 2, 3, 4, 0, 80]);
}
