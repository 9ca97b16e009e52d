//! A line of the list: the address or path of a picture, or an object with an `image` or a `text`, and an `id` if the
//! line's number is not to be it.

use blake3::Hash;
use serde::Deserialize;
use serde_json::error::Category;
use url::Url;

use crate::config::holds_credentials;
use crate::domain::{Content, ImageSource};

/// The longest `id`: twice what Meilisearch takes.
const MAX_ID_BYTES: usize = 1024;
/// The longest address or path that a row repeats: more than servers take.
const MAX_REFERENCE_BYTES: usize = 8 << 10;

/// A line of the list.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    /// From 0.
    pub number: u64,
    /// The object's `id`, or else the number.
    pub id: String,
    /// The picture as it stands in the list, but for credentials; not what is a picture itself.
    pub image: Option<String>,
    /// What is to be embedded, or what is wrong with the line.
    pub content: Result<Content, String>,
    /// Of the shard's lines up to this one.
    pub digest: Hash,
}

/// What an object may hold, among other things.
#[derive(Deserialize)]
struct Object {
    id: Option<Id>,
    image: Option<String>,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(serde_json::Number),
}

impl Line {
    /// What `line` says, an object if `is_json`.
    pub fn parse(number: u64, line: &[u8], is_json: bool, digest: Hash) -> Self {
        let object = match (is_json, str::from_utf8(line)) {
            (true, _) => serde_json::from_slice(line).map_err(|error| explain(&error)),
            (false, Ok(line)) => Ok(Object { id: None, image: Some(line.into()), text: None }),
            (false, Err(_)) => Err("the line is no UTF-8".into()),
        };
        let Object { id, image, text } = match object {
            Ok(object) => object,
            Err(reason) => return Self::wrong(number, reason, digest),
        };
        let id = match id {
            Some(Id::Text(id)) => id,
            // What is left of any other number is not what the list has.
            Some(Id::Number(id)) if id.is_f64() => {
                let reason = format!(
                    "its `id` is no whole number from {} to {}; write it as a string",
                    i64::MIN,
                    u64::MAX
                );
                return Self::wrong(number, reason, digest);
            }
            Some(Id::Number(id)) => id.to_string(),
            None => number.to_string(),
        };
        if id.len() > MAX_ID_BYTES {
            let reason = format!("its `id` is longer than {MAX_ID_BYTES} bytes");
            return Self::wrong(number, reason, digest);
        }
        let reference = image.as_deref().and_then(reference);
        let content = match (image, text) {
            (Some(image), None) => Ok(Content::Image(match ImageSource::is_data_uri(&image) {
                true => ImageSource::Encoded(image.as_bytes().into()),
                false => ImageSource::Url(image),
            })),
            (None, Some(text)) => Ok(Content::Text(text.into())),
            (None, None) => Err("the object has neither `image` nor `text`".into()),
            (Some(_), Some(_)) => {
                Err("the object has `image` and `text`; give each a line of its own".into())
            }
        };
        Self { number, id, image: reference, content, digest }
    }

    /// A line that cannot be worked on, for this `reason`.
    pub fn wrong(number: u64, reason: String, digest: Hash) -> Self {
        Self { number, id: number.to_string(), image: None, content: Err(reason), digest }
    }

    /// Bytes that its content holds while it is worked on: each attempt takes a copy of a picture, which it decodes where it
    /// stands, as the next one needs the original.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Ok(Content::Text(text)) => text.len(),
            Ok(Content::Image(ImageSource::Url(url))) => 2 * url.len(),
            Ok(Content::Image(ImageSource::Encoded(picture))) => 2 * picture.len(),
            Ok(Content::Image(ImageSource::Bytes(picture))) => picture.len(),
            Err(reason) => reason.len(),
        }
    }
}

