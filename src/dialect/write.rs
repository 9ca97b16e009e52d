//! JSON written straight into its buffer: vectors, and failures.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;

use super::{Answer, Failure};
use crate::domain::{Embedding, ItemError, ItemErrorKind};

/// Bytes that one component takes at most: sign, digits, exponent, comma.
const COMPONENT_BYTES: usize = 16;

/// Bytes that so many vectors take at most, and what is around them.
pub(super) fn max_bytes(n_vectors: usize, dimensions: usize) -> usize {
    512 + n_vectors * (dimensions * COMPONENT_BYTES + 64)
}

/// A buffer with room for the vectors, so that writing them does not grow it.
pub(super) fn buffer(embeddings: &[Embedding], answer: Answer) -> Vec<u8> {
    let dimensions = embeddings.first().map_or(0, Embedding::dimensions);
    Vec::with_capacity(answer.max_bytes(embeddings.len(), dimensions))
}

/// Appends any value. Floats take the fewest digits that read back as the same f32.
pub(super) fn value<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("writing plain data to memory cannot fail");
}

/// Appends `[[...], [...]]`, one array per vector.
pub(super) fn vectors(out: &mut Vec<u8>, embeddings: &[Embedding]) {
    out.push(b'[');
    for (i, embedding) in embeddings.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        value(out, embedding.as_slice());
    }
    out.push(b']');
}

/// Appends a vector as a string: its components as little-endian f32, in base64.
pub(super) fn base64(out: &mut Vec<u8>, embedding: &Embedding) {
    let bytes: Vec<u8> = embedding.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
    value(out, &BASE64_STANDARD.encode(bytes));
}

/// Appends `,"errors": [...]` where there are any.
pub(super) fn errors(out: &mut Vec<u8>, errors: &[ItemError]) {
    if !errors.is_empty() {
        out.extend(br#","errors":"#);
        value(out, errors);
    }
}

/// `{"error": {"message", "type", "index"?, "kind"?}}`.
pub(super) fn failure(failure: &Failure) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        error: Facts<'a>,
    }
    #[derive(Serialize)]
    struct Facts<'a> {
        message: &'a str,
        r#type: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        index: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<ItemErrorKind>,
    }
    let (index, kind) = failure.item.unzip();
    let mut out = Vec::with_capacity(failure.message.len() + 96);
    value(&mut out, &Body { error: Facts { message: &failure.message, r#type: failure.class, index, kind } });
    out
}
