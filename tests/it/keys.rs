//! Keys with names: counted, limited, and replaced without a restart.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sidelens::config::NamedKey;

use crate::support::{TestApp, answer};

async fn embed(app: &TestApp, key: &str, n_inputs: usize) -> (u16, Value) {
    let body = json!({ "input": vec!["red"; n_inputs] }).to_string();
    answer(app.client.post(app.url("/embed")).bearer_auth(key).body(body)).await
}

fn write_keys(path: &Path, keys: &[(&str, &str)]) {
    let entry = |(name, key): &(&str, &str)| format!("[[keys]]\nname = \"{name}\"\nkey = \"{key}\"\n");
    fs::write(path, keys.iter().map(entry).collect::<String>()).expect("written");
}

#[tokio::test]
async fn requests_are_counted_by_the_name_of_their_key() {
    let app = TestApp::spawn(|config| {
        config.auth.api_keys = vec!["one".into()];
        config.auth.keys = vec![NamedKey::new("shop".into(), "two".into())];
    })
    .await;
    let count = |key: &str, status: u16| {
        let series = format!("sidelens_key_requests_total{{key=\"{key}\",status=\"{status}\"}}");
        let app = &app;
        async move { app.metric(&series).await }
    };
    assert_eq!((count("key-1", 200).await, count("shop", 429).await), (0.0, 0.0));
    assert_eq!(embed(&app, "two", 1).await.0, 200);
    let broken = app.client.post(app.url("/embed")).bearer_auth("two").body("{");
    assert_eq!(answer(broken).await.0, 400);
    assert_eq!(embed(&app, "three", 1).await.0, 401);
    assert_eq!((count("shop", 200).await, count("shop", 400).await), (1.0, 1.0));
    assert_eq!(count("key-1", 200).await, 0.0);
}

#[tokio::test]
async fn above_its_limit_a_key_gets_429_and_others_go_on() {
    let app = TestApp::spawn(|config| {
        // One input an hour or so: the test is over before the next is due.
        config.auth.max_inputs_per_s = 1;
        config.auth.max_inputs_burst = 400;
        let own = NamedKey { max_inputs_burst: Some(12), ..NamedKey::new("small".into(), "s".into()) };
        config.auth.keys = vec![own, NamedKey::new("large".into(), "l".into())];
    })
    .await;
    assert_eq!(embed(&app, "s", 10).await.0, 200);
    let (status, body) = embed(&app, "s", 10).await;
    assert_eq!((status, &body["error"]["type"]), (429, &json!("overloaded")), "{body}");
    assert!(body.to_string().contains("auth.max_inputs_per_s"), "{body}");
    assert_eq!(embed(&app, "l", 10).await.0, 200);
    assert_eq!(app.metric("sidelens_key_requests_total{key=\"small\",status=\"429\"}").await, 1.0);
    // Below a model's path and in the other dialect it is the same key.
    let tei =
        app.client.post(app.url("/tei/embed")).bearer_auth("s").body(r#"{"inputs": ["a", "b", "c", "d"]}"#);
    let (status, body) = answer(tei).await;
    assert_eq!(status, 429, "{body}");
}

#[tokio::test]
async fn without_keys_the_limit_is_that_of_everybody() {
    let app = TestApp::spawn(|config| {
        config.auth.max_inputs_per_s = 1;
        config.auth.max_inputs_burst = 3;
    })
    .await;
    assert_eq!(app.post("/embed", r#"{"input": ["a", "b", "c"]}"#).await.0, 200);
    assert_eq!(app.post("/embed", r#"{"input": ["a", "b", "c"]}"#).await.0, 429);
}

#[tokio::test]
async fn keys_are_replaced_without_a_restart_and_never_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keys.toml");
    write_keys(&path, &[("shop", "old")]);
    let app = TestApp::spawn(|config| config.auth.keys_file = Some(path.clone())).await;
    let failures = || app.metric("sidelens_reloads_total{files=\"keys\",outcome=\"failed\"}");
    assert_eq!(embed(&app, "old", 1).await.0, 200);
    assert_eq!(embed(&app, "", 1).await.0, 401);

    write_keys(&path, &[("shop", "new"), ("blog", "other")]);
    app.wait_until("the new key is known", async || embed(&app, "new", 1).await.0 == 200).await;
    assert_eq!(embed(&app, "old", 1).await.0, 401);
    assert_eq!(app.metric("sidelens_key_requests_total{key=\"blog\",status=\"200\"}").await, 0.0);

    for (i, broken) in ["", "hunter2", "keys = []"].into_iter().enumerate() {
        fs::write(&path, broken).expect("written");
        app.wait_until("the broken file was seen", async || failures().await == (i + 1) as f64).await;
        assert_eq!(embed(&app, "new", 1).await.0, 200, "{broken}");
        assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 401, "{broken}");
    }
    fs::remove_file(&path).expect("removed");
    app.wait_until("the gap was seen", async || failures().await == 4.0).await;
    assert_eq!(embed(&app, "new", 1).await.0, 200);

    write_keys(&path, &[("shop", "last")]);
    app.wait_until("the last key is known", async || embed(&app, "last", 1).await.0 == 200).await;
    assert_eq!(embed(&app, "new", 1).await.0, 401);
    assert_eq!(app.metric("sidelens_reloads_total{files=\"keys\",outcome=\"ok\"}").await, 2.0);
}
