//! The vocabulary of a SentencePiece model, from its own file or from the `tokenizer.json` made of it.

use base64::{Engine, prelude::BASE64_STANDARD};
use prost::Message;
use serde::Deserialize;
use tokenizers::models::unigram::Unigram;

use super::{Charsmap, TextError};

/// A unigram vocabulary and the rules that go before it.
#[derive(Debug, Clone)]
pub struct Pieces {
    /// Pieces and their scores; an id is a position here.
    pub vocabulary: Vec<(String, f64)>,
    /// Which pieces a text can hold: not those that stand for a control, an unknown character or a byte.
    is_text: Vec<bool>,
    /// The piece for unknown characters.
    pub unk_id: usize,
    byte_fallback: bool,
    /// Rewrites the text.
    pub charsmap: Charsmap,
    /// Whether runs of spaces are one space, and none is left at the ends.
    pub remove_extra_whitespaces: bool,
    /// Whether spaces are `▁` in pieces.
    pub escape_whitespaces: bool,
}

/// Scores of pieces that no text may hold: worse than any path around them, and still far from overflow.
const UNREACHABLE: f64 = -1e12;

impl Pieces {
    /// Reads `spiece.model` or another file of the kind.
    ///
    /// # Errors
    /// [`TextError::Invalid`] when it is none, or not a unigram model.
    pub fn from_sentence_piece(bytes: &[u8]) -> Result<Self, TextError> {
        let invalid = |reason: String| TextError::invalid("the SentencePiece model", reason);
        let model = ModelProto::decode(bytes).map_err(|error| invalid(error.to_string()))?;
        let (trainer, normalizer) =
            (model.trainer_spec.unwrap_or_default(), model.normalizer_spec.unwrap_or_default());
        if trainer.model_type() != UNIGRAM {
            let reason = "it is no unigram model, which is the one kind that Sidelens reads without a \
                          tokenizer.json; save one beside it with transformers";
            return Err(invalid(reason.into()));
        }
        let charsmap = Charsmap::read(normalizer.precompiled_charsmap())
            .ok_or_else(|| invalid("its precompiled_charsmap is broken".into()))?;
        let is_text = |piece: &Piece| matches!(piece.kind(), NORMAL | USER_DEFINED);
        Self {
            is_text: model.pieces.iter().map(is_text).collect(),
            unk_id: usize::try_from(trainer.unk_id()).unwrap_or(usize::MAX),
            byte_fallback: trainer.byte_fallback(),
            charsmap,
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces(),
            escape_whitespaces: normalizer.escape_whitespaces(),
            vocabulary: model
                .pieces
                .into_iter()
                .map(|piece| (piece.piece.unwrap_or_default(), f64::from(piece.score.unwrap_or_default())))
                .collect(),
        }
        .checked()
        .map_err(invalid)
    }

    /// Reads the same from the `model` and the `Precompiled` normaliser of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Invalid`] when it is none, or has no unigram model.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let invalid = |reason: String| TextError::invalid("tokenizer.json", reason);
        let file: TokenizerJson = serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        let charsmap = match precompiled_charsmap(&file.normalizer) {
            None => Some(Charsmap::default()),
            Some(encoded) => BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| Charsmap::read(&bytes)),
        };
        Self {
            is_text: (0..file.model.vocab.len()).map(|id| id != file.model.unk_id).collect(),
            vocabulary: file.model.vocab,
            unk_id: file.model.unk_id,
            byte_fallback: file.model.byte_fallback,
            charsmap: charsmap.ok_or_else(|| invalid("its precompiled_charsmap is broken".into()))?,
            // SentencePiece's defaults: the file does not say.
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
        .checked()
        .map_err(invalid)
    }

    fn checked(self) -> Result<Self, String> {
        match self.vocabulary.len() {
            0 => Err("it has no pieces".into()),
            n if self.unk_id >= n => Err(format!("its `unk_id` is none of its {n} pieces")),
            _ => Ok(self),
        }
    }

    /// The id of a piece.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.vocabulary.iter().position(|(known, _)| known == piece).map(|id| id as u32)
    }

    /// The model that finds the most likely pieces of a text.
    ///
    /// # Errors
    /// When the crate refuses the vocabulary.
    pub fn into_model(mut self) -> tokenizers::Result<Unigram> {
        let mut min_score = f64::INFINITY;
        // The crate looks for every piece in the text. A literal `<pad>` is text and no padding.
        for ((_, score), is_text) in self.vocabulary.iter_mut().zip(self.is_text) {
            if is_text {
                min_score = min_score.min(*score);
            } else {
                *score = UNREACHABLE;
            }
        }
        let mut model = Unigram::from(self.vocabulary, Some(self.unk_id), self.byte_fallback)?;
        // Unknown characters score 10 below the least likely piece.
        model.min_score = if min_score.is_finite() { min_score } else { 0.0 };
        // Whole texts come in, not words: hardly one would be found again.
        model.resize_cache(0);
        Ok(model)
    }
}

