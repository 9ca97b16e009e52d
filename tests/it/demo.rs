//! What the demo model can do, measured through the running service on pictures that it never saw
//! (`tests/fixtures/demo-world`): 500 of each sort, 100 candidates at a time.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};
use sidelens::{
    config::{DeviceChoice, DtypeChoice, ModelConfig},
    runtime,
};

use crate::support::{TestApp, say};

const CANDIDATES: usize = 100;

#[derive(Deserialize)]
struct Row {
    image: String,
    caption: Option<String>,
    copy: Option<String>,
}

fn rows(file: &str) -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/demo-world").join(file);
    let rows: Vec<Row> = fs::read_to_string(path)
        .expect("readable")
        .lines()
        .map(|line| serde_json::from_str(line).expect("valid"))
        .collect();
    assert_eq!(rows.len(), 500);
    rows
}

async fn demo(dtype: DtypeChoice) -> TestApp {
    let config = ModelConfig { device: DeviceChoice::Cpu, dtype, ..ModelConfig::default() };
    TestApp::spawn_with(runtime::load(&config).expect("the demo model loads"), |_| {}).await
}

/// Sends items as Meilisearch would, in one shape for all, and returns their vectors.
async fn embed(app: &TestApp, items: Vec<Value>) -> Vec<Vec<f32>> {
    let mut vectors = Vec::new();
    for chunk in items.chunks(50) {
        let (status, body) = app.post("/embed", json!({ "inputs": chunk }).to_string()).await;
        assert_eq!(status, 200, "{body}");
        let data = body["data"].as_array().expect("a list");
        vectors.extend(
            data.iter().map(|row| serde_json::from_value(row["embedding"].clone()).expect("numbers")),
        );
    }
    vectors
}

/// The share of queries whose own candidate is the nearest of its block.
fn recall(queries: &[Vec<f32>], candidates: &[Vec<f32>]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let hits = queries.iter().enumerate().filter(|(i, query)| {
        let block = i / CANDIDATES * CANDIDATES;
        let best = (block..block + CANDIDATES)
            .max_by(|&a, &b| dot(query, &candidates[a]).total_cmp(&dot(query, &candidates[b])));
        best == Some(*i)
    });
    hits.count() as f64 / queries.len() as f64
}

async fn text_to_image(app: &TestApp, file: &str) -> f64 {
    let rows = rows(file);
    let captions = rows.iter().map(|row| json!({ "text": row.caption.as_deref().expect("a caption") }));
    let images = rows.iter().map(|row| json!({ "image_base64": row.image }));
    let (captions, images) = (captions.collect(), images.collect());
    recall(&embed(app, captions).await, &embed(app, images).await)
}

async fn image_to_image(app: &TestApp) -> f64 {
    let rows = rows("copies.jsonl");
    let copies =
        rows.iter().map(|row| json!({ "image_base64": row.copy.as_deref().expect("a copy") })).collect();
    let images = rows.iter().map(|row| json!({ "image_base64": row.image })).collect();
    recall(&embed(app, copies).await, &embed(app, images).await)
}

#[tokio::test]
async fn the_demo_model_finds_what_it_never_saw() {
    let app = demo(DtypeChoice::Fp32).await;
    for (what, found, least) in [
        ("single things", text_to_image(&app, "singles.jsonl").await, 0.95),
        ("two things with a relation", text_to_image(&app, "scenes.jsonl").await, 0.85),
        ("copies", image_to_image(&app).await, 0.98),
    ] {
        say(&format!("demo model, {what}: recall@1 of {CANDIDATES} is {found:.3} (at least {least})"));
        assert!(found >= least, "{what}: recall@1 {found:.3} is below {least}");
    }
}

#[tokio::test]
async fn bf16_finds_as_much() {
    let app = demo(DtypeChoice::Bf16).await;
    let found = text_to_image(&app, "singles.jsonl").await;
    assert!(found >= 0.95, "recall@1 {found:.3}");
}
