//! The settings of a Meilisearch index, as Meilisearch 1.50 wants them for its `rest` source.
//!
//! **Texts alone** need no fragments: `documentTemplate` in, one text out, no experimental switch.
//!
//! **Pictures** need fragments: objects that Meilisearch fills and sends as they are. A field that a
//! document lacks is an error of its template, and the document gets no vector from that fragment;
//! that is right for a document without a picture. A field that is null would render as an empty
//! string and be sent, and under `on_item_error = "fail"` one such document would fail the whole task;
//! the picture's template therefore fails on purpose when the field is null or empty. In a template such as
//! `https://cdn.example/{{doc.file}}` null is no more than the address of a directory: the same guard stands before it.
//!
//! **Text and picture** go into *one* fragment with two parts, whose vectors Sidelens averages. Two
//! fragments would each keep a store of their own, merged by distance at search; but in a CLIP space
//! texts lie far nearer to texts than to pictures, so for a query in words the text store would fill
//! every first page, and for a picture the image store would. In one fused fragment all documents
//! compete on the same terms. The price: a document without a picture has no vector, and is found by
//! its words only, and so is one that lacks a field of the text template. A second fragment for such
//! documents would bring the unfair contest back.
//!
//! **Searches** render every search fragment, and exactly one must succeed. Three can never collide:
//!
//! | search | `text` | `image` | `url` |
//! |---|---|---|---|
//! | `q` | renders | no `media.image` | no `media.url` |
//! | `media.image`, with or without `q` | fails on purpose, as there is `media` | renders | fails on purpose, as there is `media.image` |
//! | `media.url`, with or without `q` | fails on purpose | no `media.image` | renders |
//! | `media.image` and `media.url` | fails on purpose | renders | fails on purpose |
//!
//! "Fails on purpose" is an unknown field inside an `if`: Meilisearch knows no other way to switch a
//! fragment off, and without it `q` beside `media` would match two fragments and be refused. With
//! `media`, `q` still drives the keyword half of a hybrid search.
//!
//! **What a fragment is for** stands in it, as `input_type`: documents and searches get the model's own prompt, where it
//! has any, and a search by a broken picture is an error: by the placeholder vector it would find what is broken first.
//! Pictures alone have no prompt, so their fragment says nothing, and says the same as it always did: Meilisearch computes
//! anew where it changes, but not for the fragments of searches.
//!
//! **An embedder of this name that is there already** is merged with: Meilisearch keeps what a `PATCH` does
//! not name, and fragments it merges by their names. So a document's fragment has one name, with a text and
//! without; of two names both would live, and every document have two vectors. Fragments push
//! `documentTemplate` out by themselves, and a null for it has Meilisearch go through all documents at each
//! `PATCH`. The other way only null takes fragments out, and that computes every vector anew, even where there
//! were none; but settings are sent again for less, such as another key. So these nulls stand there only when
//! asked for. Without them the task fails, as `request` has no `{{fragment}}`, and the index stays as it was.
//!
//! Source: Meilisearch 1.50, `SettingsDiff::apply_and_diff` in `crates/milli/src/vector/settings.rs`.

use serde_json::{Map, Value, json};

/// The one fragment of a document, with or without a text.
const INDEXING_FRAGMENT: &str = "document";

/// What an embedder is to do.
#[derive(Debug, Clone)]
pub(super) struct Embedder<'a> {
    /// Its name in the index.
    pub name: &'a str,
    /// Where Meilisearch posts to.
    pub url: &'a str,
    /// Sent as a bearer key.
    pub api_key: Option<&'a str>,
    /// The name of the model; a change makes Meilisearch compute every vector anew.
    pub model: &'a str,
    /// Components of a vector.
    pub dimensions: usize,
    /// Whether the model can be searched in words.
    pub has_texts: bool,
    /// A Liquid template of each document's picture address; see [`picture_template`].
    pub picture: Option<&'a str>,
    /// A Liquid template of each document's text.
    pub text: Option<&'a str>,
    /// Whether texts alone take the fragments out of an embedder that had pictures.
    pub drop_fragments: bool,
}

