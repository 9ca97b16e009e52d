//! `sidelens check`: the real program against the real service, and against servers that lie.

use std::fs;

use serde_json::json;

#[cfg(feature = "torch")]
use crate::support::Running;
use crate::support::{STUB_DIMENSIONS, TestApp, client, closed_address, respond, server, sidelens};

/// Whether it passed, stdout, stderr.
async fn check(args: &[&str]) -> (bool, String, String) {
    let mut command = sidelens(&["check"]);
    command.args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("runs");
    assert!(output.status.success() || output.status.code() == Some(1), "{output:?}");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Checks what does not pass; gives the last sentence.
async fn refused(args: &[&str]) -> String {
    let (passed, lines, sentence) = check(args).await;
    assert!(!passed && !lines.contains("checks passed"), "{lines}{sentence}");
    sentence
}

#[cfg(feature = "torch")]
#[tokio::test]
async fn the_demo_model_passes_again_and_again() {
    let app = Running::start(&["--model", "demo"]);
    let ready = async || client().get(format!("{}/ready", app.url)).send().await.expect("answers").status();
    while ready().await != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for args in [&[app.url.as_str()][..], &[&app.url, "--dimensions", "128", "--model", "sidelens-demo"]] {
        let (passed, lines, sentence) = check(args).await;
        assert!(passed, "{lines}{sentence}");
        // The model, four checks for each of three vectors, and two comparisons.
        assert_eq!(lines.lines().filter(|line| line.starts_with("ok ")).count(), 15, "{lines}");
        assert!(lines.contains("sidelens-demo, 128 dimensions") && lines.contains("norm 1.0000"), "{lines}");
        assert!(lines.ends_with("gives vectors as Meilisearch needs them\n"), "{lines}");
    }
}

#[tokio::test]
async fn nothing_comes_from_the_cache() {
    let app = TestApp::spawn(|_| {}).await;
    let misses = async || app.metric("sidelens_cache_misses_total").await;
    let before = misses().await;
    for _ in 0..2 {
        assert!(check(&[&app.url("/embed")]).await.0);
    }
    assert_eq!(misses().await - before, 6.0);
}

#[tokio::test]
async fn a_key_is_read_from_a_file_and_never_shown() {
    let app = TestApp::spawn(|config| config.auth.api_keys = vec!["hunter2".into()]).await;
    let url = app.url("");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("key");
    let path = file.to_str().expect("UTF-8");
    let (_, lines, sentence) = check(&[&url]).await;
    assert!(sentence.contains("status 401") && sentence.contains("`--key-file`"), "{lines}{sentence}");
    for (content, found) in [
        ("hunter2\n", None),
        ("hunter2-wrong", Some("put a key of `[auth]`")),
        ("hunter2 hunter2", Some("holds no key")),
        ("", Some("holds no key")),
    ] {
        fs::write(&file, content).expect("written");
        let (passed, lines, sentence) = check(&[&url, "--key-file", path]).await;
        assert_eq!(passed, found.is_none(), "{lines}{sentence}");
        assert!(found.is_none_or(|found| sentence.contains(found)), "{sentence}");
        assert!(!lines.contains("hunter2") && !sentence.contains("hunter2"), "{lines}{sentence}");
    }
    fs::remove_file(&file).expect("removed");
    assert!(refused(&[&url, "--key-file", path]).await.contains(path));
    let sentence = refused(&[&url.replace("://", "://me:hunter2@")]).await;
    assert!(sentence.contains("name or password") && !sentence.contains("hunter2"), "{sentence}");
}

#[tokio::test]
async fn a_model_is_checked_by_name_and_dimensions() {
    let app = TestApp::spawn(|_| {}).await;
    let url = app.url("");
    let dimensions = STUB_DIMENSIONS.to_string();
    let (passed, lines, _) = check(&[&url, "--model=stub", "--dimensions", &dimensions]).await;
    assert!(passed, "{lines}");
    assert!(refused(&[&url, "--dimensions=512"]).await.contains("8 dimensions, not 512"));
    let sentence = refused(&[&url, "--model=clip"]).await;
    assert!(sentence.contains("there is no model `clip`; this service has `stub`"), "{sentence}");
}

#[tokio::test]
async fn a_model_of_pictures_alone_is_not_asked_for_texts() {
    let mut model = sidelens::runtime::stub::stub_model(STUB_DIMENSIONS);
    (model.spec.text, model.tokenizer) = (None, None);
    let app = TestApp::spawn_with(model, |_| {}).await;
    let (passed, lines, sentence) = check(&[&app.url("")]).await;
    assert!(passed && lines.contains("text is not for this model"), "{lines}{sentence}");
    assert!(lines.contains("the same vector again"), "{lines}");
    // Behind a door that leads to /embed alone.
    let behind = app.url("");
    let proxy = server(move |stream, request| {
        let url = format!("{behind}/embed");
        async move {
            if !request.starts_with("POST /embed ") {
                return respond(stream, "404 Not Found", "", b"").await;
            }
            let (_, body) = request.split_once("\r\n\r\n").expect("a head");
            let answer = client().post(url).body(body.to_owned()).send().await.expect("answers");
            let status = answer.status().to_string();
            respond(stream, &status, "", &answer.bytes().await.expect("a body")).await
        }
    })
    .await;
    let (passed, lines, sentence) = check(&[&proxy]).await;
    assert!(passed && lines.contains("/info is not to be had here (status 404)"), "{lines}{sentence}");
    assert!(lines.contains("text is not for this model"), "{lines}");
}

/// A server without facts, that answers every question with `body`.
async fn says(status: &'static str, body: &'static str) -> String {
    server(move |stream, request| async move {
        match request.starts_with("GET ") {
            true => respond(stream, "404 Not Found", "", b"").await,
            false => respond(stream, status, "", body.as_bytes()).await,
        }
    })
    .await
}

#[tokio::test]
async fn what_is_wrong_is_named_with_the_next_step() {
    for (status, body, sentences) in [
        ("200 OK", r#"{"data": [{"embedding": [3, 4]}]}"#, ["text: norm 5.0000, not 1", "compare /info"]),
        (
            "200 OK",
            r#"{"data": [{"embedding": [1]}, {"embedding": [1]}]}"#,
            ["2 vectors for one input", "is it"],
        ),
        ("200 OK", r#"{"data": [{"embedding": [0, 1]}]}"#, ["have the same vector", "is it a model"]),
        ("200 OK", "<html>", ["not an answer of Sidelens", "is it Sidelens?"]),
        (
            "401 Unauthorized",
            r#"{"error":{"message":"no key","type":"x"}}"#,
            ["status 401: no key; ", "--key-file"],
        ),
        ("404 Not Found", "", ["status 404", "the address that Meilisearch has"]),
        ("429 Slow Down", "full", ["status 429: full", "less load"]),
        ("503 Busy", "", ["status 503", "/ready"]),
        ("502 Bad Gateway", "", ["status 502", "a proxy"]),
    ] {
        let sentence = refused(&[&says(status, body).await]).await;
        assert!(
            sentence.contains("checks of http") && sentences.iter().all(|s| sentence.contains(s)),
            "{sentence}"
        );
    }
    let sentence =
        refused(&[&says("200 OK", r#"{"data": [{"embedding": [0, 1]}]}"#).await, "--dimensions=3"]).await;
    assert!(sentence.contains("2 dimensions, not 3"), "{sentence}");
    let sentence = refused(&[&closed_address().await]).await;
    assert!(sentence.contains("1 of 1 checks") && sentence.contains("is the service running"), "{sentence}");
    let hangs = server(|stream, _| async move {
        let _stream = stream;
        std::future::pending().await
    });
    let sentence = refused(&[&hangs.await, "--timeout-s=1"]).await;
    assert!(sentence.contains("within 1 s") && sentence.contains("--timeout-s"), "{sentence}");
    assert!(refused(&["ftp://localhost"]).await.contains("not an http(s) address"));
}

#[tokio::test]
async fn the_second_listener_says_where_the_vectors_are() {
    let app = TestApp::spawn(|config| {
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"))
    })
    .await;
    let sentence = refused(&[&app.admin_url("")]).await;
    assert!(sentence.contains("vectors and /info are at `server.listen`; give the address"), "{sentence}");
    assert!(!sentence.contains("is it Sidelens"), "{sentence}");
}

#[tokio::test]
async fn a_picture_that_changes_its_vector_is_found() {
    // The second component of a picture's vector grows with each request.
    let n_asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let url = server(move |stream, request| {
        let n = n_asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            if request.starts_with("GET ") {
                return respond(stream, "404 Not Found", "", b"").await;
            }
            let angle = n as f64 / 10.0;
            let body = json!({ "data": [{ "embedding": [angle.cos(), angle.sin()] }] }).to_string();
            respond(stream, "200 OK", "", body.as_bytes()).await
        }
    })
    .await;
    let sentence = refused(&[&url]).await;
    assert!(
        sentence.contains("another vector the second time") && sentence.contains("fingerprint"),
        "{sentence}"
    );
}
