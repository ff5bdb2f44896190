//! The checked-in bindings match the protos.
//!
//! Ordinary builds generate nothing. This test generates the bindings again and compares. Run it with
//! `WHARF_BLESS=1` in the environment to rewrite the checked-in files after a proto has changed:
//!
//! ```sh
//! WHARF_BLESS=1 cargo test -p wharf-cri-api --test generate
//! ```
#![expect(
    clippy::tests_outside_test_module,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Whether to generate clients and servers in addition to the messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Services {
    /// tonic clients and servers for every service, whose calls are those of wharfd.
    Own,
    /// The same, for services of others.
    Foreign,
    /// Only messages, for protos that are not used over gRPC.
    None,
}

/// A checked-in file and how it is generated.
struct Binding {
    /// The path below `proto/`.
    proto: &'static str,
    /// The path below the root of the workspace.
    out: &'static str,
    services: Services,
    /// The package of another binding whose messages are used, and their module.
    imported: Option<(&'static str, &'static str)>,
    /// Messages without a derived `Debug`, because a hand-written one hides their secrets.
    secret: &'static [&'static str],
}

const BINDINGS: &[Binding] = &[
    Binding {
        proto: "runtime/v1/api.proto",
        out: "crates/cri-api/src/generated.rs",
        services: Services::Own,
        imported: None,
        secret: &[".runtime.v1.AuthConfig"],
    },
    Binding {
        proto: "admin/v1/admin.proto",
        out: "crates/cri-api/src/admin/generated.rs",
        services: Services::Own,
        imported: Some((".runtime.v1", "crate::v1")),
        secret: &[],
    },
    Binding {
        proto: "supervisor/v1/supervisor.proto",
        out: "crates/wire/src/generated.rs",
        services: Services::None,
        imported: None,
        secret: &[],
    },
    Binding {
        proto: "nri/v1alpha1/nri.proto",
        out: "crates/nri/src/generated.rs",
        services: Services::None,
        imported: None,
        secret: &[],
    },
    Binding {
        proto: "otlp/v1/trace.proto",
        out: "crates/traces/src/generated.rs",
        services: Services::Foreign,
        imported: None,
        secret: &[],
    },
];

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Generates the bindings of one proto, as text.
fn generate(binding: &Binding) -> String {
    let descriptors = protox::compile([binding.proto], [root().join("proto")])
        .unwrap_or_else(|error| panic!("proto/{}: {error:?}", binding.proto));
    let package = descriptors.file.last().expect("the proto itself comes last").package().to_owned();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let services = binding.services != Services::None;
    let mut builder = tonic_prost_build::configure();
    if let Some((package, module)) = binding.imported {
        builder = builder.extern_path(package, module);
    }
    builder
        .build_client(services)
        .build_server(services)
        .btree_map(".")
        .skip_debug(binding.secret)
        .out_dir(dir.path())
        .compile_fds(descriptors)
        .unwrap_or_else(|error| panic!("proto/{}: {error}", binding.proto));
    fs::read_to_string(dir.path().join(format!("{package}.rs"))).expect("one file per package")
}

/// The list of the calls of all services of wharfd, as text.
fn calls() -> String {
    let mut text = "&[\n".to_owned();
    for binding in BINDINGS.iter().filter(|binding| binding.services == Services::Own) {
        let descriptors = protox::compile([binding.proto], [root().join("proto")])
            .unwrap_or_else(|error| panic!("proto/{}: {error:?}", binding.proto));
        let file = descriptors.file.last().expect("the proto itself comes last");
        for service in &file.service {
            for method in &service.method {
                let (package, service, method) = (file.package(), service.name(), method.name());
                text += &format!("    (\"{package}.{service}\", \"{method}\"),\n");
            }
        }
    }
    text + "]\n"
}

/// The number and both versions of the first line that differs.
fn first_difference(old: &str, new: &str) -> Option<String> {
    let (mut old, mut new) = (old.lines(), new.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => break,
            (old, new) if old == new => {}
            (old, new) => {
                let show = |line: Option<&str>| line.unwrap_or("<end of file>").to_owned();
                return Some(format!("line {number}:\n  has    {}\n  should {}", show(old), show(new)));
            }
        }
    }
    None
}

#[test]
fn checked_in_bindings_are_current() {
    let bless = std::env::var_os("WHARF_BLESS").is_some_and(|value| value == "1");
    let mut stale = Vec::new();
    let bindings = BINDINGS.iter().map(|binding| (binding.out, generate(binding)));
    for (out, new) in bindings.chain([("crates/cri-api/src/calls/generated.rs", calls())]) {
        let path = root().join(out);
        if bless {
            fs::write(&path, &new).unwrap_or_else(|error| panic!("{out}: {error}"));
        }
        let old = fs::read_to_string(&path).unwrap_or_default();
        if let Some(difference) = first_difference(&old, &new) {
            stale.push(format!("{out} is not what its proto gives, {difference}"));
        }
    }
    assert!(
        stale.is_empty(),
        "{}\nrun `WHARF_BLESS=1 cargo test -p wharf-cri-api --test generate` to rewrite",
        stale.join("\n")
    );
}

#[test]
fn generation_is_deterministic() {
    for binding in BINDINGS {
        assert_eq!(first_difference(&generate(binding), &generate(binding)), None, "{}", binding.proto);
    }
}

#[test]
fn messages_alone_need_no_tonic() {
    let messages = generate(&Binding { services: Services::None, ..BINDINGS[0] });
    assert!(messages.contains("pub struct VersionRequest"));
    assert!(!messages.contains("tonic") && !messages.contains("RuntimeServiceClient"));
}

#[test]
fn a_difference_is_found_wherever_it_is() {
    assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
    assert!(first_difference("a\nb\n", "a\nc\n").expect("second line").starts_with("line 2:"));
    assert!(first_difference("a\n", "a\nb\n").expect("missing line").contains("<end of file>"));
    assert!(first_difference("", "a\n").expect("missing file").starts_with("line 1:"));
}
