//! Numbers in files of the Container Device Interface. JSON has them as numbers; whoever reads YAML passes each scalar
//! on as text, since only the field that it is for tells whether `0660` is a number.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// The value of a field that may be missing, or may be there without a value.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: serde::Deserialize<'de> + Default,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(pub(super) i64);

impl<'de> serde::Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyNumber)
    }
}

struct AnyNumber;

impl Visitor<'_> for AnyNumber {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Number, E> {
        Ok(Number(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
        i64::try_from(value).map(Number).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        parse(text).map(Number).ok_or_else(|| E::custom(format_args!("{text:?} is not a whole number")))
    }
}

/// A number as YAML writes it: octal after `0` or `0o`, hexadecimal after `0x`.
fn parse(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => match digits.strip_prefix("0o").or_else(|| digits.strip_prefix('0')) {
            Some(octal) if !octal.is_empty() => (octal, 8),
            _ => (digits, 10),
        },
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    i64::from_str_radix(digits, radix).ok().filter(|_| is_number).map(|value| sign * value)
}

/// A number of the type that the field has.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let number = <Option<Number> as serde::Deserialize>::deserialize(deserializer)?;
    number.map(narrow).transpose()
}

/// A list of such numbers.
pub(super) fn wholes<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let numbers = <Option<Vec<Number>> as serde::Deserialize>::deserialize(deserializer)?;
    numbers.unwrap_or_default().into_iter().map(narrow).collect()
}

fn narrow<T: TryFrom<i64>, E: Error>(Number(value): Number) -> Result<T, E> {
    T::try_from(value).map_err(|_range| E::custom(format_args!("{value} is out of range")))
}

/// Yes or no.
pub(super) fn bool_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Bool {
        Plain(bool),
        Text(String),
    }
    match <Option<Bool> as serde::Deserialize>::deserialize(deserializer)? {
        None => Ok(false),
        Some(Bool::Plain(value)) => Ok(value),
        Some(Bool::Text(text)) => text.parse().map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_every_base_that_yaml_has() {
        let rows = [("0", 0), ("195", 195), ("0660", 0o660), ("0o660", 0o660), ("0x1f", 31), ("-1", -1)];
        for (text, value) in rows {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for bad in ["", "-", "0x", "0o", "08", "1.5", "one", "+1", "--1", "0x-1", "9223372036854775808"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