/// The body of `PATCH /indexes/{uid}/settings`.
///
/// With a picture it needs the experimental switch `multimodal`.
pub(super) fn index_settings(embedder: &Embedder) -> Value {
    let mut settings = json!({
        "source": "rest",
        "url": embedder.url,
        // Never left to Meilisearch to find out: its probe has no deadline, and fragments forbid it.
        "dimensions": embedder.dimensions,
        "response": {"data": [{"embedding": "{{embedding}}"}, "{{..}}"]},
    });
    if let Some(key) = embedder.api_key {
        settings["apiKey"] = key.into();
    }
    // The model stands in the request, since a change there re-embeds every document; a change behind
    // the same request would mix two spaces.
    match embedder.picture {
        None => {
            settings["documentTemplate"] = embedder.text.unwrap_or_default().into();
            settings["request"] = json!({"model": embedder.model, "input": ["{{text}}", "{{..}}"]});
            if embedder.drop_fragments {
                settings["indexingFragments"] = Value::Null;
                settings["searchFragments"] = Value::Null;
            }
        }
        Some(picture) => {
            let document = match embedder.text {
                None => fragment(vec![picture_part(picture)]),
                Some(text) => fragment_for("document", vec![text_part(text), picture_part(picture)]),
            };
            settings["indexingFragments"] = json!({INDEXING_FRAGMENT: {"value": document}});
            settings["searchFragments"] = search_fragments(embedder.has_texts);
            settings["request"] = fragments_request(embedder.model, "{{fragment}}".into());
        }
    }
    json!({"embedders": Map::from_iter([(embedder.name.to_string(), settings)])})
}

/// The `request` template of an embedder with fragments, for `fragment` in the place of each.
pub(super) fn fragments_request(model: &str, fragment: Value) -> Value {
    json!({"model": model, "inputs": [fragment, "{{..}}"]})
}

fn search_fragments(has_texts: bool) -> Value {
    let text = text_part("{% if media %}{{ media.no_such_field }}{% endif %}{{q}}");
    let image = json!({
        "type": "image_base64",
        "image_base64": "data:{{media.image.mime}};base64,{{media.image.data}}",
    });
    let url = picture_part("{% if media.image %}{{ media.no_such_field }}{% endif %}{{media.url}}");
    [("text", text), ("image", image), ("url", url)]
        .into_iter()
        .filter(|(name, _)| has_texts || *name != "text")
        .map(|(name, part)| (name.to_owned(), json!({"value": fragment_for("query", vec![part])})))
        .collect()
}

/// An item of a request that says what it is for.
fn fragment_for(input_type: &str, parts: Vec<Value>) -> Value {
    json!({"input_type": input_type, "content": parts})
}

/// An item of a request, from its parts.
pub(super) fn fragment(parts: Vec<Value>) -> Value {
    json!({ "content": parts })
}

/// A text in a fragment.
pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// The address of a picture in a fragment; a data URI is one, too.
pub(super) fn picture_part(url: &str) -> Value {
    json!({"type": "image_url", "image_url": url})
}

/// The template of a picture's address: `field` is the name of a field (`poster`, `images.front`,
/// `gallery[0]`), or a template already (`https://cdn.example/{{doc.file}}`).
///
/// # Errors
/// One sentence, when `field` is neither.
pub(super) fn picture_template(field: &str) -> Result<String, String> {
    let template = if field.contains("{{") {
        field.to_owned()
    } else if !field.starts_with("doc.") && are_steps(&format!(".{field}")) {
        format!("{{{{doc.{field}}}}}")
    } else {
        return Err(format!(
            "`{field}` is no field name; write a name such as poster, images.front or gallery[0], or a \
             template such as https://cdn.example/{{{{doc.file}}}}, or {{{{doc[\"my file\"]}}}} for a name of other letters"
        ));
    };
    if !names_field(&template) {
        return Err(format!("`{template}` names no field of the document; write it as {{{{doc.image}}}}"));
    }
    Ok(guards(&template) + &template)
}

/// Whether a template has anything of the document in it.
pub(super) fn names_field(template: &str) -> bool {
    ["doc.", "doc[", "fields"].iter().any(|start| template.contains(start))
}