/// `precompiled_charsmap` of the first normaliser that has one, however deep.
fn precompiled_charsmap(normalizer: &serde_json::Value) -> Option<&str> {
    let inner = || normalizer["normalizers"].as_array()?.iter().find_map(precompiled_charsmap);
    normalizer["precompiled_charsmap"].as_str().or_else(inner)
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: UnigramJson,
    #[serde(default)]
    normalizer: serde_json::Value,
}

#[derive(Deserialize)]
struct UnigramJson {
    unk_id: usize,
    vocab: Vec<(String, f64)>,
    #[serde(default)]
    byte_fallback: bool,
}

// The messages of SentencePiece's `sentencepiece_model.proto`, as far as they matter here.

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

const NORMAL: i32 = 1;
const USER_DEFINED: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
}

const UNIGRAM: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

#[cfg(test)]
pub(super) mod tests {
    use tokenizers::Model;

    use super::*;

    pub const SPIECE: &[u8] = include_bytes!("../../tests/fixtures/models/tokenizers/siglip/spiece.model");
    pub const JSON: &[u8] = include_bytes!("../../tests/fixtures/models/tokenizers/siglip/tokenizer.json");

    pub fn siglip() -> Pieces {
        Pieces::from_sentence_piece(SPIECE).unwrap()
    }

    #[test]
    fn both_files_hold_the_same_pieces() {
        let json = Pieces::from_json(JSON).unwrap();
        assert_eq!(json.unk_id, 2);
        assert_eq!(json.vocabulary.len(), siglip().vocabulary.len());
        for (a, b) in json.vocabulary.iter().zip(&siglip().vocabulary) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-6, "{a:?} {b:?}");
        }
        assert_eq!(json.charsmap.longest_match("ﬁ"), siglip().charsmap.longest_match("ﬁ"));
    }

    #[test]
    fn no_text_holds_a_control_piece() {
        let model = siglip().into_model().unwrap();
        let ids: Vec<u32> = model.tokenize("<pad>").unwrap().iter().map(|token| token.id).collect();
        assert!(ids.len() > 1 && !ids.contains(&0), "{ids:?}");
    }

    #[test]
    fn other_files_are_refused() {
        let spm =
            |model: ModelProto| Pieces::from_sentence_piece(&model.encode_to_vec()).unwrap_err().to_string();
        let trainer = |model_type, unk_id| {
            Some(TrainerSpec { model_type: Some(model_type), byte_fallback: None, unk_id: Some(unk_id) })
        };
        let piece = Piece { piece: Some("a".into()), score: None, kind: None };
        assert!(spm(ModelProto::default()).contains("no pieces"));
        assert!(spm(ModelProto { trainer_spec: trainer(2, 0), ..Default::default() }).contains("unigram"));
        for unk_id in [-1, 1] {
            let model = ModelProto {
                pieces: vec![piece.clone()],
                trainer_spec: trainer(1, unk_id),
                normalizer_spec: None,
            };
            assert!(spm(model).contains("unk_id"));
        }
        assert!(Pieces::from_sentence_piece(b"{\"model\": {}}").is_err());
        assert!(Pieces::from_json(b"{}").is_err());
    }
}
