//! Daemons and supervisors of different releases understand each other: what a release has put into the protocol keeps
//! its number and its type, or its number is reserved.
//!
//! `known.txt` lists every field and value that any release has had. Run it with `WHARF_BLESS=1` in the environment to
//! add those of this one; nothing is ever removed from it.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is nothing but tests")]

use std::collections::BTreeSet;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

const PACKAGE: &str = ".wharf.supervisor.v1.";
const KNOWN: &str = include_str!("known.txt");

fn compiled() -> FileDescriptorProto {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut set = protox::compile(["supervisor/v1/supervisor.proto"], [proto]).expect("the proto compiles");
    set.file.pop().expect("one file")
}

/// What is in the proto: `facts` has a line for each field and value, `reserved` the beginnings of lines that may be
/// missing.
#[derive(Default)]
struct Protocol {
    facts: BTreeSet<String>,
    reserved: BTreeSet<String>,
}

impl Protocol {
    fn of(file: &FileDescriptorProto) -> Self {
        let mut protocol = Self::default();
        file.message_type.iter().for_each(|message| protocol.message("", message));
        file.enum_type.iter().for_each(|item| protocol.enumeration("", item));
        protocol
    }

    fn message(&mut self, outer: &str, message: &DescriptorProto) {
        let name = format!("{outer}{}", message.name());
        for field in &message.field {
            self.facts.insert(format!("{name} {}: {}", field.number(), kind(field)));
        }
        for range in &message.reserved_range {
            self.reserved.extend((range.start()..range.end()).map(|number| format!("{name} {number}: ")));
        }
        message.nested_type.iter().for_each(|nested| self.message(&format!("{name}."), nested));
        message.enum_type.iter().for_each(|item| self.enumeration(&format!("{name}."), item));
    }

    fn enumeration(&mut self, outer: &str, item: &EnumDescriptorProto) {
        let name = format!("{outer}{}", item.name());
        for value in &item.value {
            self.facts.insert(format!("{name} {}: {}", value.number(), value.name()));
        }
        for range in &item.reserved_range {
            self.reserved.extend((range.start()..=range.end()).map(|number| format!("{name} {number}: ")));
        }
    }

    /// Whether it still means what a release meant by this.
    fn keeps(&self, fact: &str) -> bool {
        self.facts.contains(fact)
            || self.reserved.iter().any(|beginning| fact.starts_with(beginning.as_str()))
    }
}

/// What the bytes of a field depend on, and its name.
fn kind(field: &FieldDescriptorProto) -> String {
    let label = if field.label() == Label::Repeated { "repeated " } else { "" };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => {
            field.type_name().strip_prefix(PACKAGE).expect("one package").to_owned()
        }
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    format!("{label}{kind} {}", field.name())
}

#[test]
fn what_a_release_has_said_keeps_its_meaning() {
    let protocol = Protocol::of(&compiled());
    let known: BTreeSet<String> = KNOWN.lines().map(str::to_owned).collect();
    let lost: Vec<_> = known.iter().filter(|fact| !protocol.keeps(fact)).collect();
    assert!(lost.is_empty(), "changed, or removed without `reserved`: {lost:#?}");
    let all: BTreeSet<String> = known.union(&protocol.facts).cloned().collect();
    if std::env::var_os("WHARF_BLESS").is_some() {
        let text: String = all.iter().map(|fact| format!("{fact}\n")).collect();
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/known.txt"), text)
            .expect("a writable tree");
        return;
    }
    let new: Vec<_> = all.difference(&known).collect();
    assert!(new.is_empty(), "not in known.txt: {new:#?}");
}

#[test]
fn what_is_renumbered_or_retyped_or_gone_is_seen() {
    let protocol = Protocol::of(&compiled());
    let some = protocol.facts.iter().find(|fact| fact.ends_with(": uint32 version")).expect("a field");
    assert!(protocol.keeps(some));
    assert!(!protocol.keeps(&some.replace("uint32", "uint64")));
    assert!(!protocol.keeps(&some.replace(": uint32", "000: uint32")));
    let reserved = protocol.reserved.first().expect("something is reserved");
    assert!(protocol.keeps(&format!("{reserved}string gone")));
}