/// Says what is wrong without a word of the line, in which there may be a password.
fn explain(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        Category::Data => {
            "it must be an object; of its keys `image` and `text` are strings, `id` is one or a number"
        }
        Category::Eof => "the object breaks off",
        Category::Syntax | Category::Io => "it is no JSON",
    };
    match error.column() {
        0 => what.into(),
        column => format!("{what} (column {column})"),
    }
}

/// What a row may say of its picture: as in the list, so that tables can be joined, without a user's name and password.
fn reference(image: &str) -> Option<String> {
    if image.len() > MAX_REFERENCE_BYTES || ImageSource::is_data_uri(image) {
        return None;
    }
    match Url::parse(image.trim()) {
        Ok(mut url) if holds_credentials(&url) => {
            // Refused only by addresses that can have neither.
            let _ = (url.set_username(""), url.set_password(None));
            Some(url.into())
        }
        // Broken, so that nobody can tell what is secret in it.
        Err(_) if image.contains("://") && image.contains('@') => None,
        _ => Some(image.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_credentials_and_no_pictures_in_references() {
        let check = |image: &str, expected: Option<&str>| assert_eq!(reference(image).as_deref(), expected);
        check("https://user:secret@h/a.jpg?size=1", Some("https://h/a.jpg?size=1"));
        check("https://h/a b.jpg?x#y", Some("https://h/a b.jpg?x#y"));
        check("https://user:secret@no host/a.jpg", None);
        check("data:image/png;base64,AAAA", None);
        check("dir/a.jpg", Some("dir/a.jpg"));
    }

    fn parse(line: &str) -> Line {
        Line::parse(7, line.as_bytes(), true, Hash::from_bytes([0; 32]))
    }

    #[test]
    fn nothing_of_a_wrong_line_is_repeated() {
        for (line, expected) in [
            (r#"{"image": {"url": "https://me:hunter2@h/a.jpg"}}"#, "it must be an object"),
            (r#"["https://me:hunter2@h/a.jpg"]"#, "it must be an object"),
            (r#""https://me:hunter2@h/a.jpg""#, "it must be an object"),
            (r#"{"id": ["hunter2"], "text": "a"}"#, "it must be an object"),
            ("https://me:hunter2@h/a.jpg", "it is no JSON (column 1)"),
            (r#"{"image": "https://me:hunter2@h/a.jpg"#, "the object breaks off (column "),
        ] {
            let reason = parse(line).content.unwrap_err();
            assert!(reason.starts_with(expected) && !reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn what_a_row_repeats_is_bounded() {
        let long = "A".repeat(MAX_REFERENCE_BYTES + 1);
        let line = parse(&format!(r#"{{"image": "{long}"}}"#));
        assert_eq!((line.image, line.content), (None, Ok(Content::Image(ImageSource::Url(long.clone())))));
        let line = parse(&format!(r#"{{"id": "{long}", "text": "a"}}"#));
        assert_eq!((line.id.as_str(), line.content), ("7", Err("its `id` is longer than 1024 bytes".into())));
    }

    #[test]
    fn a_number_is_the_id_that_the_list_has_or_none() {
        for number in ["0", "-7", "18446744073709551615", "-9223372036854775808"] {
            let line = parse(&format!(r#"{{"id": {number}, "text": "a"}}"#));
            assert_eq!((line.id.as_str(), line.content), (number, Ok(Content::Text("a".into()))));
        }
        for number in ["18446744073709551616", "1.10", "1e3", "123456789012345678901234567890", "-0"] {
            let line = parse(&format!(r#"{{"id": {number}, "text": "a"}}"#));
            let reason = line.content.unwrap_err();
            assert!(line.id == "7" && reason.contains("as a string"), "{number}: {reason}");
        }
    }

    #[test]
    fn a_data_uri_is_a_picture_and_no_address() {
        let line = parse(r#"{"image": " DATA:image/png;base64,AAAA"}"#);
        let picture = ImageSource::Encoded(" DATA:image/png;base64,AAAA".into());
        assert_eq!((line.bytes(), line.image, line.content), (2 * 27, None, Ok(Content::Image(picture))));
    }
}
