//! Keys with names: what one says, what is wrong with it, and the file that lists them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::ApiKey;

/// The longest name; it stands in every line of the log.
const MAX_NAME: usize = 64;

/// A bearer key and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NamedKey {
    /// What logs and metrics call it.
    pub name: String,
    /// The key.
    pub key: ApiKey,
    /// Whether it opens `/admin`.
    #[serde(default)]
    pub admin: bool,
    /// Its own [`max_inputs_per_s`](super::AuthConfig::max_inputs_per_s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_inputs_per_s: Option<u32>,
    /// Its own [`max_inputs_burst`](super::AuthConfig::max_inputs_burst).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_inputs_burst: Option<u32>,
}

impl NamedKey {
    /// A key that may do what every key may.
    pub fn new(name: String, key: ApiKey) -> Self {
        Self { name, key, admin: false, max_inputs_per_s: None, max_inputs_burst: None }
    }
}

/// What is wrong with one key of a list; never shows the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Not a name that fits into a log line and a metric.
    #[error("a name is up to {MAX_NAME} letters, digits, `-`, `_` and `.`")]
    Name,
    /// A name for two keys.
    #[error("its name is another key's")]
    NameTwice,
    /// Empty, or not to be sent in a header.
    #[error("a key needs visible ASCII only")]
    Key,
    /// Printed settings used as a file would otherwise let everybody in.
    #[error("`***` only stands for a hidden key")]
    Hidden,
    /// Nothing would ever pass.
    #[error("`max_inputs_burst` must be 1 or more")]
    Burst,
}

/// Finds the first key that cannot be used: its place, from 0, and why.
pub(super) fn check_keys(keys: impl IntoIterator<Item = NamedKey>) -> Result<(), (usize, KeyFault)> {
    let mut names = BTreeSet::new();
    for (i, NamedKey { name, key, max_inputs_burst, .. }) in keys.into_iter().enumerate() {
        let is_named = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let secret = key.expose();
        let fault = if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_named) {
            KeyFault::Name
        } else if secret.is_empty() || secret.contains(|c: char| !c.is_ascii_graphic()) {
            KeyFault::Key
        } else if secret == "***" {
            KeyFault::Hidden
        } else if max_inputs_burst == Some(0) {
            KeyFault::Burst
        } else if !names.insert(name) {
            KeyFault::NameTwice
        } else {
            continue;
        };
        return Err((i, fault));
    }
    Ok(())
}

/// Why a file of keys is of no use; never shows what is in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Not TOML, or not keys.
    #[error("line {line} is not as expected: a file of keys has [[keys]], name = \"...\", key = \"...\"")]
    Syntax {
        /// From 1.
        line: usize,
    },
    /// An empty file must not open the door.
    #[error("it holds no key")]
    Empty,
    /// One of the keys is wrong.
    #[error("key number {number}: {fault}")]
    Key {
        /// From 1, those of the settings left out.
        number: usize,
        /// What is wrong.
        fault: KeyFault,
    },
}

/// Reads a file of keys: TOML with the list `keys`, each as in `[[auth.keys]]`. `listed` are the keys of the
/// settings, whose names are taken.
///
/// # Errors
/// [`KeysError`]; also for a file without any key.
pub fn read_keys(text: &[u8], listed: &[NamedKey]) -> Result<Vec<NamedKey>, KeysError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct KeysFile {
        #[serde(default)]
        keys: Vec<NamedKey>,
    }
    let line_at = |at: usize| 1 + text[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
    let syntax = |at| KeysError::Syntax { line: line_at(at) };
    let text_str = str::from_utf8(text).map_err(|error| syntax(error.valid_up_to()))?;
    let KeysFile { keys } =
        toml::from_str(text_str).map_err(|error| syntax(error.span().map_or(0, |span| span.start)))?;
    if keys.is_empty() {
        return Err(KeysError::Empty);
    }
    check_keys(listed.iter().chain(&keys).cloned())
        .map_err(|(i, fault)| KeysError::Key { number: (i + 1).saturating_sub(listed.len()), fault })?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let listed = [NamedKey::new("taken".into(), "k".into())];
        read_keys(text.as_bytes(), &listed).expect_err(text).to_string()
    }

    #[test]
    fn reads_names_rights_and_limits() {
        let text = "[[keys]]\nname = \"a\"\nkey = \"one\"\n[[keys]]\nname = \"b\"\nkey = \"two\"\nadmin = true\n\
                    max_inputs_per_s = 5\nmax_inputs_burst = 9\n";
        let keys = read_keys(text.as_bytes(), &[]).unwrap();
        assert_eq!(keys[0], NamedKey::new("a".into(), "one".into()));
        assert!(keys[1].admin && keys[1].key.expose() == "two");
        assert_eq!((keys[1].max_inputs_per_s, keys[1].max_inputs_burst), (Some(5), Some(9)));
    }

    #[test]
    fn what_is_wrong_is_told_without_what_is_in_there() {
        for empty in ["", "keys = []", "# nothing"] {
            assert_eq!(refusal(empty), "it holds no key");
        }
        let entry = |name: &str, key: &str| format!("[[keys]]\nname = \"{name}\"\nkey = {key}\n");
        for (text, expected) in [
            ("hunter2".to_owned(), "line 1 is"),
            ("hunter2 = 1".into(), "line 1 is"),
            (entry("a", "\"hunter2"), "line 3 is"),
            (entry("a", "424242"), "line 3 is"),
            (entry("a b", "\"hunter2\""), "key number 1: a name is"),
            (entry("taken", "\"hunter2\""), "key number 1: its name is another"),
            (entry("a", "\"hunter2\"") + &entry("a", "\"x\""), "key number 2: its name is another"),
            (entry("a", "\"hunter2 \""), "key number 1: a key needs"),
            (entry("a", "\"***\""), "key number 1: `***`"),
        ] {
            let message = refusal(&text);
            assert!(message.starts_with(expected), "{message}");
            assert!(!message.contains("hunter") && !message.contains("4242"), "{message}");
        }
        assert_eq!(read_keys(b"\n\xff", &[]), Err(KeysError::Syntax { line: 2 }));
    }
}
