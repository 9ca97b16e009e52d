//! `sidelens settings`: what it prints is what Meilisearch would send, and what the service answers.

use serde_json::{Value, json};

use crate::support::{STUB_DIMENSIONS, TestApp, sidelens};

/// Runs the command; returns the JSON of stdout, and stderr.
async fn settings(args: &[&str]) -> (Value, String) {
    let mut command = sidelens(&["settings"]);
    command.args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("runs");
    let hints = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{hints}");
    (serde_json::from_slice(&output.stdout).expect("JSON"), hints)
}

/// Renders the `request` template for `n` inputs as Meilisearch does.
fn request(embedder: &Value, inputs: Vec<Value>) -> String {
    let mut request = embedder["request"].clone();
    for value in request.as_object_mut().expect("an object").values_mut().filter(|value| value.is_array()) {
        assert_eq!(value[1], "{{..}}");
        *value = Value::Array(inputs.clone());
    }
    serde_json::to_string_pretty(&request).expect("JSON")
}

#[tokio::test]
async fn prints_the_dimensions_of_the_running_model() {
    let app = TestApp::spawn(|_| {}).await;
    let (settings, hints) = settings(&["--url", &app.url(""), "--image-field", "poster"]).await;
    let embedder = &settings["embedders"]["sidelens"];
    assert_eq!(embedder["dimensions"], STUB_DIMENSIONS);
    assert_eq!(embedder["url"], app.url("/embed"));
    assert_eq!(embedder["request"]["model"], "stub");
    assert!(embedder.get("apiKey").is_none());
    assert!(hints.contains(r#"-d '{"multimodal": true}'"#), "{hints}");
    assert!(hints.contains("MEILI_EXPERIMENTAL_ALLOWED_IP_NETWORKS=127.0.0.0/8,::1/128"), "{hints}");

    // The search fragment of a text, rendered, is an input that the service knows.
    let mut fragment = embedder["searchFragments"]["text"]["value"].clone();
    fragment["content"][0]["text"] = "red house".into();
    let (status, body) = app.post("/embed", request(embedder, vec![fragment.clone(), fragment])).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["data"][1]["embedding"].as_array().map(Vec::len), Some(STUB_DIMENSIONS));
}

#[tokio::test]
async fn texts_alone_need_no_switch() {
    let app = TestApp::spawn(|config| config.auth.api_keys = vec!["hunter2".into()]).await;
    let (settings, hints) = settings(&[
        "--url",
        &app.url(""),
        "--text-template",
        "{{doc.title}}",
        "--embedder",
        "words",
        "--api-key",
        "hunter2",
    ])
    .await;
    let embedder = &settings["embedders"]["words"];
    assert_eq!(embedder["documentTemplate"], "{{doc.title}}");
    assert_eq!(embedder["apiKey"], "hunter2");
    assert!(!hints.contains("multimodal") && !hints.contains("hunter2"), "{hints}");
    assert!(hints.contains("--drop-fragments") && embedder.get("indexingFragments").is_none(), "{hints}");
    let body = request(embedder, vec![json!("red house")]);
    let request = app.client.post(app.url("/embed")).bearer_auth("hunter2").body(body);
    assert_eq!(crate::support::answer(request).await.0, 200);
}

#[tokio::test]
async fn takes_fragments_out_when_asked() {
    let app = TestApp::spawn(|_| {}).await;
    let args = ["--url", &app.url(""), "--text-template", "{{doc.title}}", "--drop-fragments"];
    let (settings, hints) = settings(&args).await;
    for map in ["indexingFragments", "searchFragments"] {
        assert_eq!(settings["embedders"]["sidelens"].get(map), Some(&Value::Null), "{map}");
    }
    assert!(!hints.contains("--drop-fragments"), "{hints}");
}

#[tokio::test]
async fn reads_the_model_when_the_service_is_down() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (settings, hints) = settings(&["--url", &format!("http://{free}"), "--image-field", "poster"]).await;
    let embedder = &settings["embedders"]["sidelens"];
    assert_eq!(embedder["request"]["model"], "sidelens-demo");
    assert!(embedder["dimensions"].as_u64().is_some_and(|n| n > 0));
    assert!(hints.contains("does not answer from here"), "{hints}");
}

#[test]
fn refuses_what_would_index_nothing() {
    for args in [
        ["--embedder", "e", "--url", "http://localhost"].as_slice(),
        &["--url", "http://localhost", "--text-template", "title"],
        &["--url", "http://localhost", "--image-field", "my field"],
        &["--url", "localhost:7800", "--image-field", "poster"],
        &["--url", "http://localhost", "--image-field", "poster", "--drop-fragments"],
    ] {
        let output = sidelens(&["settings"]).args(args).output().expect("runs");
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
    }
}
