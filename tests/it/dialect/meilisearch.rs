//! The contract with Meilisearch 1.50, request by request as its `rest` embedder sends them: its headers,
//! pretty-printed bodies, a new connection each.

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sidelens::{config::Config, domain::OnItemError};

use crate::support::TestApp;

/// Vectors of the stub model.
const DIMENSIONS: usize = 8;
/// A PNG of one white pixel.
const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4//8/AAX+Av4zEpUUAAAAAElFTkSuQmCC";

/// Posts as `ureq` does on Meilisearch's behalf.
async fn post(app: &TestApp, path: &str, body: &Value) -> (u16, Value) {
    let pretty = serde_json::to_string_pretty(body).unwrap();
    send(request(app, path, pretty)).await
}

fn request(app: &TestApp, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
    app.client
        .post(app.url(path))
        .header("content-type", "application/json")
        // Settings with a `headers` entry for it repeat the header.
        .header("content-type", "application/json; charset=utf-8")
        .header("accept-encoding", "gzip")
        .header("user-agent", "ureq/3.3.0")
        .header("accept", "*/*")
        .body(body)
}

async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    assert!(response.headers().contains_key("x-request-id"));
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

/// The vectors under `data`, checked as Meilisearch does: all there, of one length; and finite, unit, in order.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let rows = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
    rows.iter()
        .enumerate()
        .map(|(i, row)| {
            assert_eq!((&row["index"], &row["object"]), (&json!(i), &json!("embedding")));
            unit(&row["embedding"])
        })
        .collect()
}

