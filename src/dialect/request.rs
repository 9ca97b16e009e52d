//! The body: a list of items under `input`, `inputs` or `texts`, or one item that is the whole body.

use bytes::BytesMut;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, value::MapAccessDeserializer},
};

use super::{
    Answer, Call, MAX_INPUTS,
    cuts::{Cuts, Word},
    item::{Fields, RawItem, input_type, shortened},
    json::{AnyJson, Leaf, present, read_any},
};
use crate::domain::{EmbedError, EmbedInput, EmbedRequest, Modality};

/// Reads a body of any known shape.
///
/// Texts without escapes and pictures stay in `body`; unknown keys and whatever they hold are skipped. An
/// empty array asks for no vectors, which is no fault.
///
/// # Errors
/// [`EmbedError::InvalidRequest`] with the place of the fault (line and column, or item and part).
pub(super) fn parse(body: BytesMut) -> Result<Call, EmbedError> {
    // Messages of serde_json hold a place and what it expected, never the text that it met: no type here
    // refuses a value while reading.
    let read = match simdutf8::basic::from_utf8(&body) {
        Ok(text) => serde_json::from_str::<Body>(text),
        // Says where, and does not mind what nobody reads.
        Err(_) => serde_json::from_slice(&body),
    };
    let read = read.map_err(|error| EmbedError::InvalidRequest(no_json(&body, error)))?;
    read.check(&mut Cuts::new(body)).map_err(EmbedError::InvalidRequest)
}

/// Why `body` is no JSON: what it is instead where its first bytes tell, or else what the parser says.
fn no_json(body: &[u8], error: serde_json::Error) -> String {
    let what = match body {
        [0x1f, 0x8b, ..] | [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            "is compressed, which is not read; send it as it is, without `Content-Encoding`"
        }
        [0xef, 0xbb, 0xbf, ..] => "begins with a byte order mark; leave that out",
        [0xff, 0xd8, 0xff, ..]
        | [0x89, b'P', b'N', b'G', ..]
        | [b'G', b'I', b'F', b'8', ..]
        | [b'R', b'I', b'F', b'F', ..] => {
            "is a picture; upload it as `file` of a form, or send it in JSON, as base64 in `image`"
        }
        [b'-', b'-', ..] => "is a form, but no `Content-Type: multipart/form-data` tells its `boundary`",
        _ => return format!("the body is not valid JSON: {error}"),
    };
    format!("the body {what}")
}

enum Body {
    Text(Word),
    Object(Box<Keys>),
    Wrong(&'static str),
}

/// The keys of a body object; others are ignored.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(deserialize_with = "present")]
    input: Option<Items>,
    #[serde(deserialize_with = "present")]
    inputs: Option<Items>,
    #[serde(deserialize_with = "present")]
    texts: Option<Items>,
    model: Option<Leaf>,
    dimensions: Option<Leaf>,
    output_dimension: Option<Leaf>,
    modality: Option<Leaf>,
    input_type: Option<Leaf>,
    task: Option<Leaf>,
    encoding_format: Option<Leaf>,
    // Or the body is itself the item. Spelt out, as serde's `flatten` would buffer every value.
    #[serde(deserialize_with = "present")]
    text: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    image: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    image_url: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    image_base64: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    content: Option<super::item::RawContent>,
}

enum Items {
    /// An array; items above [`MAX_INPUTS`] are counted, not kept.
    Many(Vec<RawItem>, usize),
    One(RawItem),
}

impl Body {
    fn check(self, body: &mut Cuts) -> Result<Call, String> {
        match self {
            Self::Text(text) => Ok(Call {
                request: EmbedRequest {
                    model: None,
                    dimensions: None,
                    inputs: vec![EmbedInput::text(body.take_text(text))],
                },
                answer: Answer::Data,
            }),
            Self::Object(keys) => keys.check(body),
            Self::Wrong(found) => Err(format!(
                "the body is {found}; send an object with `input` (or `inputs`, `texts`), or one item"
            )),
        }
    }
}

