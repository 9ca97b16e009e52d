//! Vectors against those that `transformers` gives (`tools/fixtures/clip_reference.py`).
//!
//! The checkpoints are random, so they react to pixel noise far more than trained ones do: passing here is
//! the harder test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sidelens::{
    config::{DeviceChoice, DtypeChoice, ModelConfig, ModelSource},
    domain::{Background, Embedding, Prepared},
    imaging::{self, ImagingOptions},
    runtime::{self, LoadedModel},
    text::Tokenizer,
};

use crate::support::say;

#[derive(Deserialize)]
struct Expected {
    dimensions: usize,
    tokenizer: String,
    texts: Vec<Text>,
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    vector: Vec<f32>,
}

#[derive(Deserialize)]
struct Image {
    file: String,
    strict: bool,
    vector: Vec<f32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip")
}

/// The checkpoints that were made for this test, each in a folder of its own.
fn checkpoints() -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(fixtures())
        .expect("fixtures are there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.join("expected.json").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 3, "expected several shapes, found {found:?}");
    found
}

fn expected(checkpoint: &Path) -> Expected {
    serde_json::from_slice(&fs::read(checkpoint.join("expected.json")).expect("readable")).expect("valid")
}

/// A model directory as users have it: the checkpoint's files and the tokenizer, which fixtures share.
fn model_directory(checkpoint: &Path, tokenizer: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in ["config.json", "preprocessor_config.json", "model.safetensors"] {
        fs::copy(checkpoint.join(file), dir.path().join(file)).expect("copied");
    }
    fs::copy(checkpoint.join(tokenizer), dir.path().join("tokenizer.json")).expect("copied");
    dir
}

fn load(dir: &Path, dtype: DtypeChoice) -> LoadedModel {
    let source = ModelSource::Directory(dir.into());
    runtime::load(&ModelConfig { source, device: DeviceChoice::Cpu, dtype, ..ModelConfig::default() })
        .expect("loads")
}

/// Runs every text and picture of a checkpoint and returns (what, strict, cosine) for each.
fn cosines(checkpoint: &Path, dtype: DtypeChoice) -> Vec<(String, bool, f32)> {
    let expected = expected(checkpoint);
    let dir = model_directory(checkpoint, &expected.tokenizer);
    let mut model = load(dir.path(), dtype);
    assert_eq!(model.spec.dimensions, expected.dimensions);
    let tokenizer = Tokenizer::new(
        model.tokenizer.as_ref().expect("CLIP has texts"),
        model.spec.text.as_ref().expect("CLIP has texts"),
    )
    .expect("reads");
    let spec = model.spec.image.clone().expect("CLIP has pictures");
    let options = ImagingOptions { background: Background::WHITE, max_pixels: 50_000_000 };

    let mut texts = Vec::new();
    for text in &expected.texts {
        let tokens = tokenizer.encode(&text.text).expect("encodes");
        assert_eq!(tokens.ids, text.ids, "token ids of {:?}", text.text);
        texts.push(Prepared::Tokens(tokens));
    }
    let pictures: Vec<_> = expected
        .images
        .iter()
        .map(|image| {
            let encoded = fs::read(checkpoint.join(&image.file)).expect("readable");
            Prepared::Pixels(imaging::prepare(&encoded, &spec, &options).expect("decodes"))
        })
        .collect();

    // Batches of several lengths, since padding must not show.
    let mut embed = |inputs: &[Prepared]| -> Vec<Embedding> {
        inputs.chunks(7).flat_map(|batch| model.backend.embed(batch).expect("embeds")).collect()
    };
    let (texts, pictures) = (embed(&texts), embed(&pictures));
    let cosine = |ours: &Embedding, theirs: &[f32]| {
        ours.cosine(&Embedding::normalized(theirs.to_vec()).expect("a unit vector"))
    };
    let texts = texts.iter().zip(&expected.texts).map(|(v, t)| (t.text.clone(), true, cosine(v, &t.vector)));
    let pictures =
        pictures.iter().zip(&expected.images).map(|(v, i)| (i.file.clone(), i.strict, cosine(v, &i.vector)));
    texts.chain(pictures).collect()
}

fn check(dtype: DtypeChoice, strict_at_least: f32, others_at_least: f32) {
    for checkpoint in checkpoints() {
        let name = checkpoint.file_name().expect("a name").to_string_lossy().into_owned();
        let cosines = cosines(&checkpoint, dtype);
        let worst = |strict| cosines.iter().filter(|c| c.1 == strict).map(|c| c.2).fold(1.0, f32::min);
        let (strict, other) = (worst(true), worst(false));
        say(&format!("parity of {name}, {dtype:?}: worst strict {strict:.7}, worst other {other:.7}"));
        for (what, strict, cosine) in &cosines {
            let least = if *strict { strict_at_least } else { others_at_least };
            assert!(*cosine >= least, "{name}: {what}: cosine {cosine} is below {least}");
        }
    }
}

#[test]
fn fp32_vectors_are_those_of_the_reference() {
    check(DtypeChoice::Fp32, 0.999_999, 0.9999);
}

#[test]
fn bf16_vectors_stay_close() {
    check(DtypeChoice::Bf16, 0.999, 0.999);
}

#[test]
fn token_ids_are_those_of_the_reference() {
    #[derive(Deserialize)]
    struct Row {
        text: String,
        ids: Vec<u32>,
    }
    let dir = fixtures().join("tokenizer");
    let json = fs::read(dir.join("tokenizer.json")).expect("readable");
    let spec = sidelens::domain::TextSpec::new(77);
    let tokenizer = Tokenizer::new(&sidelens::domain::TokenizerFile::Json(json), &spec).expect("reads");
    let rows = fs::read(dir.join("expected_ids.json")).expect("readable");
    let rows: Vec<Row> = serde_json::from_slice(&rows).expect("valid");
    assert!(rows.len() >= 248, "{} strings", rows.len());
    for row in rows {
        assert_eq!(tokenizer.encode(&row.text).expect("encodes").ids, row.ids, "{:?}", row.text);
    }
}

#[test]
fn the_fingerprint_follows_every_file_and_the_dtype() {
    let checkpoint = checkpoints().remove(0);
    let tokenizer = expected(&checkpoint).tokenizer;
    let fingerprint = |change: &dyn Fn(&Path), dtype| {
        let dir = model_directory(&checkpoint, &tokenizer);
        change(dir.path());
        load(dir.path(), dtype).fingerprint
    };
    let append = |file: &'static str| {
        move |dir: &Path| {
            let mut text = fs::read(dir.join(file)).expect("readable");
            text.extend_from_slice(b"\n");
            fs::write(dir.join(file), text).expect("written");
        }
    };
    let one_weight = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let mut bytes = fs::read(&path).expect("readable");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(path, bytes).expect("written");
    };
    let base = fingerprint(&|_| {}, DtypeChoice::Fp32);
    assert_eq!(base, fingerprint(&|_| {}, DtypeChoice::Fp32), "the same files give the same fingerprint");
    let others = [
        fingerprint(&|_| {}, DtypeChoice::Bf16),
        fingerprint(&append("config.json"), DtypeChoice::Fp32),
        fingerprint(&append("preprocessor_config.json"), DtypeChoice::Fp32),
        fingerprint(&append("tokenizer.json"), DtypeChoice::Fp32),
        fingerprint(&one_weight, DtypeChoice::Fp32),
    ];
    for (i, other) in others.iter().enumerate() {
        assert!(*other != base && !others[..i].contains(other), "change {i} does not show");
    }
}
