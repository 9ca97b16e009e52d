//! Counting the vectors of an answer without knowing its shape: every array of numbers is one.
//!
//! Brackets, quotes and commas are looked at, numbers are not converted: at 20,000 vectors a second that would
//! take a core from the server. Whether the rest is sound JSON is taken on trust.

use memchr::{memchr_iter, memchr2, memchr3};

/// The vectors of one answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vectors {
    /// How many there are.
    pub n: usize,
    /// Components of each.
    pub dimensions: usize,
}

/// Counts the vectors in a JSON text.
///
/// # Errors
/// One sentence: a vector holds something that is no number, or two differ in length.
pub(super) fn vectors(json: &[u8]) -> Result<Vectors, String> {
    let mut found = Vectors::default();
    // Where the innermost array begins, unless it holds strings or objects.
    let mut opened = None;
    let mut at = 0;
    while let Some(next) = memchr3(b'[', b']', b'"', &json[at..]) {
        at += next + 1;
        match json[at - 1] {
            b'[' => opened = Some(at),
            b']' => {
                if let Some(start) = opened.take() {
                    found.add(&json[start..at - 1])?;
                }
            }
            _ => {
                opened = None;
                at += string_len(&json[at..]);
            }
        }
    }
    Ok(found)
}

/// Bytes up to and with the quote that ends a string.
fn string_len(rest: &[u8]) -> usize {
    let mut at = 0;
    while let Some(next) = memchr2(b'"', b'\\', &rest[at..]) {
        at += next + 1;
        if rest[at - 1] == b'"' {
            return at;
        }
        at = (at + 1).min(rest.len());
    }
    rest.len()
}

impl Vectors {
    /// Takes in an array that holds neither arrays nor strings.
    fn add(&mut self, items: &[u8]) -> Result<(), String> {
        if !items.iter().any(u8::is_ascii_digit) {
            return Ok(());
        }
        let Self { n, dimensions } = *self;
        let is_of_numbers = |byte: u8| {
            byte.is_ascii_digit()
                | byte.is_ascii_whitespace()
                | matches!(byte, b'-' | b'+' | b'.' | b',' | b'e' | b'E')
        };
        // Not `all`, which stops early and so cannot look at many bytes at once.
        if !items.iter().fold(true, |so_far, byte| so_far & is_of_numbers(*byte)) {
            return Err(format!("vector {n} holds something that is no number"));
        }
        let found = memchr_iter(b',', items).count() + 1;
        if n > 0 && found != dimensions {
            return Err(format!("vector {n} has {found} components, others {dimensions}"));
        }
        *self = Self { n: n + 1, dimensions: found };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_vectors_in_every_shape() {
        for body in [
            r#"{"data": [{"index": 0, "embedding": [0.5, -1]}, {"embedding": [1, 2e-3]}], "usage": {"n": 3}}"#,
            "[[0.1, 0.2], [\n  0.3,\n  0.4\n]]",
            r#"{"embeddings": {"float": [[1, 2], [3, 4E+5]]}, "id": "x", "ok": true, "list": [], "no": [null, {}]}"#,
            r#"{"a \" [1] ": "[2", "data": [[1, 2], [3, 4]], "texts": ["[1, 2]", "\\"], "end": "[9"}"#,
        ] {
            assert_eq!(vectors(body.as_bytes()), Ok(Vectors { n: 2, dimensions: 2 }), "{body}");
        }
        assert_eq!(vectors(br#"{"embedding": [1, 2, 3]}"#), Ok(Vectors { n: 1, dimensions: 3 }));
        for body in [r#"{"error": "full"}"#, "<html>", "", "\"", "\"\\", "]", "[[1, 2"] {
            assert_eq!(vectors(body.as_bytes()), Ok(Vectors::default()), "{body}");
        }
    }

    #[test]
    fn says_what_is_no_vector() {
        for (body, said) in [
            ("[[1, null]]", "vector 0 holds something that is no number"),
            ("[[1, 2], [1]]", "vector 1 has 1 components, others 2"),
        ] {
            assert_eq!(vectors(body.as_bytes()), Err(said.into()));
        }
    }
}
