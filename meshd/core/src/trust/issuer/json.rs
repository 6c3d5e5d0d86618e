//! JSON as a verifier has to read it: each name once.
//!
//! `serde_json` keeps the last of two equal names, other readers keep the first: whoever writes a document
//! could show one thing to one reader and another to the next. Here that is an error.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// Reads one JSON object in which no name stands twice, at any depth. The depth is bounded by `serde_json`.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, &'static str> {
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(Value::Object(object))) => Ok(object),
        Ok(_) => Err("not a JSON object"),
        Err(error) if error.is_data() => Err("a name stands in it twice"),
        Err(_) => Err("not JSON"),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(value)) = from.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            let Strict(value) = from.next_value()?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth() {
        let read = object(br#"{"a": 1, "b": {"a": [true, null, -2, 0.5, "x"]}}"#).unwrap();
        assert_eq!(read["b"]["a"][4], "x");
        let twice = Err("a name stands in it twice");
        assert_eq!(object(br#"{"a": 1, "a": 1}"#), twice);
        assert_eq!(object(br#"{"a": [{"b": 1, "\u0062": 2}]}"#), twice);
        assert_eq!(object(b"[1]"), Err("not a JSON object"));
        assert_eq!(object(b"{"), Err("not JSON"));
        assert_eq!(object(&b"[".repeat(8_000)), Err("not JSON"));
    }
}
