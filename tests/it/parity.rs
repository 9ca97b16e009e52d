//! Vectors against those that `transformers` gives, for every family (`tools/fixtures`).
//!
//! The checkpoints are random, so they react to pixel noise far more than trained ones do: passing here is
//! the harder test.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sidelens::{
    config::{DeviceChoice, DtypeChoice, ModelConfig, ModelSource},
    domain::{Decode, Embedding, InputType, ModelSpec, Pooling, Prepared},
    imaging::{self, ImagingOptions},
    runtime::{self, LoadedModel},
    text::Tokenizer,
};

use crate::support::say;

/// A file of vectors; its format is told in `tools/fixtures/README.md`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    dimensions: usize,
    model: Option<Towers>,
    pooling: Option<Pooling>,
    #[serde(default)]
    shared: BTreeMap<PathBuf, PathBuf>,
    texts: Vec<Text>,
    images: Vec<Image>,
}

/// Two checkpoints that share one space, each in a directory below.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Towers {
    image: PathBuf,
    text: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Purpose {
    Query,
    Document,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
    input_type: Option<Purpose>,
    ids: Vec<u32>,
    vector: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    file: String,
    strict: bool,
    vector: Vec<f32>,
}

/// A checkpoint under one of its settings.
struct Case {
    family: String,
    /// The directory's name, and the setting's where there are several: `small`, `small.cls`.
    checkpoint: String,
    directory: PathBuf,
    expected: Expected,
}

/// What one case came to.
struct Row {
    /// What was loaded.
    spec: ModelSpec,
    /// What each text and picture is, whether it is compared strictly, and its cosine.
    cosines: Vec<(String, bool, f32)>,
    /// Least cosine of the texts and the strict pictures.
    strict: f32,
    /// Least cosine of the other pictures.
    other: f32,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models")
}

/// What is in a directory, in order.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(directory).expect("a directory").map(|e| e.expect("readable").path()).collect();
    found.sort();
    found
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

/// Which setting a file of vectors is for: nothing in `expected.json`, `.cls` in `expected.cls.json`. `None`
/// for other files.
fn setting(path: &Path) -> Option<&str> {
    let setting = name(path).strip_prefix("expected")?.strip_suffix(".json")?;
    (setting.is_empty() || setting.starts_with('.')).then_some(setting)
}

/// Every file of vectors of every checkpoint of every family.
fn cases() -> Vec<Case> {
    let directories = |at: &Path| entries(at).into_iter().filter(|path| path.is_dir());
    let mut found = Vec::new();
    for family in directories(&fixtures()) {
        for directory in directories(&family) {
            for file in entries(&directory) {
                let Some(setting) = setting(&file) else { continue };
                found.push(Case {
                    family: name(&family).into(),
                    checkpoint: format!("{}{setting}", name(&directory)),
                    directory: directory.clone(),
                    expected: read(&file),
                });
            }
        }
    }
    assert!(found.len() >= 3, "expected several checkpoints, found {}", found.len());
    found
}

fn read(expected: &Path) -> Expected {
    let json = fs::read(expected).expect("readable");
    serde_json::from_slice(&json).unwrap_or_else(|error| panic!("{}: {error}", expected.display()))
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for path in entries(from) {
            copy(&path, &to.join(name(&path)));
        }
        return;
    }
    fs::create_dir_all(to.parent().expect("a parent")).expect("created");
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

/// A model directory as users have it: the checkpoint's files and those which fixtures share.
fn model_directory(checkpoint: &Path, expected: &Expected) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for path in entries(checkpoint) {
        if name(&path) != "images" && setting(&path).is_none() {
            copy(&path, &dir.path().join(name(&path)));
        }
    }
    for (destination, source) in &expected.shared {
        copy(&checkpoint.join(source), &dir.path().join(destination));
    }
    dir
}

/// Loads a model under the settings that its expected vectors need.
fn load(dir: &Path, expected: &Expected, device: DeviceChoice, dtype: DtypeChoice) -> LoadedModel {
    let inside = |path: &Path| ModelSource::Directory(dir.join(path));
    let towers = expected.model.as_ref();
    let config = ModelConfig {
        source: if towers.is_some() { ModelSource::Demo } else { inside(Path::new("")) },
        image: towers.map(|towers| inside(&towers.image)),
        text: towers.map(|towers| inside(&towers.text)),
        pooling: expected.pooling,
        device,
        dtype,
        ..ModelConfig::default()
    };
    runtime::load(&config).expect("loads")
}

