//! `sidelens bench`: the real program against the real service, and against servers that fail.

use std::{
    io::Write,
    process::Output,
    sync::atomic::{AtomicUsize, Ordering},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::support::{STUB_DIMENSIONS, TestApp, closed_address, respond, server, sidelens};

async fn bench(args: &[&str]) -> Output {
    let mut command = sidelens(&["bench", "--json"]);
    command.args(args);
    tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("runs")
}

/// The report of a run in which something was answered.
async fn report(args: &[&str]) -> Value {
    let output = bench(args).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The report of a run in which nothing was.
async fn failures(args: &[&str]) -> Value {
    let output = bench(args).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not one bulk request"), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["lanes"]["bulk"]["n"], 0, "{report}");
    report["lanes"]["bulk"]["errors"].clone()
}

async fn cached(app: &TestApp) -> (f64, f64) {
    (
        app.metric(r#"sidelens_cache_hits_total{tier="memory"}"#).await,
        app.metric("sidelens_cache_misses_total").await,
    )
}

#[tokio::test]
async fn every_picture_is_new_and_every_request_is_counted() {
    let app = TestApp::spawn(|_| {}).await;
    let before = cached(&app).await;
    let pid = std::process::id().to_string();
    let report = report(&[
        &app.url(""),
        "--requests=12",
        "--connections=4",
        "--inputs=3",
        "--idle=2",
        "--no-search",
        "--pid",
        &pid,
    ])
    .await;
    let lanes = &report["lanes"];
    assert_eq!((&lanes["bulk"]["n"], &lanes["bulk"]["n_inputs"]), (&json!(12), &json!(36)), "{report}");
    assert_eq!((&lanes["idle_text"]["n"], &lanes["idle_image"]["n"]), (&json!(2), &json!(2)), "{report}");
    assert_eq!((&lanes["bulk"]["errors"], &lanes["search"]), (&json!({}), &Value::Null), "{report}");
    assert_eq!(report["dimensions"], STUB_DIMENSIONS);
    assert!(report["inputs_per_second"].as_f64() > Some(0.0), "{report}");
    let ms = |name: &str| lanes["bulk"][name].as_f64().expect("a number");
    assert!(0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms") && ms("p99_ms") <= ms("max_ms"), "{report}");
    assert!(report["memory"]["end_mib"].as_f64() > Some(1.0), "{report}");
    // 36 pictures of the bulk, 2 on the idle server, 2 texts: nothing came twice.
    let after = cached(&app).await;
    assert_eq!((after.0 - before.0, after.1 - before.1), (0.0, 40.0));
}

#[tokio::test]
async fn repeated_inputs_hit_the_cache() {
    let app = TestApp::spawn(|_| {}).await;
    let before = cached(&app).await;
    let report = report(&[
        &app.url(""),
        "--requests=6",
        "--inputs=5",
        "--repeat=10",
        "--connections=1",
        "--no-search",
    ])
    .await;
    assert_eq!(report["lanes"]["bulk"]["n_inputs"], 30, "{report}");
    let after = cached(&app).await;
    // The first round: 10 pictures. Then 30 that are known.
    assert_eq!((after.0 - before.0, after.1 - before.1), (30.0, 10.0));
}

#[tokio::test]
async fn searches_run_beside_the_bulk() {
    let app = TestApp::spawn(|_| {}).await;
    for shape in ["sidelens", "openai", "tei"] {
        let url = match shape {
            "tei" => app.url("/tei"),
            _ => app.url("/embed"),
        };
        let report = report(&[
            &url,
            "--seconds=1",
            "--connections=2",
            "--inputs=2",
            "--texts",
            "--search-every-ms=20",
            "--shape",
            shape,
        ])
        .await;
        let search = &report["lanes"]["search"];
        assert!(search["n"].as_u64() > Some(10), "{report}");
        assert_eq!((&search["errors"], &search["n"]), (&json!({}), &search["n_inputs"]), "{report}");
        assert_eq!((&report["modality"], &report["lanes"]["bulk"]["errors"]), (&json!("text"), &json!({})));
    }
}

#[tokio::test]
async fn failures_are_counted_by_kind() {
    let three = ["--requests=3", "--connections=3", "--inputs=2", "--no-search"];
    let check = async |url: String, kind: &str, first: &str, more: &[&str]| {
        let errors = failures(&[&[url.as_str()], &three[..], more].concat()).await;
        assert_eq!(
            (&errors[kind]["n"], errors.as_object().map(|all| all.len())),
            (&json!(3), Some(1)),
            "{errors}"
        );
        assert!(errors[kind]["first"].as_str().expect("words").contains(first), "{errors}");
    };
    let says = async |status: &'static str, body: &'static str| {
        server(move |stream, _| respond(stream, status, "", body.as_bytes())).await
    };
    check(says("503 Busy", "full").await, "503", "503: full", &[]).await;
    check(says("429 Slow Down", "").await, "429", "429", &[]).await;
    check(says("200 OK", "[[1, 2]]").await, "answer", "1 vectors for 2 inputs", &[]).await;
    check(says("200 OK", "[[1, 2], [null]]").await, "answer", "1 vectors for 2 inputs", &[]).await;
    check(says("200 OK", "[[1, 2], [3]]").await, "answer", "vector 1 has 1 components, others 2", &[]).await;
    let hangs = server(|stream, _| async move {
        // Until the client leaves.
        let _stream = stream;
        std::future::pending().await
    });
    check(hangs.await, "timeout", "no whole answer in time", &["--timeout-s=1"]).await;
    check(server(|_, _| async { Ok(()) }).await, "broken", "the connection broke", &[]).await;
    check(closed_address().await, "connect", "refused", &[]).await;
}

#[tokio::test]
async fn a_failure_among_answers_is_told() {
    let n_asked = Arc::new(AtomicUsize::new(0));
    let url = server(move |stream, _| {
        let n = n_asked.fetch_add(1, Ordering::SeqCst);
        async move {
            match n {
                0 => respond(stream, "200 OK", "", b"[[1, 2]]").await,
                1 => respond(stream, "200 OK", "", b"[[1, 2, 3]]").await,
                _ => respond(stream, "503 Busy", "", b"").await,
            }
        }
    });
    let report = report(&[&url.await, "--requests=4", "--connections=1", "--inputs=1", "--no-search"]).await;
    let bulk = &report["lanes"]["bulk"];
    assert_eq!((&bulk["n"], &bulk["errors"]["503"]["n"]), (&json!(1), &json!(2)), "{report}");
    assert_eq!(bulk["errors"]["answer"]["first"], "vectors of 3 components, the first had 2", "{report}");
}

/// A server that remembers what it was asked, and answers with `body`.
async fn recorder(headers: &'static str, body: Vec<u8>) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let recorded = asked.clone();
    let url = server(move |stream, request| {
        recorded.lock().expect("not poisoned").push(request);
        let body = body.clone();
        async move { respond(stream, "200 OK", headers, &body).await }
    });
    (url.await, asked)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

#[tokio::test]
async fn asks_as_meilisearch_does() {
    let (url, asked) =
        recorder("content-encoding: gzip\r\n", gzip(r#"{"data": [{"embedding": [0.5]}]}"#)).await;
    let header = "Authorization: Bearer hunter2";
    report(&[&url, "--requests=2", "--inputs=1", "--no-search", "--model=m", "--header", header]).await;
    let asked = std::mem::take(&mut *asked.lock().expect("not poisoned"));
    assert_eq!(asked.len(), 2);
    for request in asked {
        let (head, body) = request.split_once("\r\n\r\n").expect("a head");
        let head = head.to_lowercase();
        assert!(head.starts_with("post /embed http/1.1\r\n"), "{head}");
        let expected = [
            "content-type: application/json".into(),
            format!("content-length: {}", body.len()),
            "accept-encoding: gzip".into(),
            "accept: */*".into(),
            "authorization: bearer hunter2".into(),
        ];
        for line in expected {
            assert!(head.lines().any(|found| found == line), "no `{line}` in {head}");
        }
        assert!(!head.contains("transfer-encoding") && !head.contains("expect"), "{head}");
        let json: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(format!("{json:#}"), body, "pretty-printed");
        let part = &json["inputs"][0]["content"][0];
        assert_eq!((&json["model"], &part["type"]), (&json!("m"), &json!("image_url")));
        assert!(part["image_url"].as_str().expect("a string").starts_with("data:image/jpeg;base64,/9j/"));
    }
}

#[tokio::test]
async fn templates_and_uploads_reach_any_service() {
    let (url, asked) = recorder("", br#"{"embedding": [1, 2]}"#.to_vec()).await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(br#"{"query": "{{text}}"}"#).expect("written");
    let template = file.path().to_str().expect("UTF-8");
    let upload = [url.as_str(), "--multipart", "--inputs=3", "--requests=1", "--connections=1", "--idle=1"];
    let report_of = async |more: &[&str]| report(&[&upload[..], more].concat()).await;

    let report = report_of(&["--search-request", template, "--search-url", &format!("{url}/text")]).await;
    assert_eq!(report["lanes"]["bulk"]["n_inputs"], 3, "{report}");
    assert_eq!(report["lanes"]["idle_text"]["n"], 1, "{report}");
    let asked = std::mem::take(&mut *asked.lock().expect("not poisoned"));
    let is_text = |request: &&String| request.starts_with("POST /text HTTP/1.1\r\n");
    let text = asked.iter().find(is_text).expect("the idle text");
    assert!(text.contains("{\n  \"query\": \""), "{text}");
    let uploads: Vec<_> = asked.iter().filter(|request| !is_text(request)).collect();
    // One on the idle server, three for the one request of the bulk.
    assert_eq!(uploads.len(), 4);
    assert!(uploads.iter().all(|upload| upload.contains(r#"form-data; name="file"; filename="#)));

    let refused = bench(&upload).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("--search-request"), "{said}");
    let refused = bench(&[&url, "--no-search", "--request", template]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("ask for one input"), "{said}");
}
