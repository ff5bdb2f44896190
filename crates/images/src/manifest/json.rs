//! A first pass over hostile JSON that keeps nothing: it bounds the nesting and the number of entries, and refuses
//! duplicate keys.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::ManifestError;

/// Deeper than any builder's manifest or config; serde_json itself would stop at 128.
const DEPTH_LIMIT: usize = 32;

/// Checks that `bytes` is one JSON value, nested at most [`DEPTH_LIMIT`] deep, without duplicate keys.
pub(crate) fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    walk(bytes, &Entries { count: Cell::new(0), limit: usize::MAX })
}

/// The same, and that all its arrays and objects together have at most so many entries.
pub(crate) fn check_within(bytes: &[u8], limit: usize) -> Result<(), ManifestError> {
    let entries = Entries { count: Cell::new(0), limit };
    walk(bytes, &entries).map_err(|source| match entries.count.get() > limit {
        true => ManifestError::TooMany { limit },
        false => ManifestError::Malformed { source },
    })
}

fn walk(bytes: &[u8], entries: &Entries) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Strict { depth: 0, entries }.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Go programs write and read an absent string as null.
pub(crate) fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The elements of all arrays and the members of all objects so far.
struct Entries {
    count: Cell<usize>,
    limit: usize,
}

impl Entries {
    fn add<E: Error>(&self) -> Result<(), E> {
        self.count.set(self.count.get() + 1);
        if self.count.get() > self.limit {
            return Err(E::custom(format_args!("more than {} entries", self.limit)));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    entries: &'a Entries,
}

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_LIMIT {
            return Err(E::custom(format_args!("nested more than {DEPTH_LIMIT} deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
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
        while seq.next_element_seed(inner)?.is_some() {
            self.entries.add()?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.entries.add()?;
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
    fn entries_are_counted_wherever_they_are() {
        let text = br#"{"a":[1,2],"b":{"c":{}}}"#;
        check_within(text, 5).unwrap();
        assert!(matches!(check_within(text, 4), Err(ManifestError::TooMany { limit: 4 })));
        assert!(matches!(check_within(b"[1,2", 2), Err(ManifestError::Malformed { .. })));
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
