//! JSON values whose type is only checked after reading, so that a wrong one is reported with its place.
//!
//! Unlike a `serde_json::Value` they leave a string where it is, and they skip what nobody asked for instead
//! of storing it: bodies hold a hundred megabytes of base64.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::cuts::Word;

/// A value that takes whatever JSON it meets; each method is one JSON type.
pub(super) trait AnyJson<'de>: Sized {
    /// A value of a type that does not fit here; `found` names it ("a number").
    fn wrong(found: &'static str) -> Self;

    /// A string.
    fn string(value: Word) -> Self;

    /// `null`.
    fn null() -> Self {
        Self::wrong("null")
    }

    /// A number.
    fn number(_value: f64) -> Self {
        Self::wrong("a number")
    }

    /// An array.
    fn array<A: SeqAccess<'de>>(mut array: A) -> Result<Self, A::Error> {
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::wrong("an array"))
    }

    /// An object.
    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::wrong("an object"))
    }
}

/// Reads any JSON value into `T`.
pub(super) fn read_any<'de, T: AnyJson<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(AnyVisitor(PhantomData))
}

/// Reads a field whose `null` differs from its absence; for `#[serde(deserialize_with)]`.
pub(super) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

struct AnyVisitor<T>(PhantomData<T>);

impl<'de, T: AnyJson<'de>> Visitor<'de> for AnyVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Ok(T::wrong("a boolean"))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        Ok(T::number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        Ok(T::number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        Ok(T::number(value))
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::null())
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<T, E> {
        Ok(T::string(Word::standing(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<T, E> {
        Ok(T::string(Word::Unescaped(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, array: A) -> Result<T, A::Error> {
        T::array(array)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

/// A value without children, or an object's `url`.
#[derive(Debug)]
pub(super) enum Leaf {
    /// A string, or `null`: templates over null fields render the empty string.
    String(Word),
    /// A number.
    Number(f64),
    /// `{"url": ...}`.
    Url(Word),
    /// Something else, by the name of its type.
    Wrong(&'static str),
}

impl Leaf {
    /// The name of the value's type, for messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Number(_) => "a number",
            Self::Url(_) => "an object",
            Self::Wrong(found) => found,
        }
    }
}

impl<'de> AnyJson<'de> for Leaf {
    fn wrong(found: &'static str) -> Self {
        Self::Wrong(found)
    }

    fn string(value: Word) -> Self {
        Self::String(value)
    }

    fn null() -> Self {
        Self::String(Word::EMPTY)
    }

    fn number(value: f64) -> Self {
        Self::Number(value)
    }

    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Key {
            Url,
            #[serde(other)]
            Other,
        }
        let mut leaf = Self::Wrong("an object without `url`");
        while let Some(key) = object.next_key()? {
            match key {
                Key::Url => {
                    leaf = match object.next_value()? {
                        Self::String(url) => Self::Url(url),
                        _ => Self::Wrong("an object whose `url` is not a string"),
                    }
                }
                Key::Other => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(leaf)
    }
}

impl<'de> Deserialize<'de> for Leaf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_any(deserializer)
    }
}
