//! Too much, too late, too broken: every refusal has the status that makes Meilisearch do the right
//! thing, and says which item it is about.

use std::{fs, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sidelens::{
    domain::{ItemErrorKind, OnItemError},
    telemetry::metrics::{
        DEVICE_ERRORS, FETCH_OUTCOMES, FILES, LANES, NO_LANE, REDIS_ERRORS, REFUSALS, ROUTES, STATUSES, TIERS,
    },
};
use tokio::sync::Notify;

use crate::support::{PictureServer, STUB_DIMENSIONS, TestApp, answer, respond, server, slow_model};

fn bad(file: &str) -> String {
    let path = format!("{}/tests/fixtures/bad/{file}", env!("CARGO_MANIFEST_DIR"));
    BASE64_STANDARD.encode(fs::read(path).expect("a fixture"))
}

/// Asks for a good text and then `item`: the answer must name the item, 1, and never quote it.
async fn check_item(app: &TestApp, item: Value, status: u16, kind: &str) {
    let (found, body) = app.post("/embed", json!({ "input": ["red house", item] }).to_string()).await;
    assert_eq!(found, status, "{kind}: {body}");
    let error = &body["error"];
    assert_eq!((&error["index"], &error["kind"]), (&json!(1), &json!(kind)), "{body}");
    let text = body.to_string();
    assert!(text.len() < 1000 && !text.contains("SECRET"), "{body}");
}

#[tokio::test]
async fn broken_pictures_are_named() {
    let app = TestApp::spawn(|_| {}).await;
    for (file, kind) in [
        ("empty", "empty_image"),
        ("not_an_image.html", "not_an_image"),
        ("truncated.jpg", "corrupt"),
        ("truncated.png", "corrupt"),
        ("huge_header.png", "too_many_pixels"),
    ] {
        check_item(&app, json!({ "image_base64": bad(file) }), 400, kind).await;
    }
    check_item(&app, json!({"image": "data:image/png;base64,SECRET!"}), 400, "invalid_base64").await;
    check_item(&app, json!({"image_url": "ftp://example.com/SECRET"}), 400, "invalid_url").await;
    // The service lives on, and repeats itself.
    check_item(&app, json!({ "image_base64": bad("truncated.png") }), 400, "corrupt").await;
    assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 200);
}