/// Whether these lead from a document to a field: names behind dots, and numbers or quoted names in brackets, which other
/// names need: `.a.b[0]["c d"]`.
fn are_steps(mut steps: &str) -> bool {
    while let Some(first) = steps.chars().next() {
        let rest = &steps[first.len_utf8()..];
        let behind = match first {
            '.' => behind_name(rest),
            '[' => {
                behind_number(rest).or_else(|| behind_quotes(rest)).and_then(|rest| rest.strip_prefix(']'))
            }
            _ => None,
        };
        let Some(behind) = behind else { return false };
        steps = behind;
    }
    true
}

fn behind_name(text: &str) -> Option<&str> {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts.then(|| text.trim_start_matches(is_in_name))
}

fn behind_number(text: &str) -> Option<&str> {
    let behind = text.trim_start_matches(|c: char| c.is_ascii_digit());
    (behind.len() < text.len()).then_some(behind)
}

fn behind_quotes(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|&c| c == '"' || c == '\'')?;
    Some(text[1..].split_once(quote)?.1)
}

/// What fails on purpose where a field that stands plainly in the template is null or empty. Whoever writes filters or
/// tags decides about that, too.
fn guards(template: &str) -> String {
    if template.contains("{%") {
        return String::new();
    }
    let mut fields = Vec::new();
    for expression in template.split("{{").filter_map(|rest| Some(rest.split_once("}}")?.0.trim())) {
        let steps = expression.strip_prefix("doc").filter(|steps| !steps.is_empty() && are_steps(steps));
        if steps.is_some() && !fields.contains(&expression) {
            fields.push(expression);
        }
    }
    let guard = |field| format!("{{% if {field} == blank %}}{{{{ doc.no_such_field }}}}{{% endif %}}");
    fields.into_iter().map(guard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: Embedder = Embedder {
        name: "sidelens",
        url: "http://127.0.0.1:7800/embed",
        api_key: Some("secret"),
        model: "sidelens-demo",
        dimensions: 128,
        has_texts: true,
        picture: None,
        text: None,
        drop_fragments: false,
    };

    fn settings(picture: Option<&str>, text: Option<&str>) -> Value {
        index_settings(&Embedder { picture, text, ..DEMO })
    }

    /// Every string in `value` that equals `placeholder`.
    fn count(value: &Value, placeholder: &str) -> usize {
        match value {
            Value::String(text) => usize::from(text == placeholder),
            Value::Array(items) => items.iter().map(|item| count(item, placeholder)).sum(),
            Value::Object(map) => map.values().map(|item| count(item, placeholder)).sum(),
            _ => 0,
        }
    }

    /// Whether `{{..}}` is exactly the second and last item of an array whose first holds `placeholder`.
    fn repeats(value: &Value, placeholder: &str) -> bool {
        match value {
            Value::Array(items) => {
                matches!(items.as_slice(), [first, second] if count(first, placeholder) == 1 && second == "{{..}}")
                    || items.iter().any(|item| repeats(item, placeholder))
            }
            Value::Object(map) => map.values().any(|item| repeats(item, placeholder)),
            _ => false,
        }
    }

    /// The rules by which Meilisearch accepts a `rest` embedder.
    fn check_rules(settings: &Value) {
        let embedder = &settings["embedders"]["sidelens"];
        assert_eq!(embedder["source"], "rest");
        assert!(embedder["url"].is_string());
        assert!(embedder["dimensions"].as_u64().is_some_and(|n| n > 0));
        let fragments = [&embedder["indexingFragments"], &embedder["searchFragments"]];
        let n_maps = fragments.iter().filter(|map| map.as_object().is_some_and(|m| !m.is_empty())).count();
        let placeholder = match (n_maps, embedder["documentTemplate"].is_string()) {
            (0, true) => "{{text}}",
            (2, false) => "{{fragment}}",
            other => panic!("either both fragment maps or a document template: {other:?}"),
        };
        for (template, placeholder) in
            [(&embedder["request"], placeholder), (&embedder["response"], "{{embedding}}")]
        {
            assert_eq!(count(template, placeholder), 1, "{template}");
            assert_eq!(count(template, "{{..}}"), 1, "{template}");
            assert!(repeats(template, placeholder), "{template}");
        }
        assert_eq!(embedder["request"]["model"], "sidelens-demo");
        for fragment in fragments.iter().filter_map(|map| map.as_object()).flatten() {
            assert!(fragment.1["value"]["content"].as_array().is_some_and(|parts| !parts.is_empty()));
        }
    }

    #[test]
    fn follows_every_rule() {
        let picture = picture_template("poster").unwrap();
        for (picture, text) in [
            (None, Some("{{doc.title}}")),
            (Some(picture.as_str()), None),
            (Some(picture.as_str()), Some("{{doc.title}}")),
        ] {
            check_rules(&settings(picture, text));
        }
    }

    #[test]
    fn fuses_text_and_picture() {
        let settings = settings(Some("{{doc.poster}}"), Some("{{doc.title}}"));
        assert_eq!(
            settings["embedders"]["sidelens"]["indexingFragments"],
            json!({"document": {"value": {"input_type": "document", "content": [
                {"type": "text", "text": "{{doc.title}}"},
                {"type": "image_url", "image_url": "{{doc.poster}}"},
            ]}}})
        );
    }

    /// Meilisearch merges with the embedder that is there, fragments by their names.
    #[test]
    fn replaces_what_is_merged_with() {
        let merged = |settings: &Value| settings["embedders"]["sidelens"].as_object().unwrap().clone();
        let names = |settings: &Value, map: &str| {
            Vec::from_iter(merged(settings)[map].as_object().unwrap().keys().cloned())
        };
        let picture = settings(Some("{{doc.poster}}"), None);
        let fused = settings(Some("{{doc.poster}}"), Some("{{doc.title}}"));
        for map in ["indexingFragments", "searchFragments"] {
            assert_eq!(names(&picture, map), names(&fused, map), "{map}");
        }
        assert_eq!(names(&fused, "indexingFragments").len(), 1);
        // Either null has Meilisearch go through every document at every PATCH; none stands there unasked.
        let text = settings(None, Some("{{doc.title}}"));
        for settings in [&picture, &fused, &text] {
            assert!(merged(settings).values().all(|value| !value.is_null()), "{settings}");
        }
        let dropping =
            index_settings(&Embedder { text: Some("{{doc.title}}"), drop_fragments: true, ..DEMO });
        check_rules(&dropping);
        let mut expected = text;
        expected["embedders"]["sidelens"]["indexingFragments"] = Value::Null;
        expected["embedders"]["sidelens"]["searchFragments"] = Value::Null;
        // Whole maps, as a key that is missing would read as null.
        assert_eq!(merged(&dropping), merged(&expected));
    }

    #[test]
    fn takes_fields_and_templates() {
        let guard =
            |steps: &str| format!("{{% if doc{steps} == blank %}}{{{{ doc.no_such_field }}}}{{% endif %}}");
        let [field, f, v] = [".a.b[0]", ".f", ".v"].map(guard);
        assert_eq!(picture_template("a.b[0]").unwrap(), format!("{field}{{{{doc.a.b[0]}}}}"));
        for (template, guards) in [
            ("http://x/{{doc.f}}", f.clone()),
            ("http://x/{{ doc.f }}?v={{doc.v}}&again={{doc.f}}", f + &v),
            ("{{doc[\"my picture\"]['1'].url}}", guard("[\"my picture\"]['1'].url")),
            // Whoever writes filters or tags decides about what is null, too.
            ("http://x/{{doc.f | default: 'none.png'}}", String::new()),
            ("{% if doc.f %}{{doc.f}}{% else %}http://x/{{doc.v}}{% endif %}", String::new()),
        ] {
            assert_eq!(picture_template(template).unwrap(), format!("{guards}{template}"));
        }
        for bad in [
            "",
            "my field",
            "{doc.poster}",
            "a}}",
            "0",
            "doc.image",
            "a..b",
            "a.",
            ".a",
            "a.0",
            "images[front]",
            "a[0",
            "a[]",
            "a[0]b",
            "a[\"b",
            "[\"a\"]",
            "{{image}}",
            "http://x/{{image}}",
        ] {
            assert!(picture_template(bad).is_err(), "{bad}");
        }
    }
}
