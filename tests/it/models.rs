//! Several models in one process: who answers what.

use serde_json::json;
use sidelens::{
    config::{Config, ModelEntry, ModelSource},
    domain::Prompts,
    runtime::{LoadedModel, stub::stub_model},
};

use crate::support::TestApp;

/// A stub under a name of its own, with so many components.
fn named(name: &str, dimensions: usize) -> LoadedModel {
    let mut model = stub_model(dimensions);
    model.spec.name = name.into();
    model
}

/// As many entries as models; what they name was loaded by the test.
fn list(n: usize) -> impl FnOnce(&mut Config) {
    move |config| {
        let entry = ModelEntry { source: Some(ModelSource::Demo), ..ModelEntry::default() };
        config.models = vec![entry; n];
    }
}

async fn two() -> TestApp {
    TestApp::spawn_many(vec![named("first", 4), named("org/second", 6)], list(2)).await
}

async fn n_components(app: &TestApp, path: &str, model: Option<&str>) -> usize {
    let mut body = json!({"input": ["a red house"]});
    if let Some(model) = model {
        body["model"] = model.into();
    }
    let (status, answer) = app.post(path, body.to_string()).await;
    assert_eq!(status, 200, "{path} {model:?}: {answer}");
    let vectors = answer.get("data").unwrap_or(&answer);
    let first = vectors[0].get("embedding").unwrap_or(&vectors[0]);
    first.as_array().expect("a vector").len()
}

#[tokio::test]
async fn the_body_or_the_path_chooses_and_the_first_is_the_default() {
    let app = two().await;
    for (path, model, expected) in [
        ("/embed", None, 4),
        ("/embed", Some("first"), 4),
        ("/embed", Some("org/second"), 6),
        ("/v1/embeddings", Some("org/second"), 6),
        ("/models/first/embed", None, 4),
        ("/models/org/second/embed", None, 6),
        ("/models/org/second/embed/", None, 6),
        ("/models/org%2Fsecond/embed", None, 6),
        ("/models/org/second/v1/embeddings", None, 6),
        ("/models/org/second/tei/embed", None, 6),
        // The path is the clearer word.
        ("/models/org/second/embed", Some("first"), 6),
        ("/models/org/second/embed", Some("clip-b32"), 6),
    ] {
        assert_eq!(n_components(&app, path, model).await, expected, "{path} {model:?}");
    }
}

#[tokio::test]
async fn an_unknown_name_is_final_and_lists_the_known_ones() {
    let app = two().await;
    let body = json!({"model": "clip-b32", "input": ["a"]}).to_string();
    for (path, body) in [("/embed", body.as_str()), ("/models/clip-b32/embed", r#"{"input": ["a"]}"#)] {
        let (status, answer) = app.post(path, body).await;
        assert_eq!(status, 400, "{answer}");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert_eq!(message, "there is no model `clip-b32`; this service has `first`, `org/second`");
    }
    assert_eq!(app.get("/models/clip-b32/info").await.0, 400);
}

#[tokio::test]
async fn one_model_answers_to_every_name_in_a_body() {
    let app = TestApp::spawn(|_| {}).await;
    assert_eq!(n_components(&app, "/embed", Some("voyage-multimodal-3")).await, 8);
    assert_eq!(n_components(&app, "/models/stub/embed", None).await, 8);
    assert_eq!(app.post("/models/other/embed", r#"{"input": ["a"]}"#).await.0, 400);
}

#[tokio::test]
async fn the_list_and_the_facts_are_those_of_each_model() {
    let app = two().await;
    let (status, list) = app.get("/v1/models").await;
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    let facts = |i: usize| {
        let model = &list["data"][i];
        (model["id"].clone(), model["dimensions"].clone(), model["default"].clone(), model["ready"].clone())
    };
    assert_eq!(facts(0), (json!("first"), json!(4), json!(true), json!(true)));
    assert_eq!(facts(1), (json!("org/second"), json!(6), json!(false), json!(true)));
    assert_eq!(list["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(app.get("/info").await.1["model"], "first");
    assert_eq!(app.get("/models/org/second/info").await.1["dimensions"], 6);
    assert_eq!(app.metric("sidelens_ready").await, 1.0);
}

#[tokio::test]
async fn each_model_has_limits_of_its_own() {
    let app = TestApp::spawn_many(vec![named("wide", 4), named("narrow", 4)], |config| {
        list(2)(config);
        config.models[1].batch.max_queue_items = Some(2);
    })
    .await;
    assert_eq!(app.get("/models/narrow/info").await.1["limits"]["max_queue_items"], 2);
    let body = json!({"input": ["a", "b", "c"]}).to_string();
    assert_eq!(app.post("/models/wide/embed", body.as_str()).await.0, 200);
    let (status, answer) = app.post("/models/narrow/embed", body).await;
    assert_eq!(status, 400);
    assert!(answer.to_string().contains("max_queue_items"), "{answer}");
}

#[tokio::test]
async fn what_a_text_is_for_chooses_the_prompt() {
    let mut model = stub_model(8);
    let text = model.spec.text.as_mut().expect("the stub has texts");
    text.prompts = Prompts { query: "red ".into(), document: "blue ".into(), default: String::new() };
    let app = TestApp::spawn_with(model, |_| {}).await;
    let vector = async |input: &str, more: &str| {
        let (status, answer) = app.post("/embed", format!(r#"{{"input": ["{input}"]{more}}}"#)).await;
        assert_eq!(status, 200, "{answer}");
        answer["data"][0]["embedding"].clone()
    };
    let query = vector("house", r#", "input_type": "search_query""#).await;
    let document = vector("house", r#", "task": "retrieval.passage""#).await;
    let plain = vector("house", "").await;
    assert!(query != document && document != plain && plain != query);
    assert_eq!(query, vector("red house", "").await);
    assert_eq!(document, vector("blue house", "").await);

    // An item's own word counts before the body's.
    let body = json!({"input_type": "document", "inputs": [
        {"text": "house", "input_type": "query"},
        {"content": [{"type": "text", "text": "house"}], "input_type": "search_query"},
        {"text": "house", "input_type": null},
        "house",
    ]});
    let (status, answer) = app.post("/embed", body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let found: Vec<_> = (0..4).map(|i| answer["data"][i]["embedding"].clone()).collect();
    assert_eq!(found, [query.clone(), query, document.clone(), document]);
    let (status, answer) = app.post("/embed", r#"{"inputs": [{"text": "a", "input_type": 3}]}"#).await;
    let message = answer["error"]["message"].as_str().expect("a message");
    assert!(status == 400 && message.starts_with("item 0: `input_type` is a number"), "{answer}");
}
