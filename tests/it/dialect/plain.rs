//! Uploads and the plainest JSON, as `curl`, a browser's form or a small service's client send them.

use std::fs;

use serde_json::{Value, json};

use crate::support::{STUB_DIMENSIONS, TestApp, answer};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(format!("{}/tests/fixtures/images/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a fixture")
}

/// A form as browsers write it: each part's name, file name if it has one, and content.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file_name, content) in parts {
        let file_name = file_name.map(|name| format!("; filename=\"{name}\"\r\nContent-Type: image/jpeg"));
        let disposition = format!("form-data; name=\"{name}\"{}", file_name.as_deref().unwrap_or_default());
        body.extend(format!("--fOrM\r\nContent-Disposition: {disposition}\r\n\r\n").bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--fOrM--\r\n");
    body
}

async fn upload(app: &TestApp, path: &str, body: Vec<u8>) -> (u16, Value) {
    let request = app.client.post(app.url(path)).header("content-type", "multipart/form-data; boundary=fOrM");
    answer(request.body(body)).await
}

#[tokio::test]
async fn an_upload_has_the_vector_of_the_same_picture_sent_otherwise() {
    let app = TestApp::spawn(|_| {}).await;
    let photo = fixture("photo_422_odd.jpg");
    let (status, single) = upload(&app, "/embed", form(&[("file", Some("a.jpg"), &photo)])).await;
    assert_eq!(status, 200, "{single}");
    assert_eq!(single["embedding"].as_array().map(Vec::len), Some(STUB_DIMENSIONS), "{single}");

    let base64 = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &photo);
    let (_, as_base64) = app.post("/embed", json!({"input": {"image": base64}}).to_string()).await;
    assert_eq!(single["embedding"], as_base64["data"][0]["embedding"]);

    let other = fixture("tiny_3x2.png");
    let parts: [(&str, Option<&str>, &[u8]); 3] =
        [("file", Some("b.png"), &other), ("file", Some("a.jpg"), &photo), ("text", None, b"a red house")];
    for path in ["/embed", "/", "/embed/", "/models/stub/embed"] {
        let (status, several) = upload(&app, path, form(&parts)).await;
        assert_eq!(status, 200, "{path}: {several}");
        let vectors = several["embeddings"].as_array().expect("a vector for each part");
        assert_eq!((vectors.len(), &vectors[1]), (3, &single["embedding"]), "{path}");
    }
}

#[tokio::test]
async fn a_text_alone_is_answered_plainly() {
    let app = TestApp::spawn(|_| {}).await;
    let (status, single) = app.post("/embed-text", r#"{"text": "a red house"}"#).await;
    assert_eq!(status, 200, "{single}");
    let (_, data) = app.post("/embed", r#"{"input": ["a red house"]}"#).await;
    assert_eq!(single["embedding"], data["data"][0]["embedding"]);
    let (_, several) = app.post("/embed-text", r#"{"texts": ["a red house", "b"]}"#).await;
    assert_eq!(several["embeddings"][0], single["embedding"], "{several}");
}

#[tokio::test]
async fn broken_uploads_are_refused_and_named() {
    let app = TestApp::spawn(|_| {}).await;
    let photo = fixture("photo_422_odd.jpg");
    let parts: [(&str, Option<&str>, &[u8]); 2] =
        [("file", Some("a.jpg"), &photo), ("file", Some("b.jpg"), b"SECRET")];
    let (status, body) = upload(&app, "/embed", form(&parts)).await;
    assert_eq!(
        (status, &body["error"]["index"], &body["error"]["kind"]),
        (400, &json!(1), &json!("not_an_image"))
    );
    let cut = form(&parts);
    for wrong in [b"SECRET".to_vec(), form(&[]), cut[..cut.len() - 20].to_vec()] {
        let (status, body) = upload(&app, "/embed", wrong).await;
        assert_eq!((status, &body["error"]["type"]), (400, &json!("invalid_request")), "{body}");
        assert!(!body.to_string().contains("SECRET"), "{body}");
    }
}