impl Keys {
    fn check(self, body: &mut Cuts) -> Result<Call, String> {
        let data = self.encoding_format.map_or(Ok(Answer::Data), |leaf| encoding_format(leaf, body))?;
        let answer = if self.texts.is_some() { Answer::DataAndEmbeddings } else { data };
        let item = Fields {
            text: self.text,
            image: self.image,
            image_url: self.image_url,
            image_base64: self.image_base64,
            content: self.content,
            // The body's own counts for all items.
            input_type: None,
        };
        let strings = self.modality.map_or(Ok(Modality::Text), |leaf| modality(leaf, body))?;
        let mut lists = [("input", self.input), ("inputs", self.inputs), ("texts", self.texts)]
            .into_iter()
            .filter_map(|(key, items)| items.map(|items| (key, items)));
        let mut inputs = match (lists.next(), lists.next()) {
            (Some((first, _)), Some((second, _))) => {
                return Err(format!("the body has both `{first}` and `{second}`; send one of them"));
            }
            (Some((_, items)), None) => items.check(strings, body)?,
            (None, _) if item.any() => {
                vec![item.check(body).map_err(|wrong| format!("item 0: {wrong}"))?]
            }
            (None, _) => return Err("the body has no `input`, `inputs` or `texts`, nor is it an item".into()),
        };
        let model = match self.model {
            None => None,
            Some(Leaf::String(model)) => Some(body.text(&model).to_owned()),
            Some(other) => return Err(format!("`model` is {}, not a string", other.type_name())),
        };
        // Cohere and Voyage call them otherwise.
        let dimensions = match (self.dimensions, self.output_dimension) {
            (Some(leaf), _) => dimensions("dimensions", leaf, body)?,
            (None, Some(leaf)) => dimensions("output_dimension", leaf, body)?,
            (None, None) => None,
        };
        let input_type = match (self.input_type, self.task) {
            (Some(leaf), _) => input_type("input_type", leaf, body)?,
            (None, Some(leaf)) => input_type("task", leaf, body)?,
            (None, None) => None,
        };
        for input in &mut inputs {
            input.input_type = input.input_type.or(input_type);
        }
        Ok(Call { request: EmbedRequest { model, dimensions, inputs }, answer })
    }
}

/// Reads what strings are by Infinity's `modality`: where it says so, addresses or pictures themselves rather than texts.
fn modality(leaf: Leaf, body: &Cuts) -> Result<Modality, String> {
    const MODALITIES: &str = "use `text` or `image`";
    match leaf {
        Leaf::String(name) => match body.text(&name) {
            "" | "text" => Ok(Modality::Text),
            "image" => Ok(Modality::Image),
            other => Err(format!("`modality` is `{}`; {MODALITIES}", shortened(other))),
        },
        other => Err(format!("`modality` is {}; {MODALITIES}", other.type_name())),
    }
}

/// Reads how OpenAI and Voyage are asked to write vectors. Cohere is not: for its `texts` this means nothing.
fn encoding_format(leaf: Leaf, body: &Cuts) -> Result<Answer, String> {
    const FORMATS: &str = "use `float` or `base64`";
    match leaf {
        Leaf::String(name) => match body.text(&name) {
            "" | "float" => Ok(Answer::Data),
            "base64" => Ok(Answer::Base64),
            other => Err(format!("`encoding_format` is `{}`; {FORMATS}", shortened(other))),
        },
        other => Err(format!("`encoding_format` is {}; {FORMATS}", other.type_name())),
    }
}

fn dimensions(key: &str, leaf: Leaf, body: &Cuts) -> Result<Option<usize>, String> {
    match leaf {
        // Up to 2^53 every whole number is exact.
        Leaf::Number(n) if n >= 1.0 && n.fract() == 0.0 && n < 9e15 => Ok(Some(n as usize)),
        Leaf::Number(_) => Err(format!("`{key}` must be a whole number above zero")),
        Leaf::String(word) if body.text(&word).is_empty() => Ok(None),
        other => Err(format!("`{key}` is {}, not a number", other.type_name())),
    }
}

impl Items {
    fn check(self, strings: Modality, body: &mut Cuts) -> Result<Vec<EmbedInput>, String> {
        let items = match self {
            Self::Many(_, n) if n > MAX_INPUTS => {
                return Err(format!("the request has {n} inputs, at most {MAX_INPUTS} are read; send fewer"));
            }
            Self::Many(items, _) => items,
            Self::One(item) => vec![item],
        };
        items
            .into_iter()
            .enumerate()
            .map(|(i, item)| item.check(strings, body).map_err(|wrong| format!("item {i}: {wrong}")))
            .collect()
    }
}

impl<'de> AnyJson<'de> for Body {
    fn wrong(found: &'static str) -> Self {
        Self::Wrong(found)
    }

    fn string(value: Word) -> Self {
        Self::Text(value)
    }

    fn object<A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        Keys::deserialize(MapAccessDeserializer::new(object)).map(|keys| Self::Object(Box::new(keys)))
    }
}

impl<'de> AnyJson<'de> for Items {
    fn wrong(found: &'static str) -> Self {
        Self::One(RawItem::Wrong(found))
    }

    fn string(value: Word) -> Self {
        Self::One(RawItem::Text(value))
    }

    fn array<A: SeqAccess<'de>>(mut array: A) -> Result<Self, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX_INPUTS {
            match array.next_element()? {
                Some(item) => items.push(item),
                None => break,
            }
        }
        let mut count = items.len();
        while count >= MAX_INPUTS && array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Self::Many(items, count))
    }

    fn object<A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        RawItem::object(object).map(Self::One)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_any(deserializer)
    }
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_any(deserializer)
    }
}

#[cfg(test)]
mod tests;
