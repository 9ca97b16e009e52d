//! The plainest shape, as small services around one model speak it: `{"text": "..."}` or an upload in,
//! `{"embedding": [...]}` out.
//!
//! ```text
//! curl -F file=@photo.jpg http://127.0.0.1:7800/embed
//! curl -H 'Content-Type: application/json' -d '{"text": "a red house"}' http://127.0.0.1:7800/embed-text
//! ```
//!
//! Bodies are read as in [`super::Meilisearch`]. One input gets `embedding`, several get `embeddings`.

use bytes::BytesMut;

use super::{Answer, Call, Dialect, Failure, request, write};
use crate::domain::{EmbedError, EmbedResponse};

/// See the module.
#[derive(Debug)]
pub struct Plain;

impl Dialect for Plain {
    fn routes(&self) -> &[&str] {
        &["/embed-text"]
    }

    fn parse(&self, body: BytesMut) -> Result<Call, EmbedError> {
        Ok(Call { answer: Answer::Plain, ..request::parse(body)? })
    }

    fn render(&self, response: &EmbedResponse, _: Answer) -> Vec<u8> {
        render(response)
    }

    fn render_error(&self, failure: &Failure) -> Vec<u8> {
        write::failure(failure)
    }
}

/// `{"embedding": [...], "model": "..."}`, or `embeddings` for any other number than one; `errors` as elsewhere.
pub(super) fn render(response: &EmbedResponse) -> Vec<u8> {
    let EmbedResponse { model, embeddings, errors, .. } = response;
    let mut out = write::buffer(embeddings, Answer::Plain);
    match &embeddings[..] {
        [embedding] => {
            out.extend(br#"{"embedding":"#);
            write::value(&mut out, embedding.as_slice());
        }
        embeddings => {
            out.extend(br#"{"embeddings":"#);
            write::vectors(&mut out, embeddings);
        }
    }
    out.extend(br#","model":"#);
    write::value(&mut out, model);
    write::errors(&mut out, errors);
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{Embedding, ItemError, ItemErrorKind, Usage};

    fn rendered(n_vectors: usize, errors: Vec<ItemError>) -> Value {
        let embeddings = (0..n_vectors).map(|_| Embedding::normalized(vec![0.0, 2.0]).unwrap()).collect();
        let response = EmbedResponse { model: "m".into(), embeddings, errors, usage: Usage::default() };
        serde_json::from_slice(&Plain.render(&response, Answer::Plain)).unwrap()
    }

    #[test]
    fn one_vector_stands_alone() {
        assert_eq!(rendered(1, vec![]), json!({"embedding": [0.0, 1.0], "model": "m"}));
        assert_eq!(rendered(2, vec![]), json!({"embeddings": [[0.0, 1.0], [0.0, 1.0]], "model": "m"}));
        assert_eq!(rendered(0, vec![]), json!({"embeddings": [], "model": "m"}));
    }

    #[test]
    fn placeholders_are_listed() {
        let error = ItemError { index: 0, kind: ItemErrorKind::Corrupt, message: "broken".into() };
        let errors = json!([{"index": 0, "kind": "corrupt", "message": "broken"}]);
        assert_eq!(rendered(1, vec![error])["errors"], errors);
    }

    #[test]
    fn reads_a_text_or_several() {
        for (body, n_inputs) in [(r#"{"text": "a"}"#, 1), (r#"{"texts": ["a", "b"]}"#, 2), (r#""a""#, 1)] {
            let call = Plain.parse(body.into()).unwrap();
            assert_eq!((call.request.inputs.len(), call.answer), (n_inputs, Answer::Plain), "{body}");
        }
    }
}