fn unit(vector: &Value) -> Vec<f32> {
    let vector: Vec<f32> = serde_json::from_value(vector.clone()).unwrap();
    assert_eq!(vector.len(), DIMENSIONS);
    let norm: f32 = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((norm - 1.0).abs() < 1e-5, "norm {norm}");
    vector
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn picture() -> Value {
    json!({"content": [{"type": "image_base64", "image_base64": format!("data:image/png;base64,{PIXEL}")}]})
}

fn broken_picture() -> Value {
    json!({"content": [{"type": "image_base64", "image_base64": "data:image/png;base64,AAAA"}]})
}

async fn one(app: &TestApp, item: Value) -> Vec<f32> {
    let (status, answer) = post(app, "/embed", &json!({"input": [item]})).await;
    assert_eq!(status, 200, "{answer}");
    vectors(&answer).remove(0)
}

#[actix_web::test]
async fn answers_every_recorded_body() {
    let app = TestApp::spawn(|_| {}).await;
    for (n, body) in [
        (2, json!({"model": "clip-b32", "input": ["Heat. A group of...", "Ariel. ..."]})),
        (1, json!({"model": "clip-b32", "input": ["car chase"]})),
        (1, json!({"model": "clip-b32", "input": ["test"]})),
        (3, json!({"input": ["test", "a brave dog", "This is a sample sentence."]})),
        (1, json!({"model": "clip-b32", "inputs": [{"content": [{"type": "text", "text": "red shoe"}]}]})),
        (2, json!({"model": "clip-b32", "inputs": [picture(), "bare"]})),
        (2, json!({"model": "embed-v4", "texts": ["a", "b"], "input_type": "search_document"})),
        (1, json!({"input": "one"})),
        (1, json!("a bare string")),
        (1, json!({"content": [{"type": "text", "text": ""}]})),
        (1, json!({"image": PIXEL, "text": "and a caption"})),
        (0, json!({"input": []})),
    ] {
        for path in [
            "/",
            "/embed",
            "/embed/",
            "/v1/embeddings",
            "/v1/embeddings/",
            "/v1/multimodalembeddings",
            "/v1/multimodalembeddings/",
            "/v1/multimodal-embeddings",
            "/v1/multimodal-embeddings/",
        ] {
            let (status, answer) = post(&app, path, &body).await;
            assert_eq!(status, 200, "{path} {body}: {answer}");
            assert_eq!(vectors(&answer).len(), n, "{path} {body}");
            assert_eq!(answer["object"], "list");
            assert!(answer["model"].is_string() && answer["usage"]["total_tokens"].is_u64(), "{answer}");
            assert!(answer.get("errors").is_none());
        }
    }
}

#[actix_web::test]
async fn answers_in_the_templates_of_cohere_and_hugging_face() {
    let app = TestApp::spawn(|_| {}).await;
    let (_, plain) = post(&app, "/embed", &json!({"input": ["a", "b"]})).await;
    let expected: Vec<Value> = vectors(&plain).into_iter().map(|vector| json!(vector)).collect();
    let (_, cohere) = post(&app, "/embed", &json!({"texts": ["a", "b"], "input_type": "search_query"})).await;
    assert_eq!(cohere["embeddings"].as_array().unwrap().len(), 2);
    for path in ["/tei", "/tei/", "/tei/embed", "/tei/embed/"] {
        let (status, bare) = post(&app, path, &json!({"inputs": ["a", "b"], "model": "m"})).await;
        assert_eq!(status, 200);
        for answer in [&bare, &cohere["embeddings"]] {
            let found: Vec<Value> = answer.as_array().unwrap().iter().map(|v| json!(unit(v))).collect();
            assert_eq!(found, expected);
        }
    }
}

#[actix_web::test]
async fn answers_in_base64_where_openai_is_asked_for_it() {
    let app = TestApp::spawn(|_| {}).await;
    let body = |format: &str| json!({"model": "m", "input": ["a", "b"], "encoding_format": format});
    let (_, plain) = post(&app, "/v1/embeddings", &body("float")).await;
    let (status, encoded) = post(&app, "/v1/embeddings", &body("base64")).await;
    assert_eq!(status, 200, "{encoded}");
    for (i, expected) in vectors(&plain).iter().enumerate() {
        let bytes = BASE64_STANDARD.decode(encoded["data"][i]["embedding"].as_str().unwrap()).unwrap();
        let read = |four: &[u8]| f32::from_le_bytes(four.try_into().unwrap());
        let found: Vec<f32> = bytes.chunks_exact(4).map(read).collect();
        assert_eq!(&found, expected);
    }
    let (status, refused) = post(&app, "/v1/embeddings", &body("int8")).await;
    assert_eq!(status, 400);
    assert!(refused.to_string().contains("`float` or `base64`"), "{refused}");
}

#[actix_web::test]
async fn forty_connections_of_ten_keep_count_and_order() {
    let app = TestApp::spawn(|_| {}).await;
    let texts: Vec<String> = (0..400).map(|i| format!("document number {i}")).collect();
    let bodies: Vec<Value> = texts.chunks(10).map(|ten| json!({"model": "m", "input": ten})).collect();
    let answers = join_all(bodies.iter().map(|body| post(&app, "/v1/embeddings", body))).await;
    let mut found = Vec::new();
    for (status, answer) in &answers {
        assert_eq!(*status, 200, "{answer}");
        let ten = vectors(answer);
        assert_eq!(ten.len(), 10);
        found.extend(ten);
    }
    // Each alone has the vector that it has in the crowd: none is in another's place.
    for i in (0..400).step_by(37) {
        let alone = one(&app, json!(texts[i])).await;
        assert!(cosine(&alone, &found[i]) > 0.9999, "{i}");
        let neighbour = &found[(i + 1) % 400];
        assert!(cosine(&alone, neighbour) < 0.9999, "{i} and its neighbour are alike");
    }
}

#[actix_web::test]
async fn the_same_input_has_the_same_bits_whatever_its_shape() {
    let app = TestApp::spawn(|_| {}).await;
    let text = one(&app, json!("red shoe")).await;
    for item in [json!({"text": "red shoe"}), json!({"content": [{"type": "text", "text": "red shoe"}]})] {
        assert_eq!(one(&app, item).await, text);
    }
    let image = one(&app, picture()).await;
    let data_uri = format!("data:image/png;base64,{PIXEL}");
    for item in [
        json!({"image": PIXEL}),
        json!({"image": data_uri}),
        json!({"image_base64": PIXEL}),
        json!({"image_url": data_uri}),
        json!({"image_url": {"url": data_uri}}),
    ] {
        assert_eq!(one(&app, item).await, image);
    }
}

#[actix_web::test]
async fn text_and_picture_give_the_normalised_weighted_mean() {
    let app = TestApp::spawn(|_| {}).await;
    let text = one(&app, json!("in blue")).await;
    let image = one(&app, picture()).await;
    for (weights, item) in [
        ([1.0, 1.0], json!({"text": "in blue", "image": PIXEL})),
        (
            [3.0, 0.5],
            json!({"content": [
                {"type": "text", "text": "in blue", "weight": 3},
                {"type": "image_base64", "image_base64": PIXEL, "weight": 0.5},
            ]}),
        ),
    ] {
        let mean: Vec<f32> = text.iter().zip(&image).map(|(t, i)| weights[0] * t + weights[1] * i).collect();
        let norm = cosine(&mean, &mean).sqrt();
        let found = one(&app, item).await;
        assert!(cosine(&mean, &found) / norm > 0.99999, "{weights:?}");
    }
}

#[actix_web::test]
async fn statuses_follow_their_consequence() {
    let app = TestApp::spawn(|_| {}).await;
    for (expected, kind, body) in [
        (400, None, json!({"input": ["a", 4]})),
        (400, None, json!({"nothing": "here"})),
        (400, None, json!({"input": ["a"], "texts": ["a"]})),
        (
            400,
            Some("empty_image"),
            json!({"inputs": ["a", {"content": [{"type": "image_url", "image_url": ""}]}]}),
        ),
        (400, Some("not_an_image"), json!({"inputs": ["a", broken_picture()]})),
        (400, Some("invalid_base64"), json!({"inputs": ["a", {"image_base64": "%%%"}]})),
        (400, Some("invalid_url"), json!({"inputs": ["a", {"image_url": "ftp://example.org/a.png"}]})),
        (
            400,
            Some("blocked_address"),
            json!({"inputs": ["a", {"image_url": "http://127.0.0.1:9/a.png?key=s3cret"}]}),
        ),
    ] {
        let (status, answer) = post(&app, "/embed", &body).await;
        assert_eq!(status, expected, "{body}: {answer}");
        let text = answer.to_string();
        assert!(text.len() <= 500 && !text.contains("s3cret"), "{text}");
        if let Some(kind) = kind {
            assert_eq!(
                (&answer["error"]["index"], &answer["error"]["kind"]),
                (&json!(1), &json!(kind)),
                "{text}"
            );
            assert_eq!(answer["error"]["type"], "item_failed");
        } else {
            assert_eq!(answer["error"]["type"], "invalid_request");
        }
    }
    let (status, answer) = send(request(&app, "/embed", "{\"input\": [\"s3cret")).await;
    assert!(status == 400 && !answer.to_string().contains("s3cret"), "{answer}");
    let (status, _) = post(&app, "/nowhere", &json!({"input": ["a"]})).await;
    assert_eq!(status, 404);
    let (status, _) = send(app.client.get(app.url("/embed"))).await;
    assert_eq!(status, 405);
}

#[actix_web::test]
async fn a_picture_host_that_refuses_connections_passes_later() {
    let allow = |config: &mut Config| config.fetch.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let app = TestApp::spawn(allow).await;
    // A port that was free a moment ago: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/a.png?key=s3cret");
    let (status, answer) = post(&app, "/embed", &json!({"inputs": [{"image_url": url}]})).await;
    assert_eq!((status, &answer["error"]["type"]), (502, &json!("upstream")), "{answer}");
    assert!(!answer.to_string().contains("s3cret"), "{answer}");
}

#[actix_web::test]
async fn a_dimensions_mismatch_names_both_numbers() {
    let app = TestApp::spawn(|_| {}).await;
    let (status, answer) = post(&app, "/embed", &json!({"input": ["a"], "dimensions": 512})).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        status == 400 && message.contains("512") && message.contains(&DIMENSIONS.to_string()),
        "{message}"
    );
    let (status, _) = post(&app, "/embed", &json!({"input": ["a"], "dimensions": DIMENSIONS})).await;
    assert_eq!(status, 200);
}

