//! JSON written straight into its buffer: vectors, and failures.

use serde::Serialize;

use super::Failure;
use crate::domain::{Embedding, ItemError, ItemErrorKind};

/// Bytes that one component takes at most: sign, digits, exponent, comma.
const COMPONENT_BYTES: usize = 16;

/// A buffer with room for the vectors, so that writing them does not grow it.
pub(super) fn buffer(embeddings: &[Embedding], copies: usize) -> Vec<u8> {
    let components: usize = embeddings.iter().map(Embedding::dimensions).sum();
    Vec::with_capacity(512 + copies * (components * COMPONENT_BYTES + embeddings.len() * 64))
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
