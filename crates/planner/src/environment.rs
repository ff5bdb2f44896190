//! The container's environment.
//!
//! It has the values of four sources, each of which replaces those before it. An image's may be any bytes, while the
//! spec has only text: values that are not UTF-8 travel beside it.

use std::collections::HashMap;

use wharf_cri_api::v1::KeyValue;
use wharf_types::program::DEFAULT_PATH;

use crate::Refusal;
use crate::request::{HostFacts, Request};

/// The hostname, the node's environment, the image's, then the request's; a later value of a name replaces an earlier
/// one. Values that are not UTF-8 are returned separately as bytes.
pub(crate) fn describe(
    request: &Request<'_>,
    facts: &HostFacts,
) -> Result<(Vec<String>, Vec<Vec<u8>>), Refusal> {
    let mut variables = Variables::default();
    let hostname = &request.pod.hostname;
    let hostname = if hostname.is_empty() { &facts.hostname } else { hostname };
    variables.set("HOSTNAME", hostname.as_bytes());
    if request.container.tty {
        variables.set("TERM", b"xterm");
    }
    for (name, value) in &request.defaults.environment {
        variables.set(name, value.as_bytes());
    }
    for (name, value) in request.image.env().iter().flatten().filter_map(|text| variable(text)) {
        variables.set(name, value.as_bytes());
    }
    for KeyValue { key, value } in &request.container.envs {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains(&0) {
            let problem = format!("{key:?} is not a name, or its value has a NUL byte");
            return Err(Refusal::field("envs", problem));
        }
        variables.set(key, value);
    }
    if !variables.places.contains_key("PATH") {
        variables.set("PATH", DEFAULT_PATH.as_bytes());
    }
    Ok(variables.split())
}

/// A text without a name or without `=` is not a variable. It is left out, as in other runtimes, rather than given an
/// empty value.
fn variable(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').filter(|(name, _value)| !name.is_empty())
}

/// Names and their values, in the order in which the names first occurred. An image may have tens of thousands, so each
/// is looked up by its name.
#[derive(Default)]
struct Variables<'a> {
    all: Vec<(&'a str, &'a [u8])>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Variables<'a> {
    fn set(&mut self, name: &'a str, value: &'a [u8]) {
        let place = *self.places.entry(name).or_insert(self.all.len());
        match self.all.get_mut(place) {
            Some(variable) => variable.1 = value,
            None => self.all.push((name, value)),
        }
    }

    /// All values as text, and those that are not UTF-8 as bytes.
    fn split(self) -> (Vec<String>, Vec<Vec<u8>>) {
        let is_binary = |value: &[u8]| std::str::from_utf8(value).is_err();
        let binary = self.all.iter().filter(|(_, value)| is_binary(value));
        let binary = binary.map(|(name, value)| [name.as_bytes(), b"=", value].concat()).collect();
        let text = |(name, value): &(&str, &[u8])| format!("{name}={}", String::from_utf8_lossy(value));
        (self.all.iter().map(text).collect(), binary)
    }
}

/// The spec's environment, with the bytes of values that are not UTF-8.
pub(crate) fn plan(environment: &[String], binary: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let binary: HashMap<&[u8], &Vec<u8>> = binary.iter().map(|bytes| (name_of(bytes), bytes)).collect();
    let exact = |text: &String| match binary.get(name_of(text.as_bytes())) {
        Some(exact) => exact.to_vec(),
        None => text.clone().into_bytes(),
    };
    environment.iter().map(exact).collect()
}

fn name_of(variable: &[u8]) -> &[u8] {
    variable.split(|byte| *byte == b'=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_a_value() {
        assert_eq!(variable("A=b=c"), Some(("A", "b=c")));
        assert_eq!(variable("EMPTY="), Some(("EMPTY", "")));
        for text in ["NOTHING", "=value", ""] {
            assert_eq!(variable(text), None, "{text:?}");
        }
    }

    /// With a search for each variable among all the others, this would take minutes.
    #[test]
    fn the_time_grows_with_the_number_alone() {
        let number = 100_000;
        let names: Vec<String> = (0..number).map(|number| format!("A{number}")).collect();
        let mut variables = Variables::default();
        for value in [&b"first"[..], b"\xff"] {
            names.iter().for_each(|name| variables.set(name, value));
        }
        let (texts, binary) = variables.split();
        assert_eq!((texts.len(), binary.len()), (number, number));
        let planned = plan(&texts, &binary);
        assert_eq!(planned[0], b"A0=\xff");
        assert_eq!(planned.last().unwrap(), b"A99999=\xff");
    }

    #[test]
    fn what_is_not_text_keeps_its_bytes() {
        let mut variables = Variables::default();
        variables.set("A", b"text");
        variables.set("B", b"\xff\xfe");
        variables.set("A", b"\xfd");
        let (texts, binary) = variables.split();
        assert_eq!(texts, ["A=\u{fffd}", "B=\u{fffd}\u{fffd}"]);
        assert_eq!(plan(&texts, &binary), [b"A=\xfd".to_vec(), b"B=\xff\xfe".to_vec()]);
    }
}