/// Every text as the model eats it, after its ids are seen to be right.
fn tokens(model: &LoadedModel, texts: &[Text]) -> Vec<Prepared> {
    let Some(spec) = &model.spec.text else { return Vec::new() };
    let tokenizer = model.tokenizer.as_ref().expect("a text model has a tokenizer");
    let tokenizer = Tokenizer::new(tokenizer, spec).expect("reads");
    let encode = |text: &Text| {
        let prompt = spec.prompts.of(text.input_type.as_ref().map(|purpose| match purpose {
            Purpose::Query => InputType::Query,
            Purpose::Document => InputType::Document,
        }));
        let prompted = format!("{prompt}{}", text.text);
        let tokens = tokenizer.encode(&prompted).expect("encodes");
        assert_eq!(tokens.ids, text.ids, "token ids of {:?}", text.text);
        Prepared::Tokens(tokens)
    };
    texts.iter().map(encode).collect()
}

/// Every picture as the model eats it.
fn pixels(model: &LoadedModel, checkpoint: &Path, images: &[Image]) -> Vec<Prepared> {
    let Some(spec) = &model.spec.image else { return Vec::new() };
    let options = ImagingOptions::REFERENCE;
    let prepare = |image: &Image| {
        let encoded = fs::read(checkpoint.join(&image.file)).expect("readable");
        Prepared::Pixels(imaging::prepare(&encoded, spec, &options).expect("decodes"))
    };
    images.iter().map(prepare).collect()
}

/// Runs every text and picture of a case.
fn run(case: &Case, device: DeviceChoice, dtype: DtypeChoice) -> Row {
    let Case { expected, directory, .. } = case;
    let dir = model_directory(directory, expected);
    let mut model = load(dir.path(), expected, device, dtype);
    assert_eq!(model.spec.dimensions, expected.dimensions);
    assert_eq!(model.spec.text.is_some(), !expected.texts.is_empty(), "whether it takes texts");
    assert_eq!(model.spec.image.is_some(), !expected.images.is_empty(), "whether it takes pictures");
    let texts = tokens(&model, &expected.texts);
    let pictures = pixels(&model, directory, &expected.images);

    // Batches of several lengths, since padding must not show.
    let mut embed = |inputs: &[Prepared]| -> Vec<Embedding> {
        inputs.chunks(7).flat_map(|batch| model.engines[0].backend.embed(batch).expect("embeds")).collect()
    };
    let (texts, pictures) = (embed(&texts), embed(&pictures));
    let cosine = |ours: &Embedding, theirs: &[f32]| {
        ours.cosine(&Embedding::normalized(theirs.to_vec()).expect("a unit vector"))
    };
    let texts = texts.iter().zip(&expected.texts).map(|(v, t)| (t.text.clone(), true, cosine(v, &t.vector)));
    let pictures =
        pictures.iter().zip(&expected.images).map(|(v, i)| (i.file.clone(), i.strict, cosine(v, &i.vector)));
    let cosines: Vec<_> = texts.chain(pictures).collect();
    let worst = |strict| cosines.iter().filter(|c| c.1 == strict).map(|c| c.2).fold(1.0, f32::min);
    let (strict, other) = (worst(true), worst(false));
    Row { spec: model.spec, cosines, strict, other }
}

fn report(case: &Case, dtype: DtypeChoice, row: &Row) {
    let Case { family, checkpoint, expected, .. } = case;
    let Row { strict, other, .. } = row;
    let (texts, images) = (expected.texts.len(), expected.images.len());
    say(&format!(
        "parity of {family}/{checkpoint}, {dtype:?}: {texts} texts, {images} pictures, \
         worst strict {strict:.7}, worst other {other:.7}"
    ));
}

fn check(dtype: DtypeChoice, strict_at_least: f32, others_at_least: f32) {
    // What a traced module computes with may not be there in fp16 on a CPU.
    let computes = |case: &Case| dtype != DtypeChoice::Fp16 || case.family != "torchscript";
    for case in cases().into_iter().filter(computes) {
        let row = run(&case, DeviceChoice::Cpu, dtype);
        report(&case, dtype, &row);
        for (what, strict, cosine) in &row.cosines {
            let least = if *strict { strict_at_least } else { others_at_least };
            let Case { family, checkpoint, .. } = &case;
            assert!(*cosine >= least, "{family}/{checkpoint}: {what}: cosine {cosine} is below {least}");
        }
    }
}

#[test]
fn fp32_vectors_are_those_of_the_reference() {
    check(DtypeChoice::Fp32, 0.999_999, 0.9999);
}

