//! The shape of Hugging Face's text-embeddings-inference, as Meilisearch's guide for it sets it up.
//!
//! ```json
//! {"source": "rest", "url": "http://127.0.0.1:7800/tei/embed", "dimensions": 512,
//!  "request": {"inputs": ["{{text}}", "{{..}}"], "model": "m"},
//!  "response": ["{{embedding}}", "{{..}}"]}
//! ```
//!
//! Bodies are read as in [`super::Meilisearch`], pictures included; only the answer differs: a bare array
//! of vectors. The body cannot tell the two apart, since fragments also send `inputs`, so the URL does.
//! A bare array has no place for `errors`: an item answered by the placeholder shows in the log and in the
//! metrics only.

use bytes::BytesMut;

use super::{Answer, Call, Dialect, Failure, request, write};
use crate::domain::{EmbedError, EmbedResponse};

/// See the module.
#[derive(Debug)]
pub struct Tei;

impl Dialect for Tei {
    fn routes(&self) -> &[&str] {
        &["/tei", "/tei/embed"]
    }

    fn parse(&self, body: BytesMut) -> Result<Call, EmbedError> {
        request::parse(body)
    }

    fn render(&self, response: &EmbedResponse, _: Answer) -> Vec<u8> {
        let mut out = write::buffer(&response.embeddings, Answer::Plain);
        write::vectors(&mut out, &response.embeddings);
        out
    }

    fn render_error(&self, failure: &Failure) -> Vec<u8> {
        write::failure(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Embedding, Usage};

    #[test]
    fn answers_with_a_bare_array() {
        let call = Tei.parse(br#"{"inputs": ["a", "b"], "model": "m"}"#[..].into()).unwrap();
        assert_eq!(call.request.inputs.len(), 2);
        let embeddings = [vec![1.0, 0.0], vec![0.0, 2.0]].map(|v| Embedding::normalized(v).unwrap());
        let response = EmbedResponse {
            model: "m".into(),
            embeddings: embeddings.into(),
            errors: vec![],
            usage: Usage::default(),
        };
        assert_eq!(Tei.render(&response, call.answer), b"[[1.0,0.0],[0.0,1.0]]");
    }
}
