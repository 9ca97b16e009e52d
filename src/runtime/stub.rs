//! A deterministic backend for tests and benches: no weights, no engine, a record of what it was given.
//!
//! Always compiled, as integration tests need it; nothing in the service uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Backend, BackendError, Engine, LoadedModel};
use crate::domain::{
    Embedding, Filter, Fingerprint, ImageSpec, Lanes, ModelSpec, Pixels, Pooling, Poolings, Prepared, Resize,
    TextSpec, TokenizerFile, Tokens,
};

/// What a [`StubBackend`] does instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StubFault {
    /// Panics.
    Panic,
    /// Fails this batch.
    Fail,
    /// Loses the device.
    Lose,
}

type Faults = Box<dyn Fn(&Prepared) -> Option<StubFault> + Send>;

/// Gives each input a unit vector drawn from a hash of its content.
pub struct StubBackend {
    dimensions: usize,
    delay: Duration,
    faults: Faults,
    record: StubRecord,
}

/// Every batch that a [`StubBackend`] was given, oldest first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StubRecord(Arc<Mutex<Vec<Vec<Prepared>>>>);

impl StubRecord {
    /// The batches so far, those that failed included.
    pub fn batches(&self) -> Vec<Vec<Prepared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The inputs so far, over all batches.
    pub fn n_inputs(&self) -> usize {
        self.batches().iter().map(Vec::len).sum()
    }

    /// Forgets the batches so far, such as those of the warm-up.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl StubBackend {
    /// Vectors of `dimensions` components, at once, without faults.
    pub fn new(dimensions: usize) -> Self {
        let record = StubRecord::default();
        Self { dimensions, delay: Duration::ZERO, faults: Box::new(|_| None), record }
    }

    /// Sleeps this long in each batch.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Does as `faults` says for the first input that it names a fault for.
    pub fn with_faults(mut self, faults: impl Fn(&Prepared) -> Option<StubFault> + Send + 'static) -> Self {
        self.faults = Box::new(faults);
        self
    }

    /// What it was given, now and later.
    pub fn record(&self) -> StubRecord {
        self.record.clone()
    }
}

impl Backend for StubBackend {
    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        self.record.0.lock().unwrap_or_else(PoisonError::into_inner).push(batch.to_vec());
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        match batch.iter().find_map(&self.faults) {
            Some(StubFault::Panic) => panic!("told to panic"),
            Some(StubFault::Fail) => return Err(BackendError::Failed("told to fail".into())),
            Some(StubFault::Lose) => return Err(BackendError::DeviceLost("told to lose it".into())),
            None => {}
        }
        Ok(batch.iter().map(|input| vector(input, self.dimensions)).collect())
    }
}

fn vector(input: &Prepared, dimensions: usize) -> Embedding {
    let mut hasher = blake3::Hasher::new();
    match input {
        Prepared::Tokens(Tokens { ids, .. }) => {
            hasher.update(b"text");
            ids.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        }
        Prepared::Pixels(Pixels { rgb8, .. }) => _ = hasher.update(b"image").update(rgb8),
    }
    let mut bytes = vec![0; dimensions * 4];
    hasher.finalize_xof().fill(&mut bytes);
    let component = |bytes: &[u8]| {
        let drawn = u32::from_le_bytes(bytes.try_into().expect("chunks of four"));
        drawn as f32 / u32::MAX as f32 - 0.5
    };
    let values: Vec<f32> = bytes.chunks_exact(4).map(component).collect();
    Embedding::normalized(values).expect("a digest is not zero")
}

/// Words that a stub model's tokenizer knows, beside the numbers 0 to 999. Others share one id.
const STUB_WORDS: [&str; 8] = ["panic", "fail", "lose", "red", "blue", "house", "tree", "fish"];

/// The id of a word of [`STUB_WORDS`] in a stub model.
fn stub_id(word: &str) -> Option<u32> {
    STUB_WORDS.iter().position(|known| *known == word).map(|i| i as u32 + 3)
}

/// A model with both towers over a [`StubBackend`]: 8x8 pictures, texts of up to 16 tokens. A text with the
/// word `panic`, `fail` or `lose` in it makes the backend do so.
pub fn stub_model(dimensions: usize) -> LoadedModel {
    stub_model_over(StubBackend::new(dimensions).with_faults(|input| {
        let Prepared::Tokens(tokens) = input else { return None };
        let has = |word| stub_id(word).is_some_and(|id| tokens.ids.contains(&id));
        match () {
            () if has("panic") => Some(StubFault::Panic),
            () if has("fail") => Some(StubFault::Fail),
            () if has("lose") => Some(StubFault::Lose),
            () => None,
        }
    }))
}

/// The model of [`stub_model`] over a backend of your own making.
pub fn stub_model_over(backend: StubBackend) -> LoadedModel {
    LoadedModel {
        spec: ModelSpec {
            name: "stub".into(),
            family: "stub".into(),
            dimensions: backend.dimensions,
            image: Some(ImageSpec {
                resize: Resize::ShortestEdge(8),
                crop: Some([8, 8]),
                filter: Filter::Bicubic,
                rescale_factor: 1.0 / 255.0,
                mean: [0.5; 3],
                std: [0.5; 3],
            }),
            text: Some(TextSpec::new(16)),
            pooling: Poolings { image: Some(Pooling::None), text: Some(Pooling::None) },
        },
        fingerprint: Fingerprint::of(&[b"stub", &backend.dimensions.to_le_bytes()]),
        tokenizer: Some(TokenizerFile::Json(tokenizer_json().into_bytes())),
        device: "cpu".into(),
        dtype: "fp32".into(),
        is_demo: false,
        engines: vec![Engine { backend: Box::new(backend), lanes: Lanes::All, device: "cpu".into() }],
    }
}

/// A word-level tokenizer between `<s>` (1) and `</s>` (2); unknown words are 0.
fn tokenizer_json() -> String {
    let words = STUB_WORDS.iter().map(|word| (*word).to_string()).chain((0..1000).map(|n| n.to_string()));
    let entries: String = words.zip(3..).map(|(word, id)| format!(r#","{word}":{id}"#)).collect();
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":{{"type":"Whitespace"}},
"post_processor":{{"type":"BertProcessing","sep":["</s>",2],"cls":["<s>",1]}},"decoder":null,
"model":{{"type":"WordLevel","unk_token":"<unk>","vocab":{{"<unk>":0,"<s>":1,"</s>":2{entries}}}}}}}"#
    )
}
