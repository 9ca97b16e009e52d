//! Pictures by address: what is downloaded once, what is asked for again, and that only bytes decide what they are.

use serde_json::{Value, json};
use sidelens::config::{Config, ModelEntry, ModelSource};
use sidelens::domain::Fingerprint;
use sidelens::runtime::stub::stub_model;

use crate::support::{PictureServer, STUB_DIMENSIONS, TestApp, answer};

fn allow_loopback(config: &mut Config) {
    config.fetch.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
}

async fn vector(app: &TestApp, model: &str, url: &str) -> Value {
    let body = json!({ "model": model, "input": [{ "image_url": url }] }).to_string();
    let (status, answer) = app.post("/embed", body).await;
    assert_eq!(status, 200, "{answer}");
    answer["data"][0]["embedding"].clone()
}

async fn fetches(app: &TestApp, outcome: &str) -> f64 {
    app.metric(&format!("sidelens_fetches_total{{outcome=\"{outcome}\"}}")).await
}

#[tokio::test]
async fn a_picture_whose_vector_is_cached_is_not_downloaded_again() {
    let host = PictureServer::start("tests/fixtures/images");
    for (path, again) in [("fresh", "fresh"), ("tagged", "not_modified")] {
        let app = TestApp::spawn(allow_loopback).await;
        let url = host.url(&format!("{path}/photo_exif6.jpg"));
        let first = vector(&app, "stub", &url).await;
        assert_eq!(vector(&app, "stub", &url).await, first);
        assert_eq!((fetches(&app, "ok").await, fetches(&app, again).await), (1.0, 1.0), "{path}");
        assert_eq!(app.metric("sidelens_cache_hits_total{tier=\"memory\"}").await, 1.0);
        assert_eq!(app.metric("sidelens_cache_misses_total").await, 1.0);
    }
}

#[tokio::test]
async fn a_picture_without_a_vector_is_downloaded_however_fresh() {
    let host = PictureServer::start("tests/fixtures/images");
    for path in ["fresh", "tagged"] {
        let url = host.url(&format!("{path}/photo_exif6.jpg"));

        let mut models = [stub_model(STUB_DIMENSIONS), stub_model(STUB_DIMENSIONS)];
        models[1].spec.name = "other".into();
        models[1].fingerprint = Fingerprint::of(&[b"other"]);
        let app = TestApp::spawn_many(models.into(), |config| {
            allow_loopback(config);
            let entry = ModelEntry { source: Some(ModelSource::Demo), ..ModelEntry::default() };
            config.models = vec![entry; 2];
        })
        .await;
        vector(&app, "stub", &url).await;
        vector(&app, "other", &url).await;
        assert_eq!(fetches(&app, "ok").await, 2.0, "{path}: the other model has none");
        vector(&app, "other", &url).await;
        assert_eq!(fetches(&app, "ok").await, 2.0, "{path}: now both have one");

        let uncached = TestApp::spawn(|config| {
            allow_loopback(config);
            config.cache.max_bytes = 0;
        })
        .await;
        let first = vector(&uncached, "stub", &url).await;
        assert_eq!(vector(&uncached, "stub", &url).await, first);
        assert_eq!(fetches(&uncached, "ok").await, 2.0, "{path}: nothing is cached");
    }
}

#[tokio::test]
async fn bytes_decide_what_they_are_and_not_their_host() {
    let good = PictureServer::start("tests/fixtures/images");
    let bad = PictureServer::start("tests/fixtures/bad");
    let app = TestApp::spawn(allow_loopback).await;
    for kind in ["text/html", "application/json", "image/svg+xml", "image/jpeg"] {
        vector(&app, "stub", &good.url(&format!("as/{kind}/tiny_3x2.png"))).await;
    }
    for kind in ["image/png", "image/jpeg"] {
        let url = bad.url(&format!("as/{kind}/not_an_image.html"));
        let body = json!({ "input": [{ "image_url": url }] }).to_string();
        let (status, answer) = app.post("/embed", body).await;
        assert_eq!((status, &answer["error"]["kind"]), (400, &json!("not_an_image")), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_picture_is_not_downloaded_again() {
    let host = PictureServer::start("tests/fixtures/bad");
    for (path, again) in [("fresh", "fresh"), ("tagged", "not_modified")] {
        let app = TestApp::spawn(allow_loopback).await;
        let body = json!({ "input": [{ "image_url": host.url(&format!("{path}/not_an_image.html")) }] });
        let first = app.post("/embed", body.to_string()).await;
        assert_eq!((first.0, &first.1["error"]["kind"]), (400, &json!("not_an_image")));
        assert_eq!(app.post("/embed", body.to_string()).await, first);
        assert_eq!((fetches(&app, "ok").await, fetches(&app, again).await), (1.0, 1.0), "{path}");
    }
}

#[tokio::test]
async fn relative_paths_of_documents_are_below_the_base() {
    let host = PictureServer::start("tests/fixtures/images");
    let app = TestApp::spawn(|config| {
        allow_loopback(config);
        config.fetch.base_url = host.url("fresh");
    })
    .await;
    let relative = vector(&app, "stub", "photo_exif6.jpg").await;
    assert_eq!(vector(&app, "stub", &host.url("photo_exif6.jpg")).await, relative);
}

#[tokio::test]
async fn a_search_by_address_does_not_wait_behind_bulk() {
    let host = PictureServer::start("tests/fixtures/images");
    let app = TestApp::spawn(|config| {
        allow_loopback(config);
        config.fetch.max_concurrent_per_host = 1;
    })
    .await;
    let slow: Vec<_> = (0..20).map(|i| json!({ "image_url": host.url(&format!("slow?{i}")) })).collect();
    let bulk = app.client.post(app.url("/embed")).body(json!({ "input": slow }).to_string());
    let bulk = tokio::spawn(answer(bulk));
    app.wait_until("bulk is in", async || app.metric("sidelens_items_in_flight").await == 20.0).await;
    vector(&app, "stub", &host.url("photo_exif6.jpg")).await;
    assert!(!bulk.is_finished());
    bulk.abort();
}
