//! The proto matches the published interface, down to the last number.
//!
//! `cri-v1.json` lists every service, message and enum of `runtime.v1` as Kubernetes publishes it. It and the compiled
//! proto are both flattened to one line per fact, and the two sets of lines must be equal.
#![expect(
    clippy::tests_outside_test_module,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

use std::collections::BTreeSet;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use serde_json::Value;

const PACKAGE: &str = ".runtime.v1.";

fn compiled() -> FileDescriptorProto {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut set = protox::compile(["runtime/v1/api.proto"], [proto]).expect("the proto compiles");
    set.file.pop().expect("one file")
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("cri-v1.json")).expect("the fixture is JSON")
}

/// The facts in a file descriptor, one line each.
fn facts_of_proto(file: &FileDescriptorProto) -> BTreeSet<String> {
    let mut facts =
        BTreeSet::from([format!("syntax {}", file.syntax()), format!("package {}", file.package())]);
    for service in &file.service {
        facts.insert(format!("service {}", service.name()));
        for rpc in &service.method {
            facts.insert(format!(
                "rpc {}.{}({}) -> {}, client streams {}, server streams {}",
                service.name(),
                rpc.name(),
                short(rpc.input_type()),
                short(rpc.output_type()),
                rpc.client_streaming(),
                rpc.server_streaming()
            ));
        }
    }
    for message in &file.message_type {
        message_facts("", message, &mut facts);
    }
    for item in &file.enum_type {
        enum_facts("", item, &mut facts);
    }
    facts
}

fn message_facts(outer: &str, message: &DescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{outer}{}", message.name());
    facts.insert(format!("message {name}"));
    for field in &message.field {
        let kind = field_kind(&name, field, message);
        let deprecated = field.options.as_ref().is_some_and(|options| options.deprecated());
        let json = field.json_name();
        facts.insert(format!(
            "field {name}.{} = {}: {kind}, json {json}, deprecated {deprecated}",
            field.name(),
            field.number()
        ));
        if field.oneof_index.is_some() {
            facts.insert(format!("{name}.{} is in a oneof or optional", field.name()));
        }
    }
    for nested in message.nested_type.iter().filter(|nested| !is_map_entry(nested)) {
        message_facts(&format!("{name}."), nested, facts);
    }
    for item in &message.enum_type {
        enum_facts(&format!("{name}."), item, facts);
    }
}

fn enum_facts(outer: &str, item: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{outer}{}", item.name());
    facts.insert(format!("enum {name}"));
    for value in &item.value {
        facts.insert(format!("value {name}.{} = {}", value.name(), value.number()));
    }
}

/// A field's label, type and kind, in the fixture's words.
fn field_kind(message: &str, field: &FieldDescriptorProto, parent: &DescriptorProto) -> String {
    let entry_name = format!("{PACKAGE}{message}.");
    let entry = field.type_name().strip_prefix(&entry_name).and_then(|name| {
        parent.nested_type.iter().find(|nested| nested.name() == name && is_map_entry(nested))
    });
    if let Some(entry) = entry {
        return format!("map map<{},{}>", type_name(&entry.field[0]), type_name(&entry.field[1]));
    }
    let label = match field.label() {
        Label::Repeated => "repeated",
        Label::Optional => "singular",
        Label::Required => "required",
    };
    format!("{label} {}", type_name(field))
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message => format!("message {}", short(field.type_name())),
        Type::Enum => format!("enum {}", short(field.type_name())),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap_or(name)
}

/// The facts in the fixture, as the same lines.
fn facts_of_fixture(root: &Value) -> BTreeSet<String> {
    let mut facts = BTreeSet::from([
        format!("syntax {}", text(&root["syntax"])),
        format!("package {}", text(&root["package"])),
    ]);
    for (service, rpcs) in entries(&root["services"]) {
        facts.insert(format!("service {service}"));
        for rpc in rpcs.as_array().expect("rpcs") {
            facts.insert(format!(
                "rpc {service}.{}({}) -> {}, client streams {}, server streams {}",
                text(&rpc["rpc"]),
                text(&rpc["in"]),
                text(&rpc["out"]),
                rpc["cs"],
                rpc["ss"]
            ));
        }
    }
    for (message, body) in entries(&root["messages"]) {
        facts.insert(format!("message {message}"));
        for field in body["fields"].as_array().expect("fields") {
            facts.insert(fixture_field(message, field));
        }
    }
    for (name, body) in entries(&root["enums"]) {
        facts.insert(format!("enum {name}"));
        for (value, number) in entries(&body["values"]) {
            facts.insert(format!("value {name}.{value} = {number}"));
        }
    }
    facts
}

