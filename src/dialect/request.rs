//! The body: a list of items under `input`, `inputs` or `texts`, or one item that is the whole body.

use bytes::BytesMut;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, value::MapAccessDeserializer},
};

use super::{
    Answer, Call, MAX_INPUTS,
    cuts::{Cuts, Word},
    item::{Fields, RawItem},
    json::{AnyJson, Leaf, present, read_any},
};
use crate::domain::{EmbedError, EmbedInput, EmbedRequest, InputType};

/// Reads a body of any known shape.
///
/// Texts are copied out of `body`, pictures stay in it; unknown keys and whatever they hold are skipped. An
/// empty array asks for no vectors, which is no fault.
///
/// # Errors
/// [`EmbedError::InvalidRequest`] with the place of the fault (line and column, or item and part).
pub(super) fn parse(body: BytesMut) -> Result<Call, EmbedError> {
    // Messages of serde_json hold a place and what it expected, never the text that it met: no type here
    // refuses a value while reading.
    let read: Body = serde_json::from_slice(&body)
        .map_err(|error| EmbedError::InvalidRequest(format!("the body is not valid JSON: {error}")))?;
    read.check(&mut Cuts::new(body)).map_err(EmbedError::InvalidRequest)
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
    input_type: Option<Leaf>,
    task: Option<Leaf>,
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
                    input_type: None,
                    inputs: vec![EmbedInput::text(body.text(&text))],
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
        let answer = if self.texts.is_some() { Answer::DataAndEmbeddings } else { Answer::Data };
        let item = Fields {
            text: self.text,
            image: self.image,
            image_url: self.image_url,
            image_base64: self.image_base64,
            content: self.content,
        };
        let mut lists = [("input", self.input), ("inputs", self.inputs), ("texts", self.texts)]
            .into_iter()
            .filter_map(|(key, items)| items.map(|items| (key, items)));
        let inputs = match (lists.next(), lists.next()) {
            (Some((first, _)), Some((second, _))) => {
                return Err(format!("the body has both `{first}` and `{second}`; send one of them"));
            }
            (Some((_, items)), None) => items.check(body)?,
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
        let dimensions = match self.dimensions {
            None => None,
            // Up to 2^53 every whole number is exact.
            Some(Leaf::Number(n)) if n >= 1.0 && n.fract() == 0.0 && n < 9e15 => Some(n as usize),
            Some(Leaf::Number(_)) => return Err("`dimensions` must be a whole number above zero".into()),
            Some(Leaf::String(word)) if body.text(&word).is_empty() => None,
            Some(other) => return Err(format!("`dimensions` is {}, not a number", other.type_name())),
        };
        let input_type = match (self.input_type, self.task) {
            (Some(leaf), _) => input_type("input_type", leaf, body)?,
            (None, Some(leaf)) => input_type("task", leaf, body)?,
            (None, None) => None,
        };
        Ok(Call { request: EmbedRequest { model, dimensions, input_type, inputs }, answer })
    }
}

/// Reads `query`, `search_query`, `retrieval.query`, ... and the same for `document` and `passage`: Cohere,
/// Voyage and Jina each have their own. Other types (`classification`, ...) have no prompt here.
fn input_type(key: &str, leaf: Leaf, body: &Cuts) -> Result<Option<InputType>, String> {
    match leaf {
        Leaf::String(name) => Ok(match body.text(&name).rsplit(['_', '.']).next() {
            Some("query") => Some(InputType::Query),
            Some("document" | "passage") => Some(InputType::Document),
            _ => None,
        }),
        other => Err(format!("`{key}` is {}, not a string", other.type_name())),
    }
}

