//! The container's environment.
//!
//! It has the values of four sources, each of which replaces those before it. An image's may be any bytes, while the
//! spec has only text: values that are not UTF-8 travel beside it.

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
    if !variables.0.iter().any(|(name, _)| *name == "PATH") {
        variables.set("PATH", DEFAULT_PATH.as_bytes());
    }
    Ok(variables.split())
}

/// A text without a name or without `=` is not a variable. It is left out, as in other runtimes, rather than given an
/// empty value.
fn variable(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').filter(|(name, _value)| !name.is_empty())
}

/// Names and their values, in the order in which the names first occurred.
#[derive(Default)]
struct Variables<'a>(Vec<(&'a str, &'a [u8])>);

impl<'a> Variables<'a> {
    fn set(&mut self, name: &'a str, value: &'a [u8]) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(variable) => variable.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// All values as text, and those that are not UTF-8 as bytes.
    fn split(self) -> (Vec<String>, Vec<Vec<u8>>) {
        let is_binary = |value: &[u8]| std::str::from_utf8(value).is_err();
        let binary = self.0.iter().filter(|(_, value)| is_binary(value));
        let binary = binary.map(|(name, value)| [name.as_bytes(), b"=", value].concat()).collect();
        let text = |(name, value): &(&str, &[u8])| format!("{name}={}", String::from_utf8_lossy(value));
        (self.0.iter().map(text).collect(), binary)
    }
}

/// The spec's environment, with the bytes of values that are not UTF-8.
pub(crate) fn plan(environment: &[String], binary: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let name = |variable: &[u8]| variable.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    let exact = |text: &String| {
        let exact = binary.iter().find(|bytes| name(bytes) == name(text.as_bytes()));
        exact.cloned().unwrap_or_else(|| text.clone().into_bytes())
    };
    environment.iter().map(exact).collect()
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