#[tokio::test]
async fn picture_hosts_that_fail_are_named() {
    let host = PictureServer::start("tests/fixtures/images");
    let app = TestApp::spawn(|config| {
        config.fetch.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        config.fetch.connect_timeout_ms = 300;
        config.fetch.timeout_ms = 300;
        config.fetch.max_bytes = 100_000;
    })
    .await;
    for (path, status, kind) in [
        ("gone.jpg?key=SECRET", 400, "not_found"),
        ("status/403", 400, "forbidden"),
        ("status/500?key=SECRET", 502, "host_error"),
        ("slow", 504, "timeout"),
    ] {
        check_item(&app, json!({ "image_url": host.url(path) }), status, kind).await;
    }
    // A picture from the same host is welcome.
    let item = json!({ "input": [{ "image_url": { "url": host.url("photo_exif6.jpg") } }] });
    let (status, body) = app.post("/embed", item.to_string()).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn an_address_in_much_space_takes_no_decoder() {
    let (asked, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let host = server({
        let (asked, release) = (asked.clone(), release.clone());
        move |stream, _| {
            let (asked, release) = (asked.clone(), release.clone());
            async move {
                asked.notify_one();
                release.notified().await;
                respond(stream, "404 Not Found", "", b"").await
            }
        }
    })
    .await;
    let app = Arc::new(
        TestApp::spawn(|config| {
            config.fetch.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
            config.image.threads = 1;
        })
        .await,
    );
    let ask = |picture: String| {
        let app = app.clone();
        let body = json!({ "input": [{ "image_base64": picture }] }).to_string();
        tokio::spawn(async move { app.post("/embed", body).await })
    };
    let waiting = ask(" ".repeat(1 << 20) + &host);
    asked.notified().await;
    let photo = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/load/photo.jpg")).expect("readable");
    let (status, body) = ask(BASE64_STANDARD.encode(photo)).await.expect("joined");
    assert!(status == 200 && !waiting.is_finished(), "{status} {body}");
    release.notify_one();
    assert_eq!(waiting.await.expect("joined").0, 400);
}

#[tokio::test]
async fn private_addresses_are_closed_unless_opened() {
    let host = PictureServer::start("tests/fixtures/images");
    let app = TestApp::spawn(|_| {}).await;
    for url in [host.url("photo_exif6.jpg"), "http://[::1]/x".into(), "http://169.254.169.254/latest".into()]
    {
        check_item(&app, json!({ "image_url": url }), 400, "blocked_address").await;
    }
}

#[tokio::test]
async fn one_broken_picture_may_get_the_placeholder() {
    let app = TestApp::spawn(|config| config.on_item_error = OnItemError::Placeholder).await;
    let body = json!({ "input": ["red", { "image_base64": bad("truncated.png") }, "house"] }).to_string();
    let (status, body) = app.post("/embed", body).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["data"].as_array().map(Vec::len), Some(3));
    assert_eq!(body["errors"].as_array().map(Vec::len), Some(1));
    assert_eq!((&body["errors"][0]["index"], &body["errors"][0]["kind"]), (&json!(1), &json!("corrupt")));
    let vector: Vec<f64> = serde_json::from_value(body["data"][1]["embedding"].clone()).expect("numbers");
    let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    assert_eq!(app.metric("sidelens_placeholder_vectors_total{kind=\"corrupt\"}").await, 1.0);
}

#[tokio::test]
async fn bodies_that_mean_nothing_are_refused() {
    let app = TestApp::spawn(|config| {
        config.server.max_body_bytes = 2000;
        config.server.max_inflight_body_bytes = 4000;
    })
    .await;
    for (body, status) in [
        ("not json", 400),
        ("", 400),
        ("{}", 400),
        (r#"{"input": [42]}"#, 400),
        (r#"{"input": [{"picture": "x"}]}"#, 400),
        (r#"{"input": ["a"], "dimensions": 512}"#, 400),
    ] {
        let (found, answer) = app.post("/embed", body).await;
        assert_eq!(found, status, "{body}: {answer}");
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    let (_, mismatch) = app.post("/embed", r#"{"input": ["a"], "dimensions": 512}"#).await;
    let message = mismatch["error"]["message"].as_str().expect("a message");
    assert!(message.contains("512") && message.contains('8'), "{message}");
    assert_eq!(app.post("/embed", format!("{{\"input\": \"{}\"}}", "a".repeat(3000))).await.0, 413);
    assert_eq!(app.get("/embed").await.0, 405);
    assert_eq!(app.get("/nowhere").await.0, 404);
}

#[tokio::test]
async fn keys_are_asked_for_where_vectors_are_made() {
    let app = TestApp::spawn(|config| config.auth.api_keys = vec!["first".into(), "second".into()]).await;
    let post = |key: Option<&str>| {
        let request = app.client.post(app.url("/embed")).body(r#"{"input": "red"}"#);
        answer(match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
    };
    assert_eq!(post(Some("second")).await.0, 200);
    for key in [None, Some("third"), Some("firs"), Some("firstt"), Some("")] {
        let (status, body) = post(key).await;
        assert_eq!(status, 401, "{key:?}");
        assert!(!body.to_string().contains("third"), "{body}");
    }
    assert_eq!(app.get("/health").await.0, 200);
}

#[tokio::test]
async fn a_full_queue_is_429_and_recovers() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| {
        config.batch.max_batch_size = 1;
        config.batch.max_queue_items = 3;
    })
    .await;
    brake.set(Duration::from_millis(400));
    let first =
        tokio::spawn(answer(app.client.post(app.url("/embed")).body(r#"{"input": ["a", "b", "c"]}"#)));
    app.wait_until("three wait", async || app.metric("sidelens_items_in_flight").await == 3.0).await;
    let (status, body) = app.post("/embed", r#"{"input": ["d", "e"]}"#).await;
    assert_eq!(status, 429, "{body}");
    assert!(body.to_string().contains("batch.max_queue_items"), "{body}");
    let refused = "sidelens_refused_requests_total{lane=\"bulk\",reason=\"queue_full\"}";
    assert_eq!(app.metric(refused).await, 1.0);
    // A search has room kept for it.
    assert_eq!(app.post("/embed", r#"{"input": ["d"]}"#).await.0, 200);
    assert_eq!(first.await.expect("answered").0, 200);
    assert_eq!(app.post("/embed", r#"{"input": ["d", "e"]}"#).await.0, 200);
    assert_eq!(app.metric("sidelens_items_in_flight").await, 0.0);
}

#[tokio::test]
async fn a_late_answer_is_503_within_the_deadline() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| {
        config.fetch.connect_timeout_ms = 100;
        config.fetch.timeout_ms = 100;
        config.batch.deadline_ms = 200;
    })
    .await;
    brake.set(Duration::from_secs(2));
    let begin = std::time::Instant::now();
    let (status, body) = app.post("/embed", r#"{"input": ["a"]}"#).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.to_string().contains("batch.deadline_ms"), "{body}");
    let refused = "sidelens_refused_requests_total{lane=\"search\",reason=\"deadline\"}";
    assert_eq!(app.metric(refused).await, 1.0);
    assert_eq!(app.metric("sidelens_request_seconds_count{lane=\"search\",route=\"embed\"}").await, 1.0);
    assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_panic_in_the_model_is_a_500_and_the_service_lives_on() {
    let app = TestApp::spawn(|_| {}).await;
    for word in ["panic", "fail"] {
        let (status, body) = app.post("/embed", json!({ "input": [word] }).to_string()).await;
        assert_eq!(status, 500, "{body}");
        assert_eq!(app.post("/embed", r#"{"input": ["red"]}"#).await.0, 200);
    }
}

#[tokio::test]
async fn every_series_is_there_from_the_start() {
    let app = TestApp::spawn(|_| {}).await;
    let (status, body) = app.get("/metrics").await;
    assert_eq!(status, 200);
    let text = body.as_str().expect("text");
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().expect("a name"))
        .collect();
    let expected = [
        "sidelens_batch_size",
        "sidelens_batch_size_cap",
        "sidelens_cache_bytes",
        "sidelens_cache_hits_total",
        "sidelens_cache_misses_total",
        "sidelens_decode_seconds",
        "sidelens_decode_workers_lost_total",
        "sidelens_device_errors_total",
        "sidelens_fetch_retries_total",
        "sidelens_fetch_seconds",
        "sidelens_fetches_total",
        "sidelens_inference_seconds",
        "sidelens_input_compute_seconds_total",
        "sidelens_items_in_flight",
        "sidelens_items_total",
        "sidelens_last_reload_success_timestamp_seconds",
        "sidelens_last_reload_successful",
        "sidelens_model_info",
        "sidelens_placeholder_vectors_total",
        "sidelens_queue_depth",
        "sidelens_queue_wait_seconds",
        "sidelens_ready",
        "sidelens_redis_breaker_open",
        "sidelens_redis_errors_total",
        "sidelens_redis_seconds",
        "sidelens_refused_requests_total",
        "sidelens_reloads_total",
        "sidelens_request_seconds",
        "sidelens_requests_in_flight",
        "sidelens_requests_total",
        "sidelens_truncated_texts_total",
    ];
    assert_eq!(names, expected);
    for name in expected {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help text");
    }
    let mut series = Vec::new();
    for route in ROUTES {
        series.extend(
            STATUSES.map(|status| format!("requests_total{{route=\"{route}\",status=\"{status}\"}}")),
        );
    }
    for modality in ["text", "image"] {
        let outcomes = ItemErrorKind::ALL.map(ItemErrorKind::as_str).into_iter().chain(["ok"]);
        series.extend(outcomes.map(|o| format!("items_total{{modality=\"{modality}\",outcome=\"{o}\"}}")));
        series.push(format!("inference_seconds_count{{modality=\"{modality}\"}}"));
        series.push(format!("batch_size_count{{modality=\"{modality}\"}}"));
        series.push(format!("batch_size_cap{{modality=\"{modality}\"}}"));
    }
    series.extend(FILES.map(|files| format!("reloads_total{{files=\"{files}\",outcome=\"failed\"}}")));
    series.extend(TIERS.map(|tier| format!("cache_hits_total{{tier=\"{tier}\"}}")));
    series.extend(REDIS_ERRORS.map(|kind| format!("redis_errors_total{{kind=\"{kind}\"}}")));
    series.extend(LANES.map(|lane| format!("queue_wait_seconds_count{{lane=\"{lane}\"}}")));
    series.extend(LANES.map(|lane| format!("input_compute_seconds_total{{lane=\"{lane}\"}}")));
    for lane in LANES.into_iter().chain([NO_LANE]) {
        series.push(format!("request_seconds_count{{lane=\"{lane}\",route=\"embed\"}}"));
        series.extend(REFUSALS.map(|r| format!("refused_requests_total{{lane=\"{lane}\",reason=\"{r}\"}}")));
    }
    series.extend(DEVICE_ERRORS.map(|kind| format!("device_errors_total{{kind=\"{kind}\"}}")));
    series.extend(FILES.map(|files| format!("last_reload_successful{{files=\"{files}\"}}")));
    series.extend(
        ItemErrorKind::ALL.map(|kind| format!("placeholder_vectors_total{{kind=\"{}\"}}", kind.as_str())),
    );
    series.extend(FETCH_OUTCOMES.map(|outcome| format!("fetches_total{{outcome=\"{outcome}\"}}")));
    let model = format!("device=\"cpu\",dimensions=\"{STUB_DIMENSIONS}\",dtype=\"fp32\",fingerprint=\"");
    assert!(text.contains(&format!("\nsidelens_model_info{{{model}")), "{text}");
    for series in series {
        assert!(text.contains(&format!("\nsidelens_{series} ")), "no series {series}");
    }
}

#[tokio::test]
async fn a_placeholder_covers_no_fault_that_passes_in_time() {
    let host = PictureServer::start("tests/fixtures/images");
    let app = TestApp::spawn(|config| {
        config.on_item_error = OnItemError::Placeholder;
        config.fetch.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    })
    .await;
    // The download itself asks twice.
    let item = json!({ "image_url": host.url("third/tiny_3x2.png") });
    let (status, body) = app.post("/embed", json!({ "input": [item, "a"] }).to_string()).await;
    assert_eq!(status, 200, "{body}");
    assert!(body["errors"].is_null(), "{body}");
    assert_eq!(app.metric("sidelens_placeholder_vectors_total{kind=\"host_error\"}").await, 0.0);
}

#[tokio::test]
async fn what_failed_is_listed_without_secrets() {
    let host = PictureServer::start("tests/fixtures/images");
    let app = TestApp::spawn(|config| {
        config.fetch.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    })
    .await;
    let gone = json!({ "input": [{ "image_url": host.url("gone.jpg?sig=SECRET") }] }).to_string();
    for _ in 0..2 {
        assert_eq!(app.post("/embed", gone.clone()).await.0, 400);
    }
    assert_eq!(
        app.post("/embed", json!({ "input": [{ "image_base64": bad("truncated.png") }] }).to_string())
            .await
            .0,
        400
    );
    let (status, body) = app.get("/admin/failures").await;
    assert_eq!(status, 200, "{body}");
    let listed: Vec<_> = body["failures"].as_array().expect("a list").iter().collect();
    let facts =
        |i: usize| (listed[i]["source"].clone(), listed[i]["kind"].clone(), listed[i]["count"].clone());
    assert_eq!(listed.len(), 2, "{body}");
    assert_eq!(facts(0), (json!("image"), json!("corrupt"), json!(1)));
    assert_eq!(facts(1), (json!(host.url("gone.jpg")), json!("not_found"), json!(2)));
    assert!(!body.to_string().contains("SECRET"), "{body}");
}
