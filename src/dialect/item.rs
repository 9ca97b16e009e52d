//! One item: a string, or an object of text and pictures; then checked into an [`EmbedInput`].

use bytes::BytesMut;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, value::MapAccessDeserializer},
};

use super::{
    MAX_PARTS,
    cuts::{Cuts, Word},
    json::{AnyJson, Leaf, present, read_any},
};
use crate::domain::{Content, EmbedInput, ImageSource, InputType, Modality, Part};

/// One item as written. What is wrong with it is said by [`RawItem::check`], which knows its place.
#[derive(Debug)]
pub(super) enum RawItem {
    /// A bare string.
    Text(Word),
    /// An object.
    Object(Box<Fields>),
    /// Something else, by the name of its type.
    Wrong(&'static str),
}

/// The keys of an item object; others are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    #[serde(deserialize_with = "present")]
    pub(super) text: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    pub(super) image: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    pub(super) image_url: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    pub(super) image_base64: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    pub(super) content: Option<RawContent>,
    pub(super) input_type: Option<Leaf>,
}

/// The value of `content`.
#[derive(Debug)]
pub(super) enum RawContent {
    Text(Word),
    /// The parts, and how many there were: those above [`MAX_PARTS`] are counted, not kept.
    Parts(Vec<RawPart>, usize),
    Wrong(&'static str),
}

/// One element of `content`.
#[derive(Debug)]
pub(super) enum RawPart {
    Object(Box<PartFields>),
    Wrong(&'static str),
}

/// The keys of a part; others are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PartFields {
    r#type: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    text: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    image_url: Option<Leaf>,
    #[serde(deserialize_with = "present")]
    image_base64: Option<Leaf>,
    weight: Option<Leaf>,
}

impl RawItem {
    /// The item as an input of one part or more, its pictures taken out of the `body`; a bare string is what `strings` are.
    ///
    /// # Errors
    /// What is wrong, without the item's own place: `part 1: ...`, `has none of ...`.
    pub(super) fn check(self, strings: Modality, body: &mut Cuts) -> Result<EmbedInput, String> {
        match self {
            Self::Text(word) => Ok(match strings {
                Modality::Text => EmbedInput::text(body.take_text(word)),
                Modality::Image => EmbedInput::image(picture(word, body)),
            }),
            Self::Object(fields) => fields.check(body),
            Self::Wrong(found) => Err(format!("is {found}; give a string or an object")),
        }
    }
}

impl Fields {
    /// Whether any key of an item was there.
    pub(super) fn any(&self) -> bool {
        let Self { text, image, image_url, image_base64, content, input_type: _ } = self;
        [text, image, image_url, image_base64].iter().any(|field| field.is_some()) || content.is_some()
    }

    /// See [`RawItem::check`].
    pub(super) fn check(self, body: &mut Cuts) -> Result<EmbedInput, String> {
        let Self { text, image, image_url, image_base64, content, input_type: purpose } = self;
        let input_type = purpose.map_or(Ok(None), |leaf| input_type("input_type", leaf, body))?;
        let mut contents = Vec::new();
        if let Some(leaf) = text {
            contents.push(Content::Text(body.take_text(string(leaf, "text")?)));
        }
        if let Some(leaf) = image {
            contents.push(Content::Image(picture(string_or_url(leaf, "image")?, body)));
        }
        if let Some(leaf) = image_url {
            contents.push(Content::Image(picture_by_url(string_or_url(leaf, "image_url")?, body)));
        }
        if let Some(leaf) = image_base64 {
            contents.push(Content::Image(encoded(string(leaf, "image_base64")?, body)));
        }
        let part = |content| Part { content, weight: 1.0 };
        let parts: Vec<Part> = contents.into_iter().map(part).collect();
        match content {
            Some(_) if !parts.is_empty() => Err("has `content` beside text or a picture; use one".into()),
            Some(content) => Ok(EmbedInput { parts: content.check(body)?, input_type }),
            None if parts.is_empty() => {
                Err("has none of `text`, `image`, `image_url`, `image_base64`, `content`".into())
            }
            None => Ok(EmbedInput { parts, input_type }),
        }
    }
}

impl RawContent {
    fn check(self, body: &mut Cuts) -> Result<Vec<Part>, String> {
        match self {
            Self::Text(text) => Ok(EmbedInput::text(body.take_text(text)).parts),
            Self::Parts(_, 0) => Err("has an empty `content`; give it one part or more".into()),
            Self::Parts(_, n) if n > MAX_PARTS => Err(format!("has {n} parts, at most {MAX_PARTS} are read")),
            Self::Parts(parts, _) => parts
                .into_iter()
                .enumerate()
                .map(|(i, part)| part.check(body).map_err(|wrong| format!("part {i}: {wrong}")))
                .collect(),
            Self::Wrong(found) => Err(format!("has a `content` that is {found}, not an array of parts")),
        }
    }
}

impl RawPart {
    fn check(self, body: &mut Cuts) -> Result<Part, String> {
        const TYPES: &str = "use `text`, `image_url` or `image_base64`";
        let fields = match self {
            Self::Object(fields) => *fields,
            Self::Wrong(found) => return Err(format!("is {found}, not an object with `type`")),
        };
        let kind = match fields.r#type {
            Some(Leaf::String(kind)) => kind,
            Some(other) => return Err(format!("`type` is {}; {TYPES}", other.type_name())),
            None => return Err(format!("has no `type`; {TYPES}")),
        };
        let missing = |key: &str| format!("has type `{key}` but no `{key}`");
        let content = match body.text(&kind) {
            "text" => {
                let word = string(fields.text.ok_or_else(|| missing("text"))?, "text")?;
                Content::Text(body.take_text(word))
            }
            "image_url" => {
                let leaf = fields.image_url.ok_or_else(|| missing("image_url"))?;
                Content::Image(picture_by_url(string_or_url(leaf, "image_url")?, body))
            }
            "image_base64" => {
                let leaf = fields.image_base64.ok_or_else(|| missing("image_base64"))?;
                Content::Image(encoded(string(leaf, "image_base64")?, body))
            }
            other => return Err(format!("unknown type `{}`; {TYPES}", shortened(other))),
        };
        Ok(Part { content, weight: weight(fields.weight)? })
    }
}

