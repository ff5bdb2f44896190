//! Profiles in JSON: what is accepted, and what is refused by name.

use wharf_types::{ErrorKind, Failure};

use super::{Call, machine, target};
use crate::seccomp::intersection::intersect;
use crate::seccomp::spec::{compile_spec, resolve};
use crate::seccomp::syscalls::Abi;
use crate::seccomp::{Action, Arch, Error, Profile, compile};

/// The action of a profile with these keys for a call.
fn judge(json: &str, call: &Call, capabilities: &[&str]) -> u32 {
    let profile = Profile::parse(json.as_bytes()).unwrap();
    machine::run(&compile(&profile, &target(capabilities)).unwrap().instructions, call).value
}

fn refused(json: &str) -> Error {
    Profile::parse(json.as_bytes()).unwrap_err()
}

fn with_rule(rule: &str) -> String {
    format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rule}]}}"#)
}

#[test]
fn the_form_of_the_runtime_specification() {
    let json = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_S390X"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"], "somethingNew": {"a": [1]},
        "syscalls": [
            {"names": ["read", "from_the_future"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_KILL"},
            {"names": ["ptrace"], "action": "SCMP_ACT_TRACE", "errnoRet": 300},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 1, "op": "SCMP_CMP_LE"}]}
        ]}"#;
    for (abi, name, arguments, expected) in [
        (Abi::X86_64, "read", [0, 0], Action::Allow),
        (Abi::X86, "read", [0, 0], Action::Allow),
        (Abi::X32, "read", [0, 0], Action::KillProcess),
        (Abi::X86_64, "write", [0, 0], Action::Errno(13)),
        (Abi::X86_64, "mount", [0, 0], Action::KillThread),
        (Abi::X86_64, "ptrace", [0, 0], Action::Trace(300)),
        (Abi::X86_64, "kill", [1, 9], Action::Errno(1)),
        (Abi::X86_64, "kill", [2, 9], Action::Errno(13)),
        (Abi::X86_64, "kill", [1, 8], Action::Errno(13)),
    ] {
        assert_eq!(judge(json, &Call::named(abi, name, &arguments), &[]), expected.code(), "{abi:?} {name}");
    }
    assert_eq!(compile(&Profile::parse(json.as_bytes()).unwrap(), &target(&[])).unwrap().flags, 2);
}

#[test]
fn an_argument_named_twice_makes_alternatives() {
    let json = with_rule(
        r#"{"name": "personality", "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}"#,
    );
    for (argument, expected) in [(0, Action::Allow), (8, Action::Allow), (9, Action::Errno(1))] {
        assert_eq!(judge(&json, &Call::named(Abi::X86_64, "personality", &[argument]), &[]), expected.code());
    }
}

#[test]
fn the_mask_is_the_first_value() {
    let json = with_rule(
        r#"{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]}"#,
    );
    for (argument, expected) in [(0x1f, Action::Allow), (0x2f, Action::Errno(1)), (0x30, Action::Errno(1))] {
        assert_eq!(judge(&json, &Call::named(Abi::X86_64, "clone", &[argument]), &[]), expected.code());
    }
}

