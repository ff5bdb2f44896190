//! The runtime spec that a runtime shows of a container, as facts: one for each field. Lists of named things have a
//! fact for each of them, whatever their order; in other lists, the order counts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::facts::Facts;

/// The lists of named things, and the field with the name.
const NAMED: &[(&str, &str)] = &[
    ("mounts", "destination"),
    ("linux.namespaces", "type"),
    ("linux.devices", "path"),
    ("linux.resources.hugepageLimits", "pageSize"),
    ("process.rlimits", "type"),
];
/// The lists whose order means nothing.
const SETS: &[&str] = &[
    "process.capabilities.",
    "process.env",
    "linux.maskedPaths",
    "linux.readonlyPaths",
    "linux.seccomp.arch",
];
/// The list of rules, each for many system calls.
const RULES: &str = "linux.seccomp.syscalls";

/// Adds the facts of a spec.
pub(crate) fn look(spec: &Value, facts: &mut Facts) {
    for (field, text) in fields(spec) {
        facts.add(format!("spec: {field}"), text);
    }
}

fn fields(spec: &Value) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    add("", spec, &mut fields);
    fields
}

fn add(path: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) => add_each(path, object, fields),
        Value::Array(rules) if path == RULES => rules.iter().for_each(|rule| add_rule(rule, fields)),
        Value::Array(list) => match NAMED.iter().find(|(named, _)| *named == path) {
            Some((_, name)) => list.iter().for_each(|it| add_named(path, name, it, fields)),
            None if list.is_empty() => {}
            None => {
                fields.insert(path.to_owned(), listed(path, list));
            }
        },
        // What is absent means the same.
        Value::Null | Value::Bool(false) => {}
        scalar => {
            fields.insert(path.to_owned(), text(scalar));
        }
    }
}

fn add_each(path: &str, object: &Map<String, Value>, fields: &mut BTreeMap<String, String>) {
    for (name, value) in object {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        add(&inner, value, fields);
    }
}

/// A named thing is one fact: its fields differ together. Several of one name, such as mounts on one another, are one
/// fact, too.
fn add_named(path: &str, name: &str, thing: &Value, fields: &mut BTreeMap<String, String>) {
    let mut rest = thing.as_object().cloned().unwrap_or_default();
    let its = rest.remove(name).map(|name| text(&name)).unwrap_or_default();
    let words = rest.iter().map(|(field, value)| match value {
        Value::Array(list) => format!("{field} {}", sorted(list)),
        other => format!("{field} {}", text(other)),
    });
    let told = words.collect::<Vec<_>>().join("; ");
    let fact = fields.entry(format!("{path} {its}")).or_default();
    *fact = if fact.is_empty() { told } else { format!("{fact}, then {told}") };
}

/// Each system call of a rule is one fact, because the lists are divided into rules in many ways.
fn add_rule(rule: &Value, fields: &mut BTreeMap<String, String>) {
    let mut rest = rule.as_object().cloned().unwrap_or_default();
    let names = rest.remove("names").unwrap_or_default();
    for name in names.as_array().into_iter().flatten() {
        let fact = fields.entry(format!("{RULES} {}", text(name))).or_default();
        let told = text(&Value::Object(rest.clone()));
        *fact = if fact.is_empty() { told } else { format!("{fact}, {told}") };
    }
}

fn listed(path: &str, list: &[Value]) -> String {
    if SETS.iter().any(|set| path.starts_with(set)) {
        return sorted(list);
    }
    list.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn sorted(list: &[Value]) -> String {
    let mut words: Vec<String> = list.iter().map(text).collect();
    words.sort_unstable();
    words.join(" ")
}

/// The text of a value, with a word instead of each pid and each number of a descriptor.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => without_pids(text),
        other => other.to_string(),
    }
}

fn without_pids(text: &str) -> String {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let mut parts: Vec<&str> = text.split('/').collect();
    if let ["", "proc", process, rest @ ..] = &mut parts[..]
        && is_number(process)
    {
        *process = "PID";
        if let ["fd", number, ..] = rest
            && is_number(number)
        {
            *number = "N";
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_field_is_a_fact_and_each_named_thing() {
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": { "args": ["sh", "-c"], "terminal": false, "env": [], "capabilities": { "bounding": ["CAP_KILL", "CAP_CHOWN"] }, "cwd": null },
            "mounts": [
                { "destination": "/proc", "type": "proc", "options": ["ro", "nosuid"] },
                { "destination": "/proc", "type": "tmpfs" },
            ],
            "linux": {
                "namespaces": [{ "type": "network", "path": "/proc/17/fd/4/shm" }, { "type": "ipc", "path": "/proc/17/ns/ipc" }],
                "seccomp": { "syscalls": [
                    { "names": ["read", "clone"], "action": "SCMP_ACT_ALLOW" },
                    { "names": ["clone"], "action": "SCMP_ACT_ERRNO" },
                ] },
            },
        });
        let expected = [
            ("linux.namespaces ipc", "path /proc/PID/ns/ipc"),
            ("linux.namespaces network", "path /proc/PID/fd/N/shm"),
            ("linux.seccomp.syscalls clone", r#"{"action":"SCMP_ACT_ALLOW"}, {"action":"SCMP_ACT_ERRNO"}"#),
            ("linux.seccomp.syscalls read", r#"{"action":"SCMP_ACT_ALLOW"}"#),
            ("mounts /proc", "options nosuid ro; type proc, then type tmpfs"),
            ("ociVersion", "1.2.0"),
            ("process.args", "sh -c"),
            ("process.capabilities.bounding", "CAP_CHOWN CAP_KILL"),
        ];
        let found = fields(&spec);
        let found: Vec<_> = found.iter().map(|(field, text)| (field.as_str(), text.as_str())).collect();
        assert_eq!(found, expected);
    }
}
