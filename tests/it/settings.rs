//! `sidelens settings`: what it prints is what Meilisearch would send, and what the service answers.

use std::process::Output;

use serde_json::{Value, json};

use sidelens::{
    config::{Config, ModelEntry, ModelSource},
    runtime::stub::stub_model,
};

use crate::support::{STUB_DIMENSIONS, TestApp, closed_address, respond, server, sidelens};

async fn run(args: &[&str]) -> Output {
    let mut command = sidelens(&["settings"]);
    command.args(args);
    tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("runs")
}

/// Runs the command; returns the JSON of stdout, and stderr.
async fn settings(args: &[&str]) -> (Value, String) {
    let output = run(args).await;
    let hints = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{hints}");
    (serde_json::from_slice(&output.stdout).expect("JSON"), hints)
}

/// Runs the command for pictures; returns the sentence that it fails with.
async fn refused(url: &str, args: &[&str]) -> String {
    let output = run(&[&["--url", url, "--image-field", "poster"], args].concat()).await;
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{url}: {output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
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
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("key");
    std::fs::write(&file, "hunter2\n").expect("written");
    let key_file = format!("--key-file={}", file.display());
    let url = app.url("");
    let words = ["--url", &url, "--text-template", "{{doc.title}}", "--embedder", "words"];
    let (settings, hints) = settings(&[&words[..], &[&key_file]].concat()).await;
    let given = run(&[&words[..], &["--api-key", "hunter2"]].concat()).await;
    assert_eq!(settings, serde_json::from_slice::<Value>(&given.stdout).expect("JSON"));
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
async fn prints_nothing_that_the_model_cannot_do() {
    let models =
        [("pictures", false, true), ("texts", true, false)].map(|(name, has_texts, has_pictures)| {
            let mut model = stub_model(STUB_DIMENSIONS);
            model.spec.name = name.into();
            model.spec.text = model.spec.text.filter(|_| has_texts);
            model.spec.image = model.spec.image.filter(|_| has_pictures);
            model
        });
    let app = TestApp::spawn_many(models.into(), |config: &mut Config| {
        let entry = ModelEntry { source: Some(ModelSource::Demo), ..ModelEntry::default() };
        config.models = vec![entry; 2];
    })
    .await;
    let message = refused(&app.url("/models/texts/embed"), &[]).await;
    assert!(message.contains("`texts` has no image tower") && message.contains("--image-field"), "{message}");
    let pictures = app.url("/models/pictures/embed");
    let message = refused(&pictures, &["--text-template", "{{doc.title}}"]).await;
    assert!(
        message.contains("`pictures` has no text tower") && message.contains("--text-template"),
        "{message}"
    );

    let (settings, _) = settings(&["--url", &pictures, "--image-field", "poster"]).await;
    let searches = settings["embedders"]["sidelens"]["searchFragments"].as_object().expect("fragments");
    assert_eq!(Vec::from_iter(searches.keys()), ["image", "url"]);
}

#[tokio::test]
async fn asks_for_the_model_in_the_path_by_every_route() {
    let mut other = stub_model(STUB_DIMENSIONS + 1);
    other.spec.name = "org/texts".into();
    let app = TestApp::spawn_many(vec![stub_model(STUB_DIMENSIONS), other], |config: &mut Config| {
        let entry = ModelEntry { source: Some(ModelSource::Demo), ..ModelEntry::default() };
        config.models = vec![entry; 2];
    })
    .await;
    for path in ["/models/org/texts/embed", "/models/org/texts/v1/embeddings/"] {
        let (settings, _) = settings(&["--url", &app.url(path), "--image-field", "poster"]).await;
        let embedder = &settings["embedders"]["sidelens"];
        assert_eq!(
            (&embedder["url"], &embedder["request"]["model"]),
            (&app.url(path).into(), &"org/texts".into())
        );
        assert_eq!(embedder["dimensions"], STUB_DIMENSIONS + 1, "{path}");
    }
    // Routes that answer in another shape than the settings say, and none.
    for path in
        ["/tei", "/tei/embed", "/embed-text", "/models/org/texts/tei", "/models/org/texts", "/nonsense"]
    {
        let message = refused(&app.url(path), &[]).await;
        assert!(message.contains(&format!("`{path}`")) && message.contains("/embed"), "{message}");
    }
    let message = refused(&app.url("/models/typo/embed"), &["--model", "demo"]).await;
    assert!(message.contains("there is no model `typo`"), "{message}");
}

#[tokio::test]
async fn reads_the_model_that_is_named_when_the_service_is_down() {
    let url = closed_address().await;
    let (settings, hints) = settings(&["--url", &url, "--image-field", "poster", "--model", "demo"]).await;
    let embedder = &settings["embedders"]["sidelens"];
    assert_eq!(embedder["request"]["model"], "sidelens-demo");
    assert!(embedder["dimensions"].as_u64().is_some_and(|n| n > 0));
    assert!(hints.contains("Connection refused"), "{hints}");
    let message = refused(&format!("{url}/models/other/embed"), &["--model", "demo"]).await;
    assert!(message.contains("`other`"), "{message}");
}

#[tokio::test]
async fn the_second_listener_says_where_the_model_is() {
    let app = TestApp::spawn(|config| {
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"))
    })
    .await;
    let message = refused(&app.admin_url(""), &[]).await;
    assert!(message.contains("vectors and /info are at `server.listen`; give the address"), "{message}");
}

#[tokio::test]
async fn guesses_no_model() {
    let message = refused(&closed_address().await, &[]).await;
    assert!(message.contains("Connection refused") && message.contains("`--model`"), "{message}");
    let message = refused("http://no.such.host.invalid", &[]).await;
    assert!(message.contains("no.such.host.invalid") && message.contains("`--model`"), "{message}");
    // What answers is believed or refused.
    for (status, body) in [("200 OK", "<html>"), ("502 Bad Gateway", "away"), ("401 Unauthorized", "{}")] {
        let url =
            server(move |stream, _| async move { respond(stream, status, "", body.as_bytes()).await }).await;
        let message = refused(&url, &["--model", "demo"]).await;
        assert!(message.contains(&url) && message.contains("is it Sidelens"), "{status}: {message}");
    }
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