/// Every JPEG of the awkward pictures through every CLIP, under both ways of decoding.
#[test]
fn fast_vectors_stay_close_to_exact_ones() {
    let pictures = fixtures().join("../images");
    let mut n_reduced = 0;
    for case in cases().iter().filter(|case| case.family == "clip") {
        let dir = model_directory(&case.directory, &case.expected);
        let mut model = load(dir.path(), &case.expected, DeviceChoice::Cpu, DtypeChoice::Fp32);
        let spec = model.spec.image.clone().expect("CLIP has an image tower");
        for file in entries(&pictures).iter().filter(|file| file.extension().is_some_and(|e| e == "jpg")) {
            let encoded = fs::read(file).expect("readable");
            let both = [Decode::Exact, Decode::Fast].map(|decode| {
                let options = ImagingOptions { decode, ..ImagingOptions::REFERENCE };
                Prepared::Pixels(imaging::prepare(&encoded, &spec, &options).expect("decodes"))
            });
            if both[0] == both[1] {
                continue;
            }
            n_reduced += 1;
            let vectors = model.engines[0].backend.embed(&both).expect("embeds");
            let cosine = vectors[0].cosine(&vectors[1]);
            say(&format!("fast beside exact, {}, {}: {cosine:.6}", case.checkpoint, name(file)));
            assert!(cosine >= 0.999, "{}: {}: cosine {cosine}", case.checkpoint, name(file));
        }
    }
    assert!(n_reduced >= 8, "only {n_reduced} pictures were reduced");
}

#[test]
fn bf16_vectors_stay_close() {
    check(DtypeChoice::Bf16, 0.999, 0.999);
}

/// What GPUs without bf16 compute in. Slow on a CPU, and the same arithmetic.
#[test]
fn fp16_vectors_stay_close() {
    check(DtypeChoice::Fp16, 0.9999, 0.9999);
}

/// `make parity`: writes the figures of this machine into `docs/models.md`.
#[test]
#[ignore = "writes a file; run by `make parity`"]
fn write_the_table() {
    let device = std::env::var("SIDELENS_PARITY_DEVICE").unwrap_or_else(|_| "cpu".into());
    let choice: DeviceChoice = device.parse().expect("a device");
    let mut table = String::from(
        "| family | checkpoint | vector | picture | text | fp32 strict | fp32 other | bf16 strict | bf16 other |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for case in cases() {
        let [fp32, bf16] = [DtypeChoice::Fp32, DtypeChoice::Bf16].map(|dtype| run(&case, choice, dtype));
        let spec = &fp32.spec;
        let tower = |size: Option<String>, pooling: Option<Pooling>| match (size, pooling) {
            (Some(size), Some(pooling)) => format!("{size}, {pooling}"),
            _ => "-".into(),
        };
        let picture = spec.image.as_ref().map(|image| image.size()).map(|[h, w]| format!("{h}x{w}"));
        let text = spec.text.as_ref().map(|text| format!("{} tokens", text.max_length));
        let worst = |cosine: f32, row: &Row, strict| match row.cosines.iter().any(|c| c.1 == strict) {
            true => format!("{cosine:.7}"),
            false => "-".into(),
        };
        writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            case.family,
            case.checkpoint,
            spec.dimensions,
            tower(picture, spec.pooling.image),
            tower(text, spec.pooling.text),
            worst(fp32.strict, &fp32, true),
            worst(fp32.other, &fp32, false),
            worst(bf16.strict, &bf16, true),
            worst(bf16.other, &bf16, false),
        )
        .expect("written to memory");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md");
    let text = fs::read_to_string(&path).expect("docs/models.md is there");
    let marker =
        |which| format!("<!-- {which} of parity on {} -->\n", device.split(':').next().expect("a name"));
    let (before, rest) = text.split_once(&marker("begin")).expect("the table's begin");
    let (_, after) = rest.split_once(&marker("end")).expect("the table's end");
    let (begin, end) = (marker("begin"), marker("end"));
    fs::write(&path, format!("{before}{begin}{table}{end}{after}")).expect("written");
}

#[test]
fn token_ids_are_those_of_the_reference() {
    #[derive(Deserialize)]
    struct Row {
        text: String,
        ids: Vec<u32>,
    }
    let dir = fixtures().join("clip/tokenizer");
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
    let checkpoint = fixtures().join("clip/golden");
    let expected = read(&checkpoint.join("expected.json"));
    let fingerprint = |change: &dyn Fn(&Path), dtype| {
        let dir = model_directory(&checkpoint, &expected);
        change(dir.path());
        load(dir.path(), &expected, DeviceChoice::Cpu, dtype).fingerprint
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