#[test]
fn scopes_choose_rules() {
    let call = Call::named(Abi::X86_64, "mount", &[]);
    for (scope, capabilities, expected) in [
        (r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, &["CAP_SYS_ADMIN"][..], Action::Allow),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#, &[], Action::Errno(1)),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#, &["CAP_BPF"], Action::Errno(1)),
        (r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#, &["CAP_BPF"], Action::Errno(1)),
        (r#""includes": {"arches": ["amd64"], "minKernel": "6.18"}"#, &[], Action::Allow),
        (r#""includes": {"minKernel": "6.19"}"#, &[], Action::Errno(1)),
        (r#""includes": {"minKernel": "10.0"}"#, &[], Action::Errno(1)),
        (r#""includes": {"arches": ["arm64"]}"#, &[], Action::Errno(1)),
        (r#""excludes": {"arches": ["amd64"]}"#, &[], Action::Errno(1)),
        (r#""includes": {}, "excludes": null, "comment": "none""#, &[], Action::Allow),
    ] {
        let json = with_rule(&format!(r#"{{"names": ["mount"], "action": "SCMP_ACT_ALLOW", {scope}}}"#));
        assert_eq!(judge(&json, &call, capabilities), expected.code(), "{scope}");
    }
}

#[test]
fn calls_without_a_name_fail_as_on_a_kernel_without_them() {
    let call = Call { audit: Abi::X86_64.audit(), number: 9999, arguments: [0; 6] };
    for (action, expected) in [
        ("SCMP_ACT_ERRNO", Action::Errno(38)),
        ("SCMP_ACT_TRAP", Action::Errno(38)),
        ("SCMP_ACT_KILL_PROCESS", Action::Errno(38)),
        ("SCMP_ACT_ALLOW", Action::Allow),
        ("SCMP_ACT_LOG", Action::Log),
        ("SCMP_ACT_TRACE", Action::Trace(1)),
    ] {
        assert_eq!(
            judge(&format!(r#"{{"defaultAction": "{action}"}}"#), &call, &[]),
            expected.code(),
            "{action}"
        );
    }
}

#[test]
fn unknown_words_are_named() {
    let argument = |index: u8, op: &str| {
        with_rule(&format!(
            r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": {index}, "value": 1, "op": "{op}"}}]}}"#
        ))
    };
    let scope = |key: &str| {
        with_rule(&format!(r#"{{"names": [], "action": "SCMP_ACT_ALLOW", "excludes": {{{key}}}}}"#))
    };
    for (json, word) in [
        (r#"{"defaultAction": "SCMP_ACT_PERHAPS"}"#.to_owned(), "SCMP_ACT_PERHAPS"),
        (with_rule(r#"{"names": ["read"], "action": "ALLOW"}"#), "ALLOW"),
        (argument(0, "SCMP_CMP_NEAR"), "SCMP_CMP_NEAR"),
        (argument(6, "SCMP_CMP_EQ"), "6"),
        (scope(r#""caps": ["SYS_ADMIN"]"#), "SYS_ADMIN"),
        (scope(r#""minKernel": "4""#), "4"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["VAX"]}"#.to_owned(), "VAX"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["FAST"]}"#.to_owned(), "FAST"),
        (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}"#.to_owned(), "4096"),
    ] {
        let error = refused(&json);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn what_needs_a_listener_is_refused() {
    for (json, word) in [
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "SCMP_ACT_NOTIFY"),
        (with_rule(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#), "SCMP_ACT_NOTIFY"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/l"}"#.to_owned(), "listenerPath"),
    ] {
        let error = refused(&json);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unimplemented);
    }
}

#[test]
fn contradictions_and_bounds_are_errors() {
    let twice = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
        "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#;
    assert!(matches!(refused(twice), Error::Conflict { .. }));
    assert!(matches!(refused("{"), Error::Json { .. }));
    assert!(matches!(refused("{}"), Error::Json { .. }));
    assert!(matches!(refused(&" ".repeat((1 << 20) + 1)), Error::TooLarge { what: "bytes", .. }));
    let many = |part: &str, count: usize| vec![part; count].join(",");
    let rule = r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#;
    assert!(matches!(refused(&with_rule(&many(rule, 4097))), Error::TooLarge { what: "rules", .. }));
    let names = format!(r#"{{"names": [{}], "action": "SCMP_ACT_ALLOW"}}"#, many(r#""read""#, 4097));
    assert!(matches!(refused(&with_rule(&names)), Error::TooLarge { what: "names", count: 4097, .. }));
    let arguments = many(r#"{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}"#, 4097);
    let conditions = format!(r#"{{"names": [], "action": "SCMP_ACT_ALLOW", "args": [{arguments}]}}"#);
    assert!(matches!(refused(&with_rule(&conditions)), Error::TooLarge { what: "conditions", .. }));
}

#[test]
fn names_are_short_and_not_repeated_without_end() {
    let rule = |names: &str, conditions: usize| {
        let arguments = vec![r#"{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}"#; conditions].join(",");
        with_rule(&format!(
            r#"{{"names": [{names}], "action": "SCMP_ACT_KILL_PROCESS", "args": [{arguments}]}}"#
        ))
    };
    let long = |bytes: usize| rule(&format!("{:?}", "x".repeat(bytes)), 1);
    Profile::parse(long(64).as_bytes()).unwrap();
    let error = refused(&long(65));
    assert!(matches!(error, Error::TooLarge { count: 65, limit: 64, .. }), "{error}");
    let many = |names: usize| rule(&vec![r#""read""#; names].join(","), 4096);
    Profile::parse(many(4).as_bytes()).unwrap();
    let error = refused(&many(5));
    assert!(
        matches!(error, Error::TooLarge { what: "pairs of a name and an alternative", count: 20_480, .. }),
        "{error}"
    );
}

#[test]
fn the_spec_has_no_names_without_a_call() {
    let profile = Profile::parse(
        br#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["no_such_call"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["read", "no_such_call", "arm_fadvise64_64"], "action": "SCMP_ACT_ALLOW"}]}"#,
    )
    .unwrap();
    let target = super::target(&[]);
    let everything = Profile::parse(br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    for profile in [intersect(&profile, &everything, &target).unwrap(), profile] {
        let spec = resolve(&profile, &target).unwrap();
        let rules: Vec<_> = spec.syscalls().iter().flatten().collect();
        assert!(rules.iter().all(|rule| !rule.names().is_empty()));
        let names: Vec<&str> = rules.iter().flat_map(|rule| rule.names()).map(String::as_str).collect();
        assert!(names.contains(&"read") && names.contains(&"arm_fadvise64_64"), "{names:?}");
        assert!(!names.contains(&"no_such_call"), "{names:?}");
    }
}

#[test]
fn a_forbidden_call_of_which_nobody_here_has_heard_has_no_number() {
    let target = super::target(&[]);
    let of = |default: &str, rules: &str| {
        let json = format!(r#"{{"defaultAction": "{default}", "syscalls": [{rules}]}}"#);
        let profile = Profile::parse(json.as_bytes()).unwrap();
        let everything = Profile::parse(br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        let both = intersect(&profile, &everything, &target).unwrap();
        let answers = [profile, both].map(|profile| {
            let spec = resolve(&profile, &target).unwrap();
            let program = compile_spec(&spec, target.arch).unwrap().instructions;
            let answer = |number| Call { audit: Abi::X86_64.audit(), number, arguments: [0; 6] };
            [9999, 0, 469].map(|number| machine::run(&program, &answer(number)).value)
        });
        assert_eq!(answers[0], answers[1], "{json}");
        answers[0]
    };
    let (allow, log) = (Action::Allow.code(), Action::Log.code());
    let missing = Action::Errno(38).code();
    for (default, rules, expected) in [
        (
            "SCMP_ACT_ALLOW",
            r#"{"names": ["mount", "no_such_call"], "action": "SCMP_ACT_ERRNO"}"#,
            [missing, allow, allow],
        ),
        ("SCMP_ACT_LOG", r#"{"names": ["no_such_call"], "action": "SCMP_ACT_KILL"}"#, [missing, log, log]),
        ("SCMP_ACT_ALLOW", r#"{"names": ["no_such_call"], "action": "SCMP_ACT_LOG"}"#, [allow; 3]),
        ("SCMP_ACT_ALLOW", r#"{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}"#, [allow; 3]),
        (
            "SCMP_ACT_ALLOW",
            r#"{"names": ["no_such_call"], "action": "SCMP_ACT_ALLOW"},
               {"names": ["no_such_call"], "action": "SCMP_ACT_KILL"}"#,
            [allow; 3],
        ),
    ] {
        assert_eq!(of(default, rules), expected, "{rules}");
    }
}

#[test]
fn flags_that_are_left_out_are_the_usual_ones() {
    let mut spec = resolve(&Profile::runtime_default(), &super::target(&[])).unwrap();
    for (flags, expected) in [(None, 4), (Some(Vec::new()), 0)] {
        spec.set_flags(flags);
        assert_eq!(compile_spec(&spec, Arch::X86_64).unwrap().flags, expected);
    }
}