fn weight(weight: Option<Leaf>) -> Result<f32, String> {
    match weight {
        None => Ok(1.0),
        // Checked as f32, the type it is used in: 1e-60 is above zero only as f64.
        Some(Leaf::Number(n)) if (n as f32).is_finite() && n as f32 > 0.0 => Ok(n as f32),
        Some(Leaf::Number(_)) => Err("`weight` must be finite and above zero".into()),
        Some(other) => Err(format!("`weight` is {}, not a number", other.type_name())),
    }
}

fn string(leaf: Leaf, key: &str) -> Result<Word, String> {
    match leaf {
        Leaf::String(value) => Ok(value),
        other => Err(format!("`{key}` is {}, not a string", other.type_name())),
    }
}

fn string_or_url(leaf: Leaf, key: &str) -> Result<Word, String> {
    match leaf {
        Leaf::String(value) | Leaf::Url(value) => Ok(value),
        other => Err(format!("`{key}` is {}; give a string or an object with `url`", other.type_name())),
    }
}

/// A URL, a data URI or base64, told apart by its start. Base64 has no colon, so a scheme is never mistaken.
fn picture(word: Word, body: &mut Cuts) -> ImageSource {
    let start = body.start(&word).as_bytes();
    let scheme = start.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
    if start[scheme..].starts_with(b"://") { url(&word, body) } else { encoded(word, body) }
}

/// What stands where a URL is expected: a data URI is welcome, the empty string is an empty picture,
/// anything else is for the fetch room to judge.
fn picture_by_url(word: Word, body: &mut Cuts) -> ImageSource {
    let start = body.start(&word);
    if ImageSource::is_data_uri(start) || start.is_empty() { encoded(word, body) } else { url(&word, body) }
}

fn url(word: &Word, body: &Cuts) -> ImageSource {
    ImageSource::Url(body.text(word).to_owned())
}

fn encoded(word: Word, body: &mut Cuts) -> ImageSource {
    if body.start(&word).is_empty() {
        ImageSource::Encoded(BytesMut::new())
    } else {
        ImageSource::Encoded(body.take(word))
    }
}

/// Reads `query`, `search_query`, `retrieval.query`, ... and the same for `document` and `passage`: Cohere,
/// Voyage and Jina each have their own. Other types (`classification`, ...) have no prompt here.
pub(super) fn input_type(key: &str, leaf: Leaf, body: &Cuts) -> Result<Option<InputType>, String> {
    match leaf {
        Leaf::String(name) => Ok(match body.text(&name).rsplit(['_', '.']).next() {
            Some("query") => Some(InputType::Query),
            Some("document" | "passage") => Some(InputType::Document),
            _ => None,
        }),
        other => Err(format!("`{key}` is {}, not a string", other.type_name())),
    }
}

/// At most 40 characters of a name, so that no payload travels in a message.
pub(super) fn shortened(name: &str) -> &str {
    name.char_indices().nth(40).map_or(name, |(end, _)| &name[..end])
}

impl<'de> AnyJson<'de> for RawItem {
    fn wrong(found: &'static str) -> Self {
        Self::Wrong(found)
    }

    fn string(value: Word) -> Self {
        Self::Text(value)
    }

    fn object<A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        Fields::deserialize(MapAccessDeserializer::new(object)).map(|fields| Self::Object(Box::new(fields)))
    }
}

impl<'de> AnyJson<'de> for RawContent {
    fn wrong(found: &'static str) -> Self {
        Self::Wrong(found)
    }

    fn string(value: Word) -> Self {
        Self::Text(value)
    }

    fn null() -> Self {
        Self::Text(Word::EMPTY)
    }

    fn array<A: SeqAccess<'de>>(mut array: A) -> Result<Self, A::Error> {
        let mut parts = Vec::new();
        while parts.len() < MAX_PARTS {
            match array.next_element()? {
                Some(part) => parts.push(part),
                None => break,
            }
        }
        let mut count = parts.len();
        while count >= MAX_PARTS && array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Self::Parts(parts, count))
    }
}

impl<'de> AnyJson<'de> for RawPart {
    fn wrong(found: &'static str) -> Self {
        Self::Wrong(found)
    }

    fn string(_: Word) -> Self {
        Self::Wrong("a string")
    }

    fn object<A: MapAccess<'de>>(object: A) -> Result<Self, A::Error> {
        PartFields::deserialize(MapAccessDeserializer::new(object))
            .map(|fields| Self::Object(Box::new(fields)))
    }
}

macro_rules! deserialize_any {
    ($($shape:ty),+) => {$(
        impl<'de> Deserialize<'de> for $shape {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                read_any(deserializer)
            }
        }
    )+};
}

deserialize_any!(RawItem, RawContent, RawPart);