#[actix_web::test]
async fn keys_guard_the_embedding_routes_only() {
    let app = TestApp::spawn(|config| config.auth.api_keys = vec!["right".into(), "other".into()]).await;
    let body = r#"{"input": ["a"]}"#;
    for (expected, keys) in [(401, &[][..]), (401, &["wrong"]), (200, &["right"]), (200, &["wrong", "other"])]
    {
        let mut request = request(&app, "/embed", body);
        for key in keys {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let (status, answer) = send(request).await;
        assert_eq!(status, expected, "{keys:?}: {answer}");
        if expected == 401 {
            assert_eq!(answer["error"]["type"], "unauthorized");
            assert!(!answer.to_string().contains("wrong"));
        }
    }
    for path in ["/health", "/ready", "/info"] {
        assert_eq!(send(app.client.get(app.url(path))).await.0, 200, "{path}");
    }
}

#[actix_web::test]
async fn the_placeholder_policy_answers_and_lists_what_failed() {
    let app = TestApp::spawn(|config| config.on_item_error = OnItemError::Placeholder).await;
    let body = json!({"inputs": ["a", broken_picture(), picture(), {"image": ""}]});
    let (status, answer) = post(&app, "/embed", &body).await;
    assert_eq!(status, 200, "{answer}");
    let found = vectors(&answer);
    assert_eq!(found.len(), 4);
    assert_eq!(found[1], found[3], "there is one placeholder");
    let failed: Vec<_> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            assert!(error["message"].is_string());
            (error["index"].as_u64().unwrap(), error["kind"].as_str().unwrap())
        })
        .collect();
    assert_eq!(failed, [(1, "not_an_image"), (3, "empty_image")]);
    assert_eq!(found[0], one(&app, json!("a")).await, "a broken neighbour changes nothing");
}