impl Items {
    fn check(self, body: &mut Cuts) -> Result<Vec<EmbedInput>, String> {
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
            .map(|(i, item)| item.check(body).map_err(|wrong| format!("item {i}: {wrong}")))
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
mod tests {
    use super::*;
    use crate::domain::{Content, ImageSource, Part};

    fn text(text: &str) -> EmbedInput {
        EmbedInput::text(text)
    }

    fn url(url: &str) -> EmbedInput {
        EmbedInput::image(ImageSource::Url(url.into()))
    }

    fn encoded(data: &str) -> EmbedInput {
        EmbedInput::image(ImageSource::Encoded(data.into()))
    }

    fn joined(inputs: &[EmbedInput], weights: &[f32]) -> EmbedInput {
        let parts = inputs.iter().zip(weights);
        let part = |(input, &weight): (&EmbedInput, _)| Part { weight, ..input.parts[0].clone() };
        EmbedInput { parts: parts.map(part).collect() }
    }

    fn check(body: &str, expected: &[EmbedInput]) {
        let call = parse(body.into()).unwrap_or_else(|error| panic!("{body}: {error}"));
        assert_eq!(call.request.inputs, expected, "{body}");
        // Meilisearch pretty-prints what it sends.
        let pretty = serde_json::from_str::<serde_json::Value>(body).unwrap();
        let pretty = format!("\r\n{}\n ", serde_json::to_string_pretty(&pretty).unwrap());
        assert_eq!(parse(pretty.as_str().into()).unwrap().request, call.request, "{pretty}");
    }

    fn refused(body: &str) -> String {
        match parse(body.into()) {
            Err(EmbedError::InvalidRequest(message)) => message,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn reads_the_bodies_that_meilisearch_sends() {
        check(
            r#"{"model":"m","input":["Heat. A group","Ariel."]}"#,
            &[text("Heat. A group"), text("Ariel.")],
        );
        check(r#"{"model":"m","input":["test"]}"#, &[text("test")]);
        check(
            r#"{"model":"m","inputs":[{"content":[{"type":"image_url","image_url":"https://cdn/1.jpg"}]},
                {"content":[{"type":"image_url","image_url":""}]}]}"#,
            &[url("https://cdn/1.jpg"), encoded("")],
        );
        check(
            r#"{"inputs":[{"content":[{"type":"text","text":"red shoe"}]}],"model":"m"}"#,
            &[text("red shoe")],
        );
        check(
            r#"{"inputs":[{"content":[{"type":"image_base64","image_base64":"data:image/png;base64,iVBO"}]}]}"#,
            &[encoded("data:image/png;base64,iVBO")],
        );
        check(
            r#"{"inputs":[{"content":[{"text":"in blue","type":"text"},
                {"image_url":"https://cdn/9.jpg","type":"image_url"}]}]}"#,
            &[joined(&[text("in blue"), url("https://cdn/9.jpg")], &[1.0, 1.0])],
        );
        check(r#"{"model":"m","texts":["a","b"],"input_type":"search_document"}"#, &[text("a"), text("b")]);
        check(r#"{"inputs":["bare"],"model":"m"}"#, &[text("bare")]);
    }

    #[test]
    fn reads_what_the_texts_are_for() {
        let of = |more: &str| {
            parse(format!(r#"{{"input": "a"{more}}}"#).as_str().into()).unwrap().request.input_type
        };
        for query in ["query", "search_query", "retrieval.query"] {
            assert_eq!(of(&format!(r#", "input_type": "{query}""#)), Some(InputType::Query), "{query}");
        }
        for document in ["document", "search_document", "retrieval.passage"] {
            assert_eq!(of(&format!(r#", "task": "{document}""#)), Some(InputType::Document), "{document}");
        }
        assert_eq!(of(r#", "input_type": "classification""#), None);
        assert_eq!(of(r#", "input_type": null"#), None);
        assert_eq!(of(""), None);
        assert!(refused(r#"{"input": "a", "task": 3}"#).contains("`task`"));
    }

    #[test]
    fn reads_one_item_without_an_array() {
        check(r#""a bare string""#, &[text("a bare string")]);
        check(r#""""#, &[text("")]);
        check(r#"{"input":"one"}"#, &[text("one")]);
        check(r#"{"inputs":{"image":"https://x/a.png"}}"#, &[url("https://x/a.png")]);
        check(r#"{"text":"whole body","model":"m"}"#, &[text("whole body")]);
        check(r#"{"content":[{"type":"text","text":"x"}]}"#, &[text("x")]);
        check(r#"{"image_base64":"iVBO"}"#, &[encoded("iVBO")]);
    }

    #[test]
    fn reads_every_item_object() {
        for (item, expected) in [
            (r#"{"text":"a"}"#, text("a")),
            (r#"{"text":null}"#, text("")),
            (r#"{"image":"HTTPS://x/a"}"#, url("HTTPS://x/a")),
            (r#"{"image":"ftp://x/a"}"#, url("ftp://x/a")),
            (r#"{"image":"data:image/png;base64,AA"}"#, encoded("data:image/png;base64,AA")),
            (r#"{"image":"\/9j\/4AAQ"}"#, encoded("/9j/4AAQ")),
            (r#"{"image":"  "}"#, encoded("")),
            (r#"{"image":null}"#, encoded("")),
            (r#"{"image_url":"http://x/a"}"#, url("http://x/a")),
            (r#"{"image_url":{"detail":"low","url":"http://x/a"}}"#, url("http://x/a")),
            (r#"{"image_url":{"url":null}}"#, encoded("")),
            (r#"{"image_url":"Data:image/png;base64,AA"}"#, encoded("Data:image/png;base64,AA")),
            (r#"{"image_url":"no url at all"}"#, url("no url at all")),
            (r#"{"image_base64":"AA","extra":{"deep":[1,{"x":null}]}}"#, encoded("AA")),
            (r#"{"content":"plain"}"#, text("plain")),
            (r#"{"content":null}"#, text("")),
            (r#"{"type":"text","text":"a"}"#, text("a")),
            (r#"{"image":"AA","text":"a","weight":9}"#, joined(&[text("a"), encoded("AA")], &[1.0, 1.0])),
            (
                r#"{"content":[{"type":"text","text":"a","weight":0.25},{"type":"image_base64","image_base64":"AA","weight":3}]}"#,
                joined(&[text("a"), encoded("AA")], &[0.25, 3.0]),
            ),
            (r#"{"content":[{"type":"text","text":"a","weight":null}]}"#, text("a")),
        ] {
            check(&format!(r#"{{"inputs":[{item}]}}"#), std::slice::from_ref(&expected));
            check(item, &[expected]);
        }
    }

    #[test]
    fn keeps_the_order_and_what_belongs_to_the_request() {
        let call =
            parse(br#"{"dimensions":512,"user":[1],"user":2,"input":["b","a"],"model":"m"}"#[..].into())
                .unwrap();
        assert_eq!(call.request.inputs, [text("b"), text("a")]);
        assert_eq!((call.request.model.as_deref(), call.request.dimensions), (Some("m"), Some(512)));
        assert_eq!(call.answer, Answer::Data);
        assert_eq!(parse(br#"{"texts":"a"}"#[..].into()).unwrap().answer, Answer::DataAndEmbeddings);
        assert_eq!(
            parse(br#"{"input":[],"dimensions":null,"model":null}"#[..].into()).unwrap().request.inputs,
            []
        );
    }

    #[test]
    fn refuses_with_the_place_of_the_fault() {
        for (body, expected) in [
            ("", "not valid JSON: EOF while parsing a value at line 1 column 0"),
            ("{\n \"input\": [\"a\" \"b\"]}", "at line 2 column"),
            (r#"{"input":["a"]} x"#, "trailing characters at line 1 column 17"),
            ("7", "the body is a number"),
            ("[\"a\"]", "the body is an array"),
            ("{}", "no `input`, `inputs` or `texts`"),
            (r#"{"model":"m"}"#, "no `input`, `inputs` or `texts`"),
            (r#"{"texts":["a"],"input":["a"]}"#, "both `input` and `texts`"),
            (r#"{"input":["a"],"model":1}"#, "`model` is a number"),
            (r#"{"input":["a"],"dimensions":0}"#, "`dimensions` must be a whole number above zero"),
            (r#"{"input":["a"],"dimensions":1.5}"#, "`dimensions` must be a whole number"),
            (r#"{"input":["a"],"dimensions":"512"}"#, "`dimensions` is a string"),
            (r#"{"input":["a","b","c",4]}"#, "item 3: is a number"),
            (r#"{"input":[["a"]]}"#, "item 0: is an array"),
            (r#"{"input":[true]}"#, "item 0: is a boolean"),
            (r#"{"input":null}"#, "item 0: is null"),
            (r#"{"input":[{}]}"#, "item 0: has none of `text`"),
            (r#"{"text":["a"]}"#, "item 0: `text` is an array, not a string"),
            (r#"{"input":[{"image_url":{}}]}"#, "item 0: `image_url` is an object without `url`"),
            (r#"{"input":[{"content":[]}]}"#, "item 0: has an empty `content`"),
            (r#"{"input":[{"content":5}]}"#, "item 0: has a `content` that is a number"),
            (r#"{"input":[{"content":"a","text":"b"}]}"#, "item 0: has `content` beside text"),
            (r#"{"input":["a",{"content":["x"]}]}"#, "item 1: part 0: is a string"),
            (r#"{"input":[{"content":[{"text":"x"}]}]}"#, "item 0: part 0: has no `type`"),
            (r#"{"input":[{"content":[{"type":"text"}]}]}"#, "part 0: has type `text` but no `text`"),
            (
                r#"{"input":[{"content":[{"type":"text","text":"x"},{"type":"video"}]}]}"#,
                "item 0: part 1: unknown type `video`; use `text`, `image_url` or `image_base64`",
            ),
        ] {
            let message = refused(body);
            assert!(message.contains(expected), "{body}: {message}");
        }
    }

    #[test]
    fn refuses_weights_that_no_mean_can_use() {
        for weight in ["0", "-1", "1e-60", "1e60", "\"1\"", "[]"] {
            let body =
                format!(r#"{{"input":[{{"content":[{{"type":"text","text":"x","weight":{weight}}}]}}]}}"#);
            let message = refused(&body);
            assert!(message.starts_with("item 0: part 0: `weight`"), "{weight}: {message}");
        }
    }

    #[test]
    fn never_shows_what_it_was_sent() {
        let secret = "s3cret".repeat(50);
        for body in [
            format!(r#"{{"input":["{secret}", 4]}}"#),
            format!(r#"{{"input":["{secret}"#),
            format!(r#"{{"input":["a"],"dimensions":"{secret}"}}"#),
            format!(r#"{{"{secret}":1}}"#),
            format!(r#"{{"input":[{{"{secret}":1}}]}}"#),
        ] {
            assert!(!refused(&body).contains("s3cret"), "{body}");
        }
        let message = refused(&format!(r#"{{"content":[{{"type":"{secret}"}}]}}"#));
        assert!(message.contains(&secret[..40]) && !message.contains(&secret[..41]), "{message}");
    }

    #[test]
    fn bounds_inputs_and_parts() {
        let inputs = |n| format!(r#"{{"input":[{}]}}"#, vec!["\"a\""; n].join(","));
        assert_eq!(parse(inputs(MAX_INPUTS).as_str().into()).unwrap().request.inputs.len(), MAX_INPUTS);
        assert!(refused(&inputs(MAX_INPUTS + 2)).contains("has 2050 inputs, at most 2048"));
        let parts = |n| format!(r#"{{"content":[{}]}}"#, vec![r#"{"type":"text","text":"a"}"#; n].join(","));
        assert_eq!(parse(parts(64).as_str().into()).unwrap().request.inputs[0].parts.len(), 64);
        assert!(refused(&parts(66)).contains("item 0: has 66 parts, at most 64"));
    }

    #[test]
    fn survives_deep_nesting() {
        // What is skipped is skipped without recursion; what is read has a limit.
        assert!(refused(&"[".repeat(100_000)).contains("EOF"));
        let nested = format!(r#"{{"image_url":{}"#, r#"{"url":"#.repeat(100_000));
        assert!(refused(&nested).contains("recursion limit"));
    }

    #[test]
    fn a_bare_string_is_text_even_if_it_is_an_address() {
        let call = parse(br#"{"input":["https://x/a.jpg"]}"#[..].into()).unwrap();
        assert_eq!(call.request.inputs[0].parts[0].content, Content::Text("https://x/a.jpg".into()));
    }
}
