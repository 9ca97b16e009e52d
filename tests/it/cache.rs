//! Vectors that outlive the process, or leave it: the file of the settings, and `sidelens cache`.

use std::{fs, path::Path, process::Output};

use serde_json::Value;
use sidelens::{
    config::{Config, NamedKey},
    runtime::stub::stub_model,
};

use crate::support::{STUB_DIMENSIONS, TestApp, respond, server, sidelens};

const TWO: &str = r#"{"input": ["red house", "blue fish"]}"#;
const ONE: &str = r#"{"input": "red house"}"#;

async fn misses(app: &TestApp) -> f64 {
    app.metric("sidelens_cache_misses_total").await
}

/// The vectors of a request, as they are answered.
async fn embed(app: &TestApp, body: &str) -> Vec<Value> {
    let (status, answer) = app.post("/embed", body).await;
    assert_eq!(status, 200, "{answer}");
    let data = answer["data"].as_array().expect("a list");
    data.iter().map(|item| item["embedding"].clone()).collect()
}

async fn stopped(mut app: TestApp) {
    app.begin_stop();
    app.ended().await.expect("it stops");
}

/// Runs `sidelens cache` beside the service.
async fn cache(app: &TestApp, args: &[&str], file: &Path) -> Output {
    cache_at(&app.url(""), args, file).await
}

/// The same beside whatever answers at an address.
async fn cache_at(url: &str, args: &[&str], file: &Path) -> Output {
    let mut command = sidelens(&["cache"]);
    command.args(args).arg(file).args(["--url", url]);
    tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("runs")
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[tokio::test]
async fn a_restart_computes_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vectors.parquet");
    let with_file = |config: &mut Config| config.cache.file = file.to_str().expect("UTF-8").into();
    let first = TestApp::spawn(with_file).await;
    let vectors = embed(&first, TWO).await;
    stopped(first).await;
    let written = fs::read(&file).expect("written at the stop");

    let second = TestApp::spawn(with_file).await;
    assert_eq!(embed(&second, TWO).await, vectors);
    assert_eq!(misses(&second).await, 0.0);
    stopped(second).await;

    // Another model never gets these vectors, and keeps them for the model that may come back.
    let other = TestApp::spawn_with(stub_model(STUB_DIMENSIONS + 1), with_file).await;
    assert_eq!(embed(&other, ONE).await[0].as_array().map(Vec::len), Some(STUB_DIMENSIONS + 1));
    assert_eq!(misses(&other).await, 1.0);
    stopped(other).await;
    let third = TestApp::spawn(with_file).await;
    assert_eq!((embed(&third, TWO).await, misses(&third).await), (vectors.clone(), 0.0));
    stopped(third).await;

    // An older file put back, and one that is none: both start.
    fs::write(&file, &written).unwrap();
    let rolled_back = TestApp::spawn(with_file).await;
    assert_eq!((embed(&rolled_back, TWO).await, misses(&rolled_back).await), (vectors.clone(), 0.0));
    fs::write(&file, "no table").unwrap();
    let unreadable = TestApp::spawn(with_file).await;
    assert_eq!((embed(&unreadable, TWO).await, misses(&unreadable).await), (vectors, 2.0));
}

#[tokio::test]
async fn an_export_is_imported_by_the_same_model_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vectors.parquet");
    let first = TestApp::spawn(|_| {}).await;
    let vectors = embed(&first, TWO).await;
    let output = cache(&first, &["export"], &file).await;
    assert!(output.status.success(), "{output:?}");

    let second = TestApp::spawn(|_| {}).await;
    let output = cache(&second, &["import"], &file).await;
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("# 2 vectors of "), "{output:?}");
    assert_eq!((embed(&second, TWO).await, misses(&second).await), (vectors, 0.0));

    let other = TestApp::spawn_with(stub_model(STUB_DIMENSIONS + 1), |_| {}).await;
    let message = refusal(&cache(&other, &["import"], &file).await);
    let (_, info) = second.get("/info").await;
    assert!(message.contains("400") && message.contains(info["fingerprint"].as_str().unwrap()), "{message}");

    fs::write(&file, "no table").unwrap();
    let message = refusal(&cache(&second, &["import"], &file).await);
    assert!(message.contains("no Parquet file"), "{message}");
}

#[tokio::test]
async fn an_export_of_what_is_no_table_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vectors.parquet");
    let app = TestApp::spawn(|_| {}).await;
    embed(&app, TWO).await;
    assert!(cache(&app, &["export"], &file).await.status.success());
    let written = fs::read(&file).unwrap();
    let half = written[..written.len() / 2].to_vec();
    for body in [b"<html>log in</html>".to_vec(), half, b"PAR1PAR1".to_vec(), Vec::new()] {
        let n_bytes = body.len();
        let url = server(move |stream, _| {
            let body = body.clone();
            async move { respond(stream, "200 OK", "content-type: text/html\r\n", &body).await }
        })
        .await;
        let message = refusal(&cache_at(&url, &["export"], &file).await);
        assert!(message.contains("no table") && message.contains(&url), "{n_bytes} bytes: {message}");
        assert_eq!(fs::read(&file).unwrap(), written, "{n_bytes} bytes");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn nothing_is_imported_where_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vectors.parquet");
    let app = TestApp::spawn(|_| {}).await;
    embed(&app, TWO).await;
    assert!(cache(&app, &["export"], &file).await.status.success());
    let forgetful = TestApp::spawn(|config| config.cache.max_bytes = 0).await;
    let message = refusal(&cache(&forgetful, &["import"], &file).await);
    assert!(message.contains("400") && message.contains("`cache.max_bytes`"), "{message}");
}

#[tokio::test]
async fn keys_guard_the_vectors_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vectors.parquet");
    let app = TestApp::spawn(|config| {
        let operator = NamedKey { admin: true, ..NamedKey::new("operator".into(), "hunter2".into()) };
        config.auth.keys = vec![operator];
        config.auth.api_keys = vec!["caller".into()];
    })
    .await;
    let message = refusal(&cache(&app, &["export"], &file).await);
    assert!(message.contains("401") && !file.exists(), "{message}");
    let message = refusal(&cache(&app, &["export", "--api-key", "caller"], &file).await);
    assert!(message.contains("403") && !file.exists(), "{message}");
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, "hunter2\n").unwrap();
    let from_file = format!("--key-file={}", key_file.display());
    for key in [&["--api-key", "hunter2"][..], &[&from_file]] {
        let output = cache(&app, &[&["export"], key].concat(), &file).await;
        assert!(output.status.success(), "{output:?}");
    }
    std::fs::write(&key_file, "hunter2 hunter2").unwrap();
    let message = refusal(&cache(&app, &["export", &from_file], &file).await);
    assert!(message.contains("holds no key") && !message.contains("hunter2"), "{message}");
    let message = refusal(&cache(&app, &["import"], &file).await);
    assert!(message.contains("401"), "{message}");
    assert_eq!(app.post("/admin/cache", "{}").await.0, 401);

    let message = refusal(&cache(&app, &["import"], &dir.path().join("none")).await);
    assert!(message.contains("none: No such file"), "{message}");
    let nowhere = dir.path().join("no/such/directory.parquet");
    let message = refusal(&cache(&app, &["export", "--api-key", "hunter2"], &nowhere).await);
    assert!(message.contains("no/such/directory.parquet"), "{message}");
}
