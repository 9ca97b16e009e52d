//! Text models beyond the vectors of the small checkpoints, which `parity` compares: BERT's tokenizer, pairs
//! of checkpoints, and real weights.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, json};
use sidelens::{
    config::{DeviceChoice, DtypeChoice, ModelConfig, ModelParts, ModelSource},
    domain::{Embedding, Prepared, TextSpec, TokenizerFile},
    model, runtime,
    text::Tokenizer,
};

use crate::support::say;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    #[serde(default)]
    vector: Vec<f32>,
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("valid")
}

fn assert_ids(file: &TokenizerFile, max_length: usize, rows: &[Text]) {
    let tokenizer = Tokenizer::new(file, &TextSpec::new(max_length)).expect("reads");
    for row in rows {
        assert_eq!(tokenizer.encode(&row.text).expect("encodes").ids, row.ids, "{:?}", row.text);
    }
}

#[test]
fn word_piece_ids_are_those_of_the_python_tokenizer() {
    for (name, lowercase) in [("bert-uncased", true), ("bert-multilingual-cased", false)] {
        let at = fixtures().join("models/tokenizers");
        let rows: Vec<Text> = json(&at.join(format!("{name}.ids.json")));
        assert!(rows.len() >= 248, "{} strings", rows.len());
        let read = |file| fs::read(at.join(name).join(file)).expect("readable");
        assert_ids(&TokenizerFile::Json(read("tokenizer.json")), 512, &rows);
        let vocab = read("vocab.txt");
        let old = TokenizerFile::WordPiece { vocab, lowercase, strip_accents: None, split_chinese: true };
        assert_ids(&old, 512, &rows);
    }
}

/// A `tokenizer.json` as transformers 4 writes it keeps the spaces at the ends of a text; the class of transformers 5 does
/// not.
#[test]
fn unigram_ids_are_those_of_the_python_class() {
    let models = fixtures().join("models");
    let xlm_roberta = models.join("sentence-transformers/xlm-roberta");
    let mut tokenizer: Value = json(&xlm_roberta.join("tokenizer.json"));
    let siglip: Value = json(&models.join("tokenizers/siglip/tokenizer.json"));
    let mut steps = siglip["normalizer"]["normalizers"].as_array().expect("a sequence").iter();
    let table = steps.find(|step| step["type"] == "Precompiled").expect("a table");
    let single = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [table, single]});
    tokenizer["pre_tokenizer"] = tokenizer["pre_tokenizer"]["pretokenizers"][1].take();

    let dir = tempfile::tempdir().expect("a directory");
    fs::copy(xlm_roberta.join("config.json"), dir.path().join("config.json")).expect("copies");
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("writes");
    let rows: Vec<Text> = json(&models.join("tokenizers/xlm-roberta.ids.json"));
    assert!(rows.len() >= 252, "{} strings", rows.len());
    for class in [r#"{"tokenizer_class": "XLMRobertaTokenizerFast"}"#, "{}"] {
        fs::write(dir.path().join("tokenizer_config.json"), class).expect("writes");
        let parts = ModelParts::One(source(dir.path().into()));
        let checkpoint = model::Checkpoint::open(&parts).expect("opens");
        let spec = checkpoint.spec(None).expect("a text model");
        assert_ids(&checkpoint.tokenizer(&spec).expect("reads").expect("for texts"), 96, &rows);
    }
}

fn source(path: PathBuf) -> ModelSource {
    ModelSource::Directory(path)
}

#[test]
fn two_checkpoints_must_fit_together() {
    let models = fixtures().join("models");
    let pair = |image: &str, text: &str| {
        let (image, text) = (Some(source(models.join(image))), Some(source(models.join(text))));
        model::spec(&ModelConfig { image, text, ..ModelConfig::default() }).map_err(|error| error.to_string())
    };
    let (image, text) = ("mclip/small/image", "sentence-transformers/roberta-pad");
    let message = pair(image, text).expect_err("20 components are not 42");
    assert!(message.contains("20") && message.contains("42"), "{message}");
    let message = pair(text, text).expect_err("a text model has no image tower");
    assert!(message.contains("image"), "{message}");
}

#[test]
fn minilm_with_real_weights_gives_the_vectors_of_sentence_transformers() {
    #[derive(Deserialize)]
    struct Expected {
        texts: Vec<Text>,
    }
    let Some(directory) = env::var_os("SIDELENS_MINILM").map(PathBuf::from) else {
        say("SKIPPED: no all-MiniLM-L6-v2 to test with; `make test-minilm` downloads it (84 MB), or set \
             SIDELENS_MINILM=DIR");
        return;
    };
    let Expected { texts } = json(&fixtures().join("minilm/expected.json"));
    for (dtype, least) in [(DtypeChoice::Fp32, 0.999_999), (DtypeChoice::Bf16, 0.999)] {
        let config = ModelConfig {
            source: source(directory.clone()),
            device: DeviceChoice::Cpu,
            dtype,
            ..ModelConfig::default()
        };
        let mut model = runtime::load(&config).expect("loads");
        let spec = model.spec.text.as_ref().expect("a text model");
        assert_eq!(spec.max_length, 256);
        let tokenizer = Tokenizer::new(model.tokenizer.as_ref().expect("a tokenizer"), spec).expect("reads");
        let mut worst = 1.0_f32;
        for batch in texts.chunks(7) {
            let prepare = |text: &Text| {
                let tokens = tokenizer.encode(&text.text).expect("encodes");
                assert_eq!(tokens.ids, text.ids, "{:?}", text.text);
                Prepared::Tokens(tokens)
            };
            let prepared: Vec<_> = batch.iter().map(prepare).collect();
            for (ours, text) in model.engines[0].backend.embed(&prepared).expect("embeds").iter().zip(batch) {
                let theirs = Embedding::normalized(text.vector.clone()).expect("a unit vector");
                let cosine = ours.cosine(&theirs);
                assert!(cosine >= least, "{:?}: cosine {cosine} is below {least}", text.text);
                worst = worst.min(cosine);
            }
        }
        say(&format!("all-MiniLM-L6-v2, {dtype:?}: {} texts, worst cosine {worst:.7}", texts.len()));
    }
}
