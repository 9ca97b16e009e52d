//! Three services on loopback, as far as reading one object goes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{
    Fetcher,
    test_server::{Reply, TestServer, config},
};
use super::*;
use crate::domain::{ImageSource, ItemErrorKind::*};
use crate::telemetry::Metrics;

/// What Google and Azure always send, and object_store asks of them.
const HEADERS: &str = "etag: \"1\"\r\nlast-modified: Sat, 21 Nov 2026 12:00:00 GMT\r\n";

fn bucket(url: &str, endpoint: &str, options: &[(&str, &str)]) -> BucketConfig {
    BucketConfig {
        url: url.parse().unwrap(),
        endpoint: endpoint.to_owned(),
        region: String::new(),
        options: options.iter().map(|(key, value)| (key.to_string(), (*value).into())).collect(),
        through_proxy: true,
    }
}

/// An S3 bucket `photos` that asks for no credentials, on `server`.
fn photos(server: &TestServer) -> BucketConfig {
    bucket("s3://photos", &server.url(""), &[("skip_signature", "true")])
}

async fn get_with(config: FetchConfig, url: &str) -> Result<Bytes, FetchError> {
    Fetcher::new(&config, Metrics::new()).unwrap().fetch(ImageSource::Url(url.to_owned())).await
}

async fn get(bucket: BucketConfig, url: &str) -> Result<Bytes, FetchError> {
    get_with(FetchConfig { max_bytes: 10, buckets: vec![bucket], ..config() }, url).await
}

/// A server that answers its first request with `first`, and later ones with a picture.
async fn picture_after(first: Reply) -> TestServer {
    let n_asked = AtomicUsize::new(0);
    TestServer::start(move |_| match n_asked.fetch_add(1, Ordering::Relaxed) {
        0 => first.clone(),
        _ => Reply::ok("picture"),
    })
    .await
}

#[tokio::test]
async fn each_service_is_spoken_to_in_its_own_way() {
    // A made-up account, its key in base64.
    let azure = [("account_name", "shop"), ("account_key", "c2VjcmV0")];
    let aws = [("access_key_id", "key-id"), ("secret_access_key", "secret")];
    for (url, options, path, authorization) in [
        (
            "s3://photos/a b/%C3é.png",
            &aws[..],
            "/photos/a%20b/%25C3%C3%A9.png",
            "aws4-hmac-sha256 credential=key-id/",
        ),
        ("gs://photos/a b/1.png", &[("bearer_token", "token")], "/photos/a%20b%2F1%2Epng", "bearer token"),
        ("az://photos/a b/1.png", &azure, "/photos/a%20b/1.png", "sharedkey shop:"),
    ] {
        let server = TestServer::start(|_| Reply::status(200, HEADERS, "picture")).await;
        let allowed = bucket(&url[..11], &server.url(""), options);
        assert_eq!(get(allowed, url).await, Ok(Bytes::from_static(b"picture")), "{url}");
        let head = server.heads.lock().unwrap()[0].clone();
        assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
        assert!(head.to_lowercase().contains(&format!("authorization: {authorization}")), "{head}");
        assert!(!head.contains("secret") && !head.contains("c2VjcmV0"), "{head}");
    }
}

#[tokio::test]
async fn an_encoded_string_may_be_an_object() {
    let server = TestServer::start(|_| Reply::ok("picture")).await;
    let fetcher =
        Fetcher::new(&FetchConfig { buckets: vec![photos(&server)], ..config() }, Metrics::new()).unwrap();
    let source = ImageSource::Encoded(" S3://photos/1.png\n".into());
    assert_eq!(fetcher.fetch(source).await, Ok(Bytes::from_static(b"picture")));
}