#[actix_web::test]
async fn a_search_never_gets_the_placeholder() {
    let app = TestApp::spawn(|config| config.on_item_error = OnItemError::Placeholder).await;
    let search = json!({"image": "", "input_type": "query"});
    for body in [
        json!({"inputs": [&search]}),
        json!({"inputs": [picture(), search], "input_type": "document"}),
        json!({"inputs": [broken_picture()], "input_type": "search_query"}),
    ] {
        let (status, answer) = post(&app, "/embed", &body).await;
        assert_eq!((status, &answer["error"]["type"]), (400, &json!("item_failed")), "{body}: {answer}");
    }
    let document = json!({"inputs": [{"image": "", "input_type": "document"}], "input_type": "query"});
    assert_eq!(post(&app, "/embed", &document).await.0, 200);
}

#[actix_web::test]
async fn a_body_of_a_hundred_megabytes_is_read_and_one_more_is_not() {
    let app = TestApp::spawn(|_| {}).await;
    // Ten pictures that are none: the body is what counts here, so the fault must be an item's.
    let body = |bytes: usize| {
        let (head, tail) = (r#"{"input":[{"image_base64":""#, r#""}]}"#);
        format!("{head}{}{tail}", "A".repeat(bytes - head.len() - tail.len()))
    };
    let limit = 100 * 1024 * 1024;
    let (status, answer) = send(request(&app, "/embed", body(limit))).await;
    assert_eq!((status, &answer["error"]["type"]), (400, &json!("item_failed")), "{answer}");
    assert!(answer.to_string().len() <= 500);
    let (status, answer) = send(request(&app, "/embed", body(limit + 1))).await;
    assert_eq!(status, 413, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("server.max_body_bytes"));
}

#[actix_web::test]
async fn info_tells_what_the_settings_need() {
    let app = TestApp::spawn(|_| {}).await;
    let (status, info) = send(app.client.get(app.url("/info"))).await;
    assert_eq!((status, &info["dimensions"]), (200, &json!(DIMENSIONS)), "{info}");
    assert_eq!(info["modalities"], json!(["text", "image"]));
    assert_eq!(info["limits"]["max_body_bytes"], json!(100 * 1024 * 1024));
    for key in ["version", "model", "family", "device", "dtype", "fingerprint"] {
        assert!(info[key].is_string(), "{key}");
    }
    let formats = json!(["jpeg", "png", "gif", "bmp", "webp", "tiff", "avif"]);
    assert_eq!(info["pictures"], json!({"schemes": ["data", "http", "https"], "formats": formats}));
}

#[actix_web::test]
async fn info_tells_where_pictures_may_be_and_what_they_may_be() {
    let root = tempfile::Builder::new().prefix("secret").tempdir().expect("a directory");
    let app = TestApp::spawn(|config| {
        config.image.avif = true;
        config.fetch.files_root = root.path().to_str().expect("UTF-8").into();
        let bucket = |url: &str| {
            let bucket = format!("url = \"{url}\"\noptions = {{skip_signature = \"true\"}}");
            toml::from_str(&bucket).expect("a bucket")
        };
        config.fetch.buckets = ["s3://secret", "gs://secret", "s3://secret-2"].map(bucket).into();
    })
    .await;
    let (_, info) = send(app.client.get(app.url("/info"))).await;
    assert_eq!(info["pictures"]["schemes"], json!(["data", "http", "https", "file", "gs", "s3"]), "{info}");
    assert!(!info.to_string().contains("secret"), "{info}");
    // Each format that it names is read.
    for format in info["pictures"]["formats"].as_array().expect("a list") {
        let file = match format.as_str().expect("a name") {
            "jpeg" => "420.jpg",
            "png" => "animated.png",
            "gif" => "animated.gif",
            "bmp" => "bilevel.bmp",
            "webp" => "animated.webp",
            "tiff" => "bilevel.tif",
            "avif" => "420_full.avif",
            other => panic!("no picture in {other}"),
        };
        let path = format!("{}/tests/fixtures/formats/{file}", env!("CARGO_MANIFEST_DIR"));
        let picture = BASE64_STANDARD.encode(std::fs::read(path).expect("a fixture"));
        let body = json!({ "input": [{ "image_base64": picture }] }).to_string();
        let (status, answer) = send(app.client.post(app.url("/embed")).body(body)).await;
        assert_eq!(status, 200, "{format}: {answer}");
    }
}
