//! Request bodies by Meilisearch's template syntax.
//!
//! A template is JSON in which one string is a placeholder: `{{text}}`, or for pictures `{{image}}` (a data URI) or
//! `{{base64}}`. `"{{..}}"` as the second item of an array repeats the first for each input. The last two stand
//! where Meilisearch has `{{fragment}}`, after the document's own template was filled in.

use bytes::Bytes;
use serde_json::Value;

use super::inputs::{Inputs, Length};
use crate::domain::Modality;

const REPEAT: &str = "{{..}}";

/// Why a template makes no request.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// None, or several.
    #[error(
        "a request needs exactly one of the strings \"{{{{image}}}}\", \"{{{{base64}}}}\" and \"{{{{text}}}}\", \
         and has {0}"
    )]
    Placeholders(usize),
    /// Not where Meilisearch wants it.
    #[error("\"{{{{..}}}}\" must be the second item of an array whose first holds the placeholder")]
    Repeat,
    /// It cannot hold that many.
    #[error(
        "without \"{{{{..}}}}\" a request holds one input, not {0}; add it, or ask for one input a request"
    )]
    OneInput(usize),
}

/// What stands at the placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Text,
    DataUri,
    Base64,
}

impl Slot {
    const ALL: [Self; 3] = [Self::Text, Self::DataUri, Self::Base64];

    fn placeholder(self) -> &'static str {
        match self {
            Self::Text => "{{text}}",
            Self::DataUri => "{{image}}",
            Self::Base64 => "{{base64}}",
        }
    }
}

/// A request with a place for its inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    request: Value,
    slot: Slot,
    repeats: bool,
}

impl Template {
    /// Checks a template.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn new(request: Value) -> Result<Self, TemplateError> {
        let counts = Slot::ALL.map(|slot| count(&request, slot.placeholder()));
        let n_placeholders: usize = counts.iter().sum();
        let used = counts.iter().position(|n| *n > 0);
        let Some(slot) = used.filter(|_| n_placeholders == 1).map(|i| Slot::ALL[i]) else {
            return Err(TemplateError::Placeholders(n_placeholders));
        };
        let repeats = count(&request, REPEAT) > 0;
        let twice = repeated(&request, 2);
        if repeats && (count(&twice, REPEAT) > 0 || count(&twice, slot.placeholder()) != 2) {
            return Err(TemplateError::Repeat);
        }
        Ok(Self { request, slot, repeats })
    }

    /// What its inputs are.
    pub fn modality(&self) -> Modality {
        match self.slot {
            Slot::Text => Modality::Text,
            Slot::DataUri | Slot::Base64 => Modality::Image,
        }
    }

    /// Prepares for requests of `n_inputs`, pretty-printed as Meilisearch does.
    pub(super) fn frame(&self, n_inputs: usize) -> Result<Frame, TemplateError> {
        if n_inputs != 1 && !self.repeats {
            return Err(TemplateError::OneInput(n_inputs));
        }
        let request = format!("{:#}", repeated(&self.request, n_inputs));
        let pieces =
            request.split(self.slot.placeholder()).map(|piece| Bytes::copy_from_slice(piece.as_bytes()));
        Ok(Frame { pieces: pieces.collect(), slot: self.slot })
    }
}

/// What is the same in every body of one lane: the pieces before, between and after the inputs.
#[derive(Debug)]
pub(super) struct Frame {
    pieces: Vec<Bytes>,
    slot: Slot,
}

impl Frame {
    /// A body with new inputs, as pieces that follow one another. Only what is new in it is written; the rest is
    /// shared.
    pub(super) fn fill(&self, inputs: &Inputs, length: Length) -> Vec<Bytes> {
        let (last, before) = self.pieces.split_last().expect("a string splits into at least one piece");
        let mut body = Vec::with_capacity(before.len() * 5 + 1);
        for piece in before {
            body.push(piece.clone());
            let id = inputs.draw();
            match self.slot {
                Slot::Text => body.push(inputs.text(id, length).into()),
                Slot::DataUri => body.extend(inputs.data_uri(id)),
                Slot::Base64 => body.extend(inputs.base64(id)),
            }
        }
        body.push(last.clone());
        body
    }
}

/// The strings in `value` that equal `wanted`.
fn count(value: &Value, wanted: &str) -> usize {
    match value {
        Value::String(text) => usize::from(text == wanted),
        Value::Array(items) => items.iter().map(|item| count(item, wanted)).sum(),
        Value::Object(map) => map.values().map(|item| count(item, wanted)).sum(),
        _ => 0,
    }
}

/// `value` with `n` of the item that is to be repeated; what follows it is dropped, as Meilisearch does.
fn repeated(value: &Value, n: usize) -> Value {
    match value {
        Value::Array(items) => match items.as_slice() {
            [first, second, ..] if second == REPEAT => vec![first.clone(); n].into(),
            items => items.iter().map(|item| repeated(item, n)).collect(),
        },
        Value::Object(map) => map.iter().map(|(key, item)| (key.clone(), repeated(item, n))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::load::Picture;

    fn body(template: Value, n: usize) -> Value {
        let frame = Template::new(template).unwrap().frame(n).unwrap();
        let inputs = Inputs::new(vec![Picture::photo()], None);
        serde_json::from_slice(&frame.fill(&inputs, Length::Product).concat()).unwrap()
    }

    #[test]
    fn repeats_the_item_for_each_input() {
        let texts = body(json!({"model": "m", "input": ["{{text}}", "{{..}}", "dropped"]}), 3);
        let items = texts["input"].as_array().unwrap();
        assert_eq!(items.len(), 3);
        assert!(items.iter().all(|item| item.as_str().unwrap().len() > 100) && items[0] != items[1]);
        assert_eq!(texts["model"], "m");

        let part = json!({"type": "image_url", "image_url": "{{image}}"});
        let pictures = body(json!({"inputs": [{"content": [part]}, "{{..}}"]}), 2);
        let uri = pictures["inputs"][1]["content"][0]["image_url"].as_str().unwrap();
        assert!(uri.starts_with("data:image/jpeg;base64,/9j/"));
        assert!(body(json!("{{base64}}"), 1).as_str().unwrap().starts_with("/9j/"));
    }

    #[test]
    fn is_printed_as_meilisearch_prints() {
        let frame = Template::new(json!({"input": ["{{text}}", "{{..}}"]})).unwrap().frame(1).unwrap();
        assert_eq!(frame.pieces, ["{\n  \"input\": [\n    \"", "\"\n  ]\n}"]);
    }

    #[test]
    fn refuses_what_meilisearch_would_refuse() {
        let refused = |template| Template::new(template).unwrap_err();
        assert_eq!(refused(json!({"input": "text"})), TemplateError::Placeholders(0));
        assert_eq!(refused(json!(["{{text}}", "{{image}}"])), TemplateError::Placeholders(2));
        assert_eq!(refused(json!(["a", "{{..}}", "{{text}}"])), TemplateError::Repeat);
        assert_eq!(refused(json!(["{{text}}", "a", "{{..}}"])), TemplateError::Repeat);
        assert_eq!(
            Template::new(json!({"input": "{{text}}"})).unwrap().frame(2).unwrap_err(),
            TemplateError::OneInput(2)
        );
    }
}
