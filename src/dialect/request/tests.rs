//! Bodies of every known shape, and of none.

use super::*;
use crate::domain::{Content, ImageSource, InputType, Part};

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
    EmbedInput { parts: parts.map(part).collect(), input_type: None }
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
    check(r#"{"model":"m","input":["Heat. A group","Ariel."]}"#, &[text("Heat. A group"), text("Ariel.")]);
    check(r#"{"model":"m","input":["test"]}"#, &[text("test")]);
    check(
        r#"{"model":"m","inputs":[{"content":[{"type":"image_url","image_url":"https://cdn/1.jpg"}]},
            {"content":[{"type":"image_url","image_url":""}]}]}"#,
        &[url("https://cdn/1.jpg"), encoded("")],
    );
    check(r#"{"inputs":[{"content":[{"type":"text","text":"red shoe"}]}],"model":"m"}"#, &[text("red shoe")]);
    check(
        r#"{"inputs":[{"content":[{"type":"image_base64","image_base64":"data:image/png;base64,iVBO"}]}]}"#,
        &[encoded("data:image/png;base64,iVBO")],
    );
    check(
        r#"{"inputs":[{"content":[{"text":"in blue","type":"text"},
            {"image_url":"https://cdn/9.jpg","type":"image_url"}]}]}"#,
        &[joined(&[text("in blue"), url("https://cdn/9.jpg")], &[1.0, 1.0])],
    );
    let documents = ["a", "b"].map(|word| EmbedInput { input_type: Some(InputType::Document), ..text(word) });
    check(r#"{"model":"m","texts":["a","b"],"input_type":"search_document"}"#, &documents);
    check(r#"{"inputs":["bare"],"model":"m"}"#, &[text("bare")]);
}

#[test]
fn reads_what_the_texts_are_for() {
    let all = |body: &str| {
        let inputs = parse(body.into()).unwrap().request.inputs;
        inputs.into_iter().map(|input| input.input_type).collect::<Vec<_>>()
    };
    let of = |more: &str| all(&format!(r#"{{"input": "a"{more}}}"#))[0];
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

    // Of one item alone, too, whose word counts before the body's.
    let items = r#""inputs": [{"image": "", "input_type": "query"}, {"text": "a", "input_type": "other"},
        {"content": "a", "input_type": "search_document"}, "a"]"#;
    let [query, document] = [InputType::Query, InputType::Document].map(Some);
    assert_eq!(all(&format!("{{{items}}}")), [query, None, document, None]);
    assert_eq!(all(&format!(r#"{{{items}, "input_type": "query"}}"#)), [query, query, document, query]);
    assert_eq!(all(r#"{"text": "a", "input_type": "query"}"#), [query]);
    assert!(
        refused(r#"{"inputs": ["a", {"text": "a", "input_type": []}]}"#).starts_with("item 1: `input_type`")
    );
    assert!(refused(r#"{"inputs": [{"input_type": "query"}]}"#).contains("has none of"));
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
        parse(br#"{"dimensions":512,"user":[1],"user":2,"input":["b","a"],"model":"m"}"#[..].into()).unwrap();
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
fn strings_are_what_the_modality_says() {
    let data = "data:image/jpeg;base64,AAAA";
    check(&format!(r#"{{"modality":"image","input":"{data}"}}"#), &[encoded(data)]);
    check(
        &format!(r#"{{"model":"m","input":["https://x/a.jpg","{data}",""],"modality":"image"}}"#),
        &[url("https://x/a.jpg"), encoded(data), encoded("")],
    );
    // What says itself what it is stays that.
    check(r#"{"input":[{"text":"a"},{"content":"b"}],"modality":"image"}"#, &[text("a"), text("b")]);
    for unsaid in [r#""text""#, r#""""#, "null"] {
        check(&format!(r#"{{"input":["{data}"],"modality":{unsaid}}}"#), &[text(data)]);
    }
    assert_eq!(
        refused(r#"{"input":["a"],"modality":"audio"}"#),
        "`modality` is `audio`; use `text` or `image`"
    );
    assert!(refused(r#"{"input":["a"],"modality":1}"#).contains("`modality` is a number"));
}

#[test]
fn vectors_are_written_as_openai_is_asked_for_them() {
    let of = |body: &str| parse(body.into()).unwrap().answer;
    assert_eq!(of(r#"{"input":["a"],"encoding_format":"base64"}"#), Answer::Base64);
    for unsaid in [r#""float""#, r#""""#, "null"] {
        assert_eq!(of(&format!(r#"{{"input":["a"],"encoding_format":{unsaid}}}"#)), Answer::Data);
    }
    assert_eq!(of(r#"{"texts":["a"],"encoding_format":"base64"}"#), Answer::DataAndEmbeddings);
    assert_eq!(
        refused(r#"{"input":["a"],"encoding_format":"int8"}"#),
        "`encoding_format` is `int8`; use `float` or `base64`"
    );
    assert!(refused(r#"{"input":["a"],"encoding_format":1}"#).contains("`encoding_format` is a number"));
}

#[test]
fn the_number_of_dimensions_has_two_names() {
    let of = |keys: &str| {
        parse(format!(r#"{{"texts":["a"],{keys}}}"#).as_str().into()).unwrap().request.dimensions
    };
    assert_eq!(of(r#""output_dimension":256"#), Some(256));
    assert_eq!(of(r#""output_dimension":256,"dimensions":512"#), Some(512));
    assert_eq!(of(r#""output_dimension":null"#), None);
    assert!(refused(r#"{"texts":["a"],"output_dimension":"9"}"#).contains("`output_dimension` is a string"));
}

#[test]
fn what_is_no_json_is_told_by_what_it_is() {
    for (body, expected) in [
        (&b"\x1f\x8b\x08\0"[..], "the body is compressed"),
        (b"x\x9c\x03\0", "the body is compressed"),
        (b"\xef\xbb\xbf{\"input\": []}", "the body begins with a byte order mark"),
        (b"\xff\xd8\xff\xe0", "the body is a picture"),
        (b"--edge\r\nContent-Disposition: form-data", "the body is a form"),
        (b"-x", "the body is not valid JSON"),
    ] {
        let message = parse(body.into()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn refuses_weights_that_no_mean_can_use() {
    for weight in ["0", "-1", "1e-60", "1e60", "\"1\"", "[]"] {
        let body = format!(r#"{{"input":[{{"content":[{{"type":"text","text":"x","weight":{weight}}}]}}]}}"#);
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
