//! Profiles from a registry: what another reader might ignore is refused.

use crate::seccomp::Profile;

fn with_entry(entry: &str) -> String {
    format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{entry}]}}"#)
}

#[test]
fn the_form_of_the_runtime_specification_is_accepted() {
    let entries = vec![r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#; 128].join(",");
    for good in [
        r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#.to_owned(),
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4095, "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [{"names": ["read", "no_such_call"],
            "action": "SCMP_ACT_ALLOW", "errnoRet": 0,
            "args": [{"index": 5, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#
            .to_owned(),
        with_entry(&entries),
    ] {
        Profile::parse_artifact(good.as_bytes()).unwrap();
    }
}

#[test]
fn everything_else_is_refused_by_its_name() {
    let entries = vec![r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#; 129].join(",");
    let repeated =
        format!(r#"{{"names": [{}], "action": "SCMP_ACT_ALLOW"}}"#, vec![r#""read""#; 129].join(","));
    let key = |key: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", {key}}}"#);
    let entry =
        |more: &str| with_entry(&format!(r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", {more}}}"#));
    let argument =
        |more: &str| entry(&format!(r#""args": [{{"index": 0, "value": 1, "op": "SCMP_CMP_EQ", {more}}}]"#));
    for (bad, words) in [
        ("not JSON".to_owned(), "not valid JSON"),
        ("[]".to_owned(), "not valid JSON"),
        ("{}".to_owned(), "not valid JSON"),
        ("\u{1f}\u{8b}".to_owned(), "not valid JSON"),
        (key(r#""somethingNew": 1"#), "unknown key \"somethingNew\""),
        (key(r#""archMap": []"#), "unknown key \"archMap\""),
        (key(r#""defaultAction": "SCMP_ACT_ERRNO""#), "not valid JSON"),
        (key(r#""defaultErrnoRet": 4096"#), "return value 4096"),
        (key(r#""listenerPath": "/run/agent.sock""#), "listenerPath"),
        (key(r#""listenerPath": """#), "listenerPath"),
        (key(r#""listenerMetadata": "x""#), "listenerMetadata"),
        (key(r#""flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#), "WAIT_KILLABLE_RECV"),
        (key(r#""flags": ["SECCOMP_FILTER_FLAG_X"]"#), "unknown flag"),
        (key(r#""architectures": ["SCMP_ARCH_X"]"#), "unknown architecture"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "SCMP_ACT_NOTIFY"),
        (r#"{"defaultAction": "SCMP_ACT_X"}"#.to_owned(), "unknown action"),
        (with_entry(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#), "SCMP_ACT_NOTIFY"),
        (with_entry(r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#), "without names"),
        (with_entry(r#"{"name": "read", "action": "SCMP_ACT_ALLOW"}"#), "unknown key \"name\""),
        (with_entry(r#"{"names": ["read"]}"#), "not valid JSON"),
        (entry(r#""includes": {"caps": ["CAP_BPF"]}"#), "unknown key \"includes\""),
        (entry(r#""excludes": {}"#), "unknown key \"excludes\""),
        (entry(r#""comment": "x""#), "unknown key \"comment\""),
        (entry(r#""errnoRet": 4096"#), "return value 4096"),
        (argument(r#""comment": "x""#), "unknown key \"comment\""),
        (argument(r#""op": "SCMP_CMP_X""#), "not valid JSON"),
        (entry(r#""args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]"#), "argument index 6"),
        (entry(r#""args": [{"index": 0, "value": 1, "op": "SCMP_CMP_X"}]"#), "unknown operator"),
        (with_entry(&entries), "129 entries for one call"),
        (with_entry(&repeated), "129 entries for one call"),
        (format!("{}{}", " ".repeat(1 << 20), key(r#""flags": []"#)), "bytes"),
    ] {
        let error = Profile::parse_artifact(bad.as_bytes()).unwrap_err();
        let text = wharf_types::chain(&error);
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_base_without_action_and_rules_restricts_nothing() {
    for nothing in ["{}", r#"{"syscalls": []}"#, r#"{"architectures": ["SCMP_ARCH_X86_64"]}"#] {
        assert_eq!(Profile::parse_base(nothing.as_bytes()).unwrap(), None, "{nothing}");
    }
    assert!(Profile::parse_base(br#"{"defaultAction": "SCMP_ACT_ERRNO"}"#).unwrap().is_some());
    for bad in ["", "[]", r#"{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}"#] {
        Profile::parse_base(bad.as_bytes()).unwrap_err();
    }
}