fn fixture_field(message: &str, field: &Value) -> String {
    let (label, ty) = (text(&field["label"]), text(&field["type"]));
    let kind = match (label, text(&field["kind"])) {
        ("map", _) => format!("map {ty}"),
        (_, "scalar") => format!("{label} {ty}"),
        (_, kind) => format!("{label} {kind} {ty}"),
    };
    let (name, number, json) = (text(&field["name"]), &field["n"], text(&field["json"]));
    let deprecated = field["deprecated"] == true;
    format!("field {message}.{name} = {number}: {kind}, json {json}, deprecated {deprecated}")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} should be a string"))
}

fn entries(value: &Value) -> &serde_json::Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{value} should be an object"))
}

/// Every line that is only on one side.
fn differences(proto: &BTreeSet<String>, fixture: &BTreeSet<String>) -> Vec<String> {
    let missing = fixture.difference(proto).map(|fact| format!("the proto lacks:    {fact}"));
    let extra = proto.difference(fixture).map(|fact| format!("only the proto has: {fact}"));
    missing.chain(extra).collect()
}

#[test]
fn the_proto_is_the_published_interface() {
    let found = differences(&facts_of_proto(&compiled()), &facts_of_fixture(&fixture()));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_fixture_is_whole() {
    let fixture = fixture();
    let facts = facts_of_fixture(&fixture);
    let count = |prefix: &str| facts.iter().filter(|fact| fact.starts_with(prefix)).count();
    let expected = |key: &str| usize::try_from(fixture["counts"][key].as_u64().expect(key)).expect(key);
    assert_eq!(count("service "), expected("services"));
    assert_eq!(count("rpc "), 46);
    assert_eq!(count("message "), expected("messages"));
    assert_eq!(count("field "), expected("fields"));
    assert_eq!(count("enum "), expected("enums"));
    assert_eq!(count("value "), expected("enum_values"));
}

/// Each kind of change shows on both sides of the comparison.
#[test]
fn a_changed_proto_is_noticed() {
    let fixture = facts_of_fixture(&fixture());
    type Change = fn(&mut FileDescriptorProto);
    let changes: [(&str, Change, usize); 7] = [
        ("renumbered field", |file| file.message_type[0].field[0].number = Some(9), 2),
        ("renamed field", |file| file.message_type[0].field[0].name = Some("other".into()), 2),
        ("retyped field", |file| file.message_type[0].field[0].set_type(Type::Bytes), 2),
        ("repeated field", |file| file.message_type[0].field[0].set_label(Label::Repeated), 2),
        ("lost enum value", |file| drop(file.enum_type[0].value.pop()), 1),
        ("streaming rpc", |file| file.service[0].method[0].server_streaming = Some(true), 2),
        ("lost message", |file| drop(file.message_type.remove(0)), 2),
    ];
    for (what, change, expected) in changes {
        let mut file = compiled();
        change(&mut file);
        let found = differences(&facts_of_proto(&file), &fixture);
        assert_eq!(found.len(), expected, "{what}: {found:#?}");
    }
}

/// prost-types 0.14 does not know the option, so this looks at the proto's text.
#[test]
fn secrets_are_marked_in_the_proto() {
    let fixture = fixture();
    let proto = include_str!("../../../proto/runtime/v1/api.proto");
    let mut marked = 0;
    for (message, body) in entries(&fixture["messages"]) {
        let start = proto.find(&format!("\nmessage {message} {{")).unwrap_or_else(|| panic!("{message}"));
        let end = start + proto[start..].find('}').expect("the end of the message");
        for field in body["fields"].as_array().expect("fields") {
            let (name, secret) = (text(&field["name"]), field["debug_redact"] == true);
            let declaration = format!(" {name} = {} [debug_redact = true];", field["n"]);
            assert_eq!(proto[start..end].contains(&declaration), secret, "{message}.{name}");
            marked += usize::from(secret);
        }
    }
    assert_eq!(proto.matches("debug_redact").count(), marked, "marks outside of the fixture's fields");
    assert_eq!(marked, 4);
}