#[tokio::test]
async fn only_listed_buckets_are_asked_and_only_below_their_prefix() {
    let server = TestServer::start(|_| Reply::ok("picture")).await;
    let listed = [("s3://photos/shop/", "s3://photos/shop"), ("s3://photos/1.png", "s3://photos/1.png")];
    let buckets: Vec<_> = listed
        .iter()
        .flat_map(|(with_slash, without)| [with_slash, without])
        .map(|url| bucket(url, &server.url(""), &[("skip_signature", "true")]))
        .collect();
    let config = FetchConfig { buckets, ..config() };
    for (url, expected) in [
        ("s3://photos/shop/1.png", Ok(())),
        ("s3://photos/1.png", Ok(())),
        ("s3://photos/1.png/2.png", Ok(())),
        ("s3://photos/2.png", Err(BlockedAddress)),
        ("s3://photos/shopping/1.png", Err(BlockedAddress)),
        ("s3://photos/Shop/1.png", Err(BlockedAddress)),
        ("s3://scans/shop/1.png", Err(BlockedAddress)),
        ("gs://photos/shop/1.png", Err(BlockedAddress)),
        ("s3://photos/shop/../2.png", Err(InvalidUrl)),
        ("s3://photos/shop/./1.png", Err(InvalidUrl)),
        ("s3://photos/shop//1.png", Err(InvalidUrl)),
        ("s3://photos/shop/1.png\0", Err(InvalidUrl)),
        ("s3://photos", Err(InvalidUrl)),
        ("s3://photos/", Err(InvalidUrl)),
        ("s3:///1.png", Err(InvalidUrl)),
        ("s3:photos/1.png", Err(InvalidUrl)),
        ("s3://user:password@photos/1.png", Err(InvalidUrl)),
    ] {
        let before = server.n_requests();
        let result = get_with(config.clone(), url).await.map(drop);
        assert_eq!(result.map_err(|error| error.kind()), expected, "{url}");
        assert_eq!(server.n_requests() > before, expected.is_ok(), "{url}");
    }
    let too_long = format!("s3://photos/shop/{}", "a".repeat(60_000));
    assert_eq!(get_with(config, &too_long).await, Err(FetchError::UrlLength));
    let off = get_with(super::super::test_server::config(), "az://photos/1.png").await.unwrap_err();
    assert_eq!(off.to_string(), "`az://photos` is not listed in `fetch.buckets`, or not this part of it");
}

