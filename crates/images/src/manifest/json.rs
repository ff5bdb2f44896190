//! A first pass over hostile JSON that keeps nothing: it bounds the nesting and refuses duplicate keys.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Deeper than any builder's manifest or config; serde_json itself would stop at 128.
const DEPTH_LIMIT: usize = 32;

/// Checks that `bytes` is one JSON value, nested at most [`DEPTH_LIMIT`] deep, without duplicate keys.
pub(crate) fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Strict { depth: 0 }.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Go programs write and read an absent string as null.
pub(crate) fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_LIMIT {
            return Err(E::custom(format_args!("nested more than {DEPTH_LIMIT} deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _value: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _value: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _value: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _value: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _value: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(inner)?;
            if let Some(twice) = seen.replace(key) {
                return Err(A::Error::custom(format_args!("key {twice:?} occurs twice")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_json_passes() {
        for good in [r#"{"a":[1,-2,3.5,null,true,"x"],"b":{"a":{}}}"#, "[]", "0", r#" "x" "#] {
            check(good.as_bytes()).unwrap();
        }
    }

    #[test]
    fn duplicate_keys_depth_and_garbage_are_refused() {
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":[{"layers":[],"layers":[]}]}"#,
            r#"{"a":1,"\u0061":2}"#,
            &deep,
            "{} {}",
            "\u{feff}{}",
            "{",
            "",
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check(b"\"\xff\"").is_err());
    }
}
