//! What the caller sent, and what goes back.

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

use super::{Embedding, ItemError, Lane};

/// One request: every input gets exactly one vector, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// The model named by the caller. Where one model is served any name means it: Meilisearch's own guides
    /// name other vendors' models, and must work with only the URL changed.
    pub model: Option<String>,
    /// The number of components that the caller expects; another number than the model's is refused.
    pub dimensions: Option<usize>,
    /// The inputs, in the caller's order.
    pub inputs: Vec<EmbedInput>,
}

/// Most parts of a search.
const MAX_SEARCH_PARTS: usize = 2;

impl EmbedRequest {
    /// Who waits for it: a person sends one input, a text, a picture or both. One with many pictures is a document.
    pub fn lane(&self) -> Lane {
        match &self.inputs[..] {
            [input] if input.parts.len() <= MAX_SEARCH_PARTS => Lane::Search,
            _ => Lane::Bulk,
        }
    }

    /// Whether the caller says of one of its inputs that it is to search with.
    pub fn has_query(&self) -> bool {
        self.inputs.iter().any(|input| input.input_type == Some(InputType::Query))
    }
}

/// What an input is for. Some models want to be told, by a prompt before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputType {
    /// To search with.
    Query,
    /// To be found.
    Document,
}

/// One input: one part, or several whose unit vectors are averaged by weight. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedInput {
    /// The parts, in the caller's order.
    pub parts: Vec<Part>,
    /// What it is for, where the caller says it.
    pub input_type: Option<InputType>,
}

impl EmbedInput {
    /// A single text.
    pub fn text(text: impl Into<ByteString>) -> Self {
        Self::of(Content::Text(text.into()))
    }

    /// A single picture.
    pub fn image(source: ImageSource) -> Self {
        Self::of(Content::Image(source))
    }

    fn of(content: Content) -> Self {
        Self { parts: vec![Part { content, weight: 1.0 }], input_type: None }
    }
}

/// One part of an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Text or picture.
    pub content: Content,
    /// Its share in the mean of the parts: finite, above zero; 1.0 unless the caller said otherwise.
    pub weight: f32,
}

/// What a part holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Text, possibly empty (an empty text has a vector of its own): a part of the body, where that can be.
    Text(ByteString),
    /// A picture, wherever it is.
    Image(ImageSource),
}

impl Content {
    /// Bytes of a text; 0 for a picture.
    pub fn n_text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Image(_) => 0,
        }
    }
}

/// The longest address of a picture in bytes. No host reads more, and what is no address may be as long as its request.
pub const MAX_ADDRESS_BYTES: usize = 64 << 10;

/// Where a picture comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
    /// An address (`https://`, `s3://`, `file://`, ...) or a relative path, as the caller wrote it.
    Url(String),
    /// A `data:` URI or bare base64, still encoded: a part of the body that is decoded where it stands.
    /// Possibly empty, which is an item error.
    Encoded(BytesMut),
    /// The encoded file (JPEG, PNG, ...) itself.
    Bytes(Bytes),
}

impl ImageSource {
    /// Whether what stands where an address is expected holds the picture itself.
    pub fn is_data_uri(address: &str) -> bool {
        address.trim_start().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
    }
}

/// The answer to an [`EmbedRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedResponse {
    /// The model that made the vectors.
    pub model: String,
    /// One unit vector per input, in the order of the inputs.
    pub embeddings: Vec<Embedding>,
    /// Items answered by the placeholder vector (only with `on_item_error = "placeholder"`).
    pub errors: Vec<ItemError>,
    /// What the request cost.
    pub usage: Usage,
}

/// What a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the texts, special tokens included, after truncation; cached texts count too.
    pub text_tokens: u64,
    /// Pictures, cached ones included.
    pub images: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sends_one_input_of_a_text_and_a_picture_at_most() {
        let lane = |parts: &[usize]| {
            let part = || Part { content: Content::Text("red".into()), weight: 1.0 };
            let input = |n: &usize| EmbedInput { parts: (0..*n).map(|_| part()).collect(), input_type: None };
            let inputs = parts.iter().map(input).collect();
            EmbedRequest { model: None, dimensions: None, inputs }.lane()
        };
        assert_eq!([lane(&[1]), lane(&[2])], [Lane::Search; 2]);
        assert_eq!([lane(&[3]), lane(&[64]), lane(&[1, 1]), lane(&[])], [Lane::Bulk; 4]);
    }
}
