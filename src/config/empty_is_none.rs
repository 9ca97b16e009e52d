//! Optional values as strings, where the empty one is `None`: every key of `default.toml` has a value.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, IntoDeserializer, value::StringDeserializer},
};

pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let text_deserializer: StringDeserializer<D::Error> = text.clone().into_deserializer();
    if text.is_empty() { Ok(None) } else { T::deserialize(text_deserializer).map(Some) }
}

pub(super) fn serialize<T: Serialize, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str(""),
    }
}