#[tokio::test]
async fn sorts_refusals_by_what_they_mean_for_the_caller() {
    for (service, options) in [
        ("s3", &[("skip_signature", "true")][..]),
        ("gs", &[("skip_signature", "true")]),
        ("az", &[("skip_signature", "true"), ("account_name", "shop")]),
    ] {
        for (status, expected, n_requests) in [
            (404, NotFound, 1),
            (401, Forbidden, 1),
            (403, Forbidden, 1),
            // Such as an expired token or a wrong region: not the caller's fault.
            (400, HostError, 1),
            (301, HostError, 1),
            (429, HostError, 2),
            (500, HostError, 2),
            (503, HostError, 2),
        ] {
            let server =
                TestServer::start(move |_| Reply::status(status, HEADERS, "<Error>secret</Error>")).await;
            let allowed = bucket(&format!("{service}://photos"), &server.url(""), options);
            let error = get(allowed, &format!("{service}://photos/secret.png?secret")).await.unwrap_err();
            assert_eq!(error.kind(), expected, "{service} {status}");
            assert_eq!(server.n_requests(), n_requests, "{service} {status}");
            let message = error.to_string();
            assert!(message.starts_with(&format!("`{service}://photos` ")), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}

#[tokio::test]
async fn one_passing_fault_is_passed_over() {
    for first in [
        Reply::status(500, "", "down"),
        Reply::status(503, "", "<Error><Code>SlowDown</Code></Error>"),
        Reply::raw(""),
    ] {
        let server = picture_after(first).await;
        assert_eq!(get(photos(&server), "s3://photos/1.png").await, Ok(Bytes::from_static(b"picture")));
        assert_eq!(server.n_requests(), 2);
    }
}

#[tokio::test]
async fn sizes_are_checked_before_the_body_and_counted_in_it() {
    let too_large = |result: Result<Bytes, FetchError>| match result {
        Err(FetchError::TooLarge { host: Some(host), limit: 10 }) => assert_eq!(host, "s3://photos"),
        other => panic!("{other:?}"),
    };
    // The body never comes, so that waiting for it would time out.
    let announced = Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n").then_hold();
    let server = TestServer::start(move |_| announced.clone()).await;
    too_large(get(photos(&server), "s3://photos/1.png").await);
    let most = TestServer::start(|_| Reply::ok("0123456789")).await;
    assert_eq!(get(photos(&most), "s3://photos/1.png").await, Ok(Bytes::from_static(b"0123456789")));
    let empty = TestServer::start(|_| Reply::ok("")).await;
    let error = get(photos(&empty), "s3://photos/1.png").await.unwrap_err();
    assert_eq!(error.kind(), EmptyImage);
    assert_eq!(error.to_string(), "the picture at `s3://photos` is empty");
}

#[tokio::test]
async fn slow_services_are_cut_off() {
    let slow = |config: FetchConfig| FetchConfig { timeout_ms: 300, connect_timeout_ms: 200, ..config };
    for reply in [
        Reply::ok("picture").after_ms(20_000),
        Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").then_drip("x"),
        // The second try would fit, if the first had left it time.
        Reply::status(500, "", "").after_ms(250),
    ] {
        let server = picture_after(reply).await;
        let config = slow(FetchConfig { buckets: vec![photos(&server)], ..config() });
        let error = get_with(config, "s3://photos/1.png").await.unwrap_err();
        assert_eq!(error, FetchError::Timeout { host: "s3://photos".into(), limit_ms: 300 });
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_a_host_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let closed = bucket("s3://photos", &endpoint, &[("skip_signature", "true")]);
    let error = get(closed, "s3://photos/1.png").await.unwrap_err();
    assert_eq!(error.to_string(), "`s3://photos` failed: no connection");
    // Credentials that cannot be had are no verdict on the picture.
    let server = TestServer::start(|_| Reply::status(404, "", "")).await;
    let identity = bucket("s3://photos", &endpoint, &[("metadata_endpoint", &server.url(""))]);
    let error = get(identity, "s3://photos/1.png").await.unwrap_err();
    assert_eq!(error.to_string(), "`s3://photos` failed: the object store does not deliver");
    assert_eq!(server.n_requests(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_host_error() {
    let server = TestServer::start(|_| Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123")).await;
    let error = get(photos(&server), "s3://photos/1.png").await.unwrap_err();
    assert_eq!(error.to_string(), "`s3://photos` failed: the body broke off");
}

#[tokio::test]
async fn the_proxy_dials_for_buckets_too_but_not_for_what_is_near() {
    let reply = |path: &str| match path.ends_with("/1.png") {
        true => Reply::ok("picture"),
        false => Reply::status(404, "", ""),
    };
    let unsigned = |endpoint: &str| bucket("s3://photos", endpoint, &[("skip_signature", "true")]);
    let far = |_: &str| unsigned("http://far.test");
    let direct = |near: &str| BucketConfig { through_proxy: false, ..far(near) };
    // The machine's identity is asked for on the machine.
    let identified = |near: &str| bucket("s3://photos", "http://far.test", &[("metadata_endpoint", near)]);
    for (bucket, is_had, n_requests) in [
        (&far as &dyn Fn(&str) -> BucketConfig, true, (1, 0)),
        (&unsigned, true, (0, 1)),
        (&direct, false, (0, 0)),
        (&identified, false, (0, 1)),
    ] {
        let (proxy, near) = (TestServer::start(reply).await, TestServer::start(reply).await);
        let buckets = vec![bucket(&near.url(""))];
        let config =
            FetchConfig { proxy: proxy.url("").as_str().into(), buckets: buckets.clone(), ..config() };
        let result = get_with(config, "s3://photos/1.png").await;
        assert_eq!(result.is_ok(), is_had, "{buckets:?}: {result:?}");
        assert_eq!((proxy.n_requests(), near.n_requests()), n_requests, "{buckets:?}");
    }
}

#[test]
fn options_that_our_client_would_not_heed_are_refused() {
    for (url, option) in [
        ("s3://photos", "proxy_url"),
        ("s3://photos", "aws_allow_http"),
        ("gs://photos", "google_timeout"),
        ("az://photos", "azure_user_agent"),
    ] {
        let config = FetchConfig { buckets: vec![bucket(url, "", &[(option, "hunter2")])], ..config() };
        let error = Fetcher::new(&config, Metrics::new()).err().unwrap().to_string();
        assert!(error.contains(&format!("`{option}`")) && error.contains("`fetch.proxy`"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    // Of what is written, and heeded.
    let typed = bucket("s3://photos", "", &[("aws_default_content_type", "image/jpeg")]);
    assert!(Fetcher::new(&FetchConfig { buckets: vec![typed], ..config() }, Metrics::new()).is_ok());
}

#[test]
fn settings_that_do_not_do_are_told_at_the_start() {
    for (url, options, expected) in [
        ("s3://photos", &[("acess_key_id", "hunter2")][..], "acess_key_id"),
        ("az://photos", &[], "Account must be specified"),
        ("az://photos", &[("account_name", "shop"), ("account_key", "hunter2!")], "Access Key"),
        ("gs://photos", &[("service_account_key", "hunter2")], "service account"),
        ("s3://photos/../x", &[], "illegal"),
    ] {
        let config = FetchConfig { buckets: vec![bucket(url, "", options)], ..config() };
        let error = Fetcher::new(&config, Metrics::new()).err().unwrap().to_string();
        let start = format!("cannot use `{}` of `fetch.buckets`: ", &url[..11]);
        assert!(error.starts_with(&start) && error.contains(expected), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
