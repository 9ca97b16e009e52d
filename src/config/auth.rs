//! Who may call.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::{NamedKey, empty_is_none};

/// Bearer keys, and what each may ask for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// Keys without a name; logs and metrics call them `key-1`, `key-2`, ...
    pub api_keys: Vec<ApiKey>,
    /// A file with more keys, read again whenever it changes.
    #[serde(with = "empty_is_none")]
    pub keys_file: Option<PathBuf>,
    /// Inputs per second of each key; 0 for no limit.
    pub max_inputs_per_s: u32,
    /// Inputs that a key may ask for at once, after a pause.
    pub max_inputs_burst: u32,
    /// Keys with a name.
    pub keys: Vec<NamedKey>,
}

impl AuthConfig {
    /// Whether callers need a key.
    pub fn asks_for_key(&self) -> bool {
        !self.api_keys.is_empty() || !self.keys.is_empty() || self.keys_file.is_some()
    }

    /// The keys of the settings, those of the file left out: first the ones without a name of their own.
    pub fn listed(&self) -> impl Iterator<Item = NamedKey> {
        let unnamed = self.api_keys.iter().enumerate();
        let unnamed = unnamed.map(|(i, key)| NamedKey::new(format!("key-{}", i + 1), key.clone()));
        unnamed.chain(self.keys.iter().cloned())
    }
}

/// A secret: neither `Debug` nor `Serialize` shows it, but for an empty one, which hides nothing.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// The secret itself, for comparing.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> &'static str {
        if self.0.is_empty() { "" } else { "***" }
    }
}

impl From<&str> for ApiKey {
    fn from(key: &str) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for ApiKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}
