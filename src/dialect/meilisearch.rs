//! What Meilisearch's `rest` embedder sends, whichever of its guides wrote the settings.
//!
//! Bodies (all keys in any order, unknown ones ignored):
//!
//! | `request` setting | from |
//! | --- | --- |
//! | `{"model": "m", "inputs": ["{{fragment}}", "{{..}}"]}` | the multimodal guide (Voyage) |
//! | `{"model": "m", "input": ["{{text}}", "{{..}}"]}` | Voyage, Jina, Mistral, OpenAI |
//! | `{"model": "m", "texts": ["{{text}}", "{{..}}"], "input_type": "search_document"}` | Cohere |
//! | `{"model": "m", "input": ["{{fragment}}", "{{..}}"], "modality": "image"}` | Infinity, whose strings are pictures then |
//! | `{"input": "{{text}}"}`, `"{{text}}"`, `"{{fragment}}"` | one item a request |
//!
//! An item is a string (text) or an object: `{"text"}`, `{"image"}` (URL, data URI or base64),
//! `{"image_url"}` (string or `{"url"}`), `{"image_base64"}`, or `{"content": [parts]}` with parts of
//! type `text`, `image_url` and `image_base64`, each with an optional `weight`.
//!
//! The answer fits `"response": {"data": [{"embedding": "{{embedding}}"}, "{{..}}"]}`, and for a body with
//! `texts` also Cohere's `{"embeddings": ["{{embedding}}", "{{..}}"]}`. OpenAI's own clients ask for base64 by
//! `encoding_format`, and one of them takes whatever comes for that; beside `texts` it is ignored, as Cohere has no such
//! key and its vectors are numbers. Settings whose `response` is
//! a bare array (Hugging Face) point their `url` at [`super::Tei`].

use bytes::BytesMut;
use serde::Serialize;

use super::{Answer, Call, Dialect, Failure, plain, request, write};
use crate::domain::{EmbedError, EmbedResponse};

/// See the module.
#[derive(Debug)]
pub struct Meilisearch;

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
    images: u64,
}

impl Dialect for Meilisearch {
    fn routes(&self) -> &[&str] {
        &["/", "/embed", "/v1/embeddings", "/v1/multimodalembeddings", "/v1/multimodal-embeddings"]
    }

    fn parse(&self, body: BytesMut) -> Result<Call, EmbedError> {
        request::parse(body)
    }

    fn render(&self, response: &EmbedResponse, answer: Answer) -> Vec<u8> {
        if answer == Answer::Plain {
            return plain::render(response);
        }
        let EmbedResponse { model, embeddings, errors, usage } = response;
        let mut out = write::buffer(embeddings, answer);
        out.extend(br#"{"object":"list","model":"#);
        write::value(&mut out, model);
        out.extend(br#","data":["#);
        for (i, embedding) in embeddings.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            out.extend(format!(r#"{comma}{{"object":"embedding","index":{i},"embedding":"#).bytes());
            match answer {
                Answer::Base64 => write::base64(&mut out, embedding),
                _ => write::value(&mut out, embedding.as_slice()),
            }
            out.push(b'}');
        }
        out.push(b']');
        if answer == Answer::DataAndEmbeddings {
            out.extend(br#","embeddings":"#);
            write::vectors(&mut out, embeddings);
        }
        write::errors(&mut out, errors);
        out.extend(br#","usage":"#);
        let tokens = usage.text_tokens;
        write::value(&mut out, &Usage { prompt_tokens: tokens, total_tokens: tokens, images: usage.images });
        out.push(b'}');
        out
    }

    fn render_error(&self, failure: &Failure) -> Vec<u8> {
        write::failure(failure)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{Embedding, ItemError, ItemErrorKind};

    fn response(vectors: Vec<Vec<f32>>) -> EmbedResponse {
        EmbedResponse {
            model: "clip \"b32\"".into(),
            embeddings: vectors.into_iter().map(|v| Embedding::normalized(v).unwrap()).collect(),
            errors: vec![],
            usage: crate::domain::Usage { text_tokens: 7, images: 2 },
        }
    }

    fn rendered(response: &EmbedResponse, answer: Answer) -> Value {
        serde_json::from_slice(&Meilisearch.render(response, answer)).unwrap()
    }

    #[test]
    fn answers_in_the_shape_of_the_guides() {
        let plain = json!({
            "object": "list", "model": "clip \"b32\"",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
                {"object": "embedding", "index": 1, "embedding": [0.0, -1.0]},
            ],
            "usage": {"prompt_tokens": 7, "total_tokens": 7, "images": 2},
        });
        let response = response(vec![vec![2.0, 0.0], vec![0.0, -3.0]]);
        assert_eq!(rendered(&response, Answer::Data), plain);
        let mut cohere = plain;
        cohere["embeddings"] = json!([[1.0, 0.0], [0.0, -1.0]]);
        assert_eq!(rendered(&response, Answer::DataAndEmbeddings), cohere);
    }

    #[test]
    fn base64_is_what_openai_answers_with() {
        let answer = rendered(&response(vec![vec![2.0, 0.0], vec![0.0, -3.0]]), Answer::Base64);
        // 1 is 00 00 80 3f, -1 is 00 00 80 bf.
        assert_eq!(answer["data"][0]["embedding"], "AACAPwAAAAA=");
        assert_eq!(answer["data"][1]["embedding"], "AAAAAAAAgL8=");
    }

    #[test]
    fn no_vectors_are_an_empty_list() {
        assert_eq!(rendered(&response(vec![]), Answer::Data)["data"], json!([]));
    }

    #[test]
    fn lists_items_that_got_the_placeholder() {
        let mut response = response(vec![vec![1.0]]);
        response.errors.push(ItemError { index: 0, kind: ItemErrorKind::NotFound, message: "gone".into() });
        let errors = json!([{"index": 0, "kind": "not_found", "message": "gone"}]);
        assert_eq!(rendered(&response, Answer::Data)["errors"], errors);
    }

    #[test]
    fn every_component_reads_back_as_the_same_f32() {
        // A small multiplicative generator, for components of all magnitudes.
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f32::from_bits(state >> 9 | 0x3f80_0000) - 1.5) * 10_f32.powi((state % 30) as i32 - 25)
        };
        let response = response((0..8).map(|_| (0..512).map(|_| next()).collect()).collect());
        #[derive(serde::Deserialize)]
        struct Data {
            data: Vec<Row>,
        }
        #[derive(serde::Deserialize)]
        struct Row {
            embedding: Vec<f32>,
        }
        let read: Data = serde_json::from_slice(&Meilisearch.render(&response, Answer::Data)).unwrap();
        for (row, embedding) in read.data.iter().zip(&response.embeddings) {
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&row.embedding), bits(embedding.as_slice()));
        }
    }

    #[test]
    fn a_failure_names_class_item_and_kind() {
        let item = ItemError { index: 3, kind: ItemErrorKind::Timeout, message: "host `a` is slow".into() };
        let failure = Failure::from(&EmbedError::Items(vec![item]));
        let body: Value = serde_json::from_slice(&Meilisearch.render_error(&failure)).unwrap();
        let expected = json!({"error": {
            "message": "item 3: timeout: host `a` is slow", "type": "upstream", "index": 3, "kind": "timeout",
        }});
        assert_eq!(body, expected);
        let plain = Meilisearch.render_error(&Failure::new("unauthorized", "no"));
        assert_eq!(plain, br#"{"error":{"message":"no","type":"unauthorized"}}"#);
    }
}
