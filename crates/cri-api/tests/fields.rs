//! Every field of a request has a line in the table that says what happens to it, and every line has a field.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is nothing but tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorProto};

const TABLE: &str = include_str!("../../cri/fields.txt");
const PACKAGE: &str = ".runtime.v1.";

/// A line of the table: the field, or `Message.*`; what happens to it; the reason.
struct Line<'a> {
    field: &'a str,
    verdict: &'a str,
    reason: &'a str,
}

fn table() -> Vec<Line<'static>> {
    let lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (field, rest) = line.split_once(' ').expect("a field and what becomes of it");
            let (verdict, reason) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
            Line { field, verdict, reason: reason.trim() }
        })
        .collect()
}

fn compiled() -> FileDescriptorProto {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut set = protox::compile(["runtime/v1/api.proto"], [proto]).expect("the proto compiles");
    set.file.pop().expect("one file")
}

/// The messages of requests and all messages in them, each with its fields, and which of those are enums.
fn requests(file: &FileDescriptorProto) -> BTreeMap<&str, Vec<(&str, Type)>> {
    let messages: BTreeMap<&str, &DescriptorProto> =
        file.message_type.iter().map(|message| (message.name(), message)).collect();
    let rpcs = file.service.iter().flat_map(|service| &service.method);
    let mut waiting: Vec<&str> = rpcs.filter_map(|rpc| rpc.input_type().strip_prefix(PACKAGE)).collect();
    let mut found = BTreeMap::new();
    while let Some(name) = waiting.pop() {
        let Some(message) = messages.get(name) else { continue };
        if found.contains_key(name) {
            continue;
        }
        let entries = message.nested_type.iter().flat_map(|nested| &nested.field);
        let types = message.field.iter().chain(entries).filter(|field| field.r#type() == Type::Message);
        waiting.extend(types.filter_map(|field| field.type_name().strip_prefix(PACKAGE)));
        found.insert(name, message.field.iter().map(|field| (field.name(), field.r#type())).collect());
    }
    found
}

#[test]
fn every_field_of_a_request_is_in_the_table() {
    let file = compiled();
    let requests = requests(&file);
    let mut missing = BTreeSet::new();
    for (message, fields) in &requests {
        missing.extend(fields.iter().map(|(field, _)| format!("{message}.{field}")));
    }
    let mut wrong = Vec::new();
    for line in table() {
        let whole = line.field.strip_suffix('*');
        let named: Vec<String> = match whole {
            Some(message) => missing.iter().filter(|field| field.starts_with(message)).cloned().collect(),
            None => missing.get(line.field).cloned().into_iter().collect(),
        };
        if named.is_empty() {
            wrong.push(format!("{}: no request has it, or it has a line already", line.field));
        }
        for field in named {
            missing.remove(&field);
        }
    }
    wrong.extend(missing.iter().map(|field| format!("{field}: it has no line")));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_line_says_what_becomes_of_its_field() {
    for Line { field, verdict, reason } in table() {
        match verdict {
            "done" | "shown" => {}
            "partly" | "refused" | "ignored" => assert!(!reason.is_empty(), "{field}: there is no reason"),
            other => assert_eq!(other, "one of the five words", "{field}"),
        }
    }
}
