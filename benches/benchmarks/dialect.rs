//! The wire: bodies as Meilisearch sends them, pretty-printed, and answers.
//!
//! What is parsed is cut up, so each round parses a copy of its own, which is not timed.

use std::hint::black_box;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput};
use serde_json::{Value, json};
use sidelens::{
    dialect::{Answer, Dialect, Meilisearch},
    domain::{EmbedResponse, Embedding, Usage},
};

const PHOTO: &[u8] = include_bytes!("../../src/load/photo.jpg");

/// Name, pictures of 55 KB as data URIs.
const BODIES: &[(&str, usize)] = &[("1 picture", 1), ("10 pictures", 10), ("1370 pictures, 100 MB", 1370)];

/// Name, vectors, components of each.
const ANSWERS: &[(&str, usize, usize)] =
    &[("10 of 512", 10, 512), ("10 of 768", 10, 768), ("100 of 1152", 100, 1152)];

/// A body of pictures.
fn pictures(n: usize) -> Vec<u8> {
    let uri = format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(PHOTO));
    body((0..n).map(|_| json!({ "image": uri })).collect())
}

fn body(inputs: Vec<Value>) -> Vec<u8> {
    serde_json::to_vec_pretty(&json!({ "inputs": inputs, "model": "m" })).expect("plain data")
}

/// Unit vectors of components of all signs and sizes.
pub fn vectors(n: usize, dimensions: usize) -> Vec<Embedding> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let vector = |_| Embedding::normalized((0..dimensions).map(|_| next()).collect()).expect("not zero");
    (0..n).map(vector).collect()
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let text = body(vec![json!("a red shoe with a white sole, size 42")]);
    let bodies = BODIES.iter().map(|(name, n)| (*name, pictures(*n)));
    for (name, body) in [("1 text", text)].into_iter().chain(bodies) {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            let copy = || BytesMut::from(&body[..]);
            let parse = |body| Meilisearch.parse(body).expect("a good body");
            bencher.iter_batched(copy, parse, BatchSize::PerIteration);
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("render");
    for &(name, n, dimensions) in ANSWERS {
        let response = EmbedResponse {
            model: "m".into(),
            embeddings: vectors(n, dimensions),
            errors: vec![],
            usage: Usage::default(),
        };
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| Meilisearch.render(black_box(&response), Answer::Data));
        });
    }
    group.finish();
}
