//! Nothing of a description is lost on the way to the plan. Each field of every struct of the runtime spec changes the
//! plan or the limits, or leads to a refusal; or it is listed here, with the reason why it has no meaning.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxPids, LinuxSeccomp, PosixRlimit, Spec};
use serde_json::Value;
use wharf_cgroup::Limits;
use wharf_isolation::Plan;

use super::filled::filled;
use super::{Asked, requests};
use crate::{Description, Filters, Refusal, describe, limits, plan};

/// Fields without a meaning here, with the reason.
const MEANINGLESS: &[(&str, &str)] = &[
    ("/ociVersion", "what is newer has fields of its own, and each is looked at"),
    ("/annotations/filled", "they are for people and other programs"),
    (
        "/root/path",
        "the root file system is not below a bundle but made of layers, which are beside the spec",
    ),
    ("/process/user/username", "for people: a name that has a meaning is beside the spec"),
    ("/solaris", "for another operating system"),
    ("/windows", "for another operating system"),
    ("/zos", "for another operating system"),
    ("/mounts/0/source", "a new file system has a type and no source; that of a bind has a test of its own"),
];

/// A description with every structure that a plan can have, so that single fields of it can be changed.
fn rich() -> Description {
    let mut asked = Asked::default();
    for name in ["huge pages and files of v2", "one", "the runtime's seccomp profile"] {
        let case = requests::CASES.iter().find(|case| case.name == name).unwrap();
        (case.change)(&mut asked);
    }
    let mut description = describe(&asked.request(), &asked.facts, &asked.places).unwrap();
    let spec = &mut description.spec;
    let limit: PosixRlimit =
        serde_json::from_str(r#"{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 9}"#).unwrap();
    spec.process_mut().as_mut().unwrap().set_rlimits(Some(vec![limit]));
    let linux = spec.linux_mut().as_mut().unwrap();
    let rule = r#"{"allow": false, "type": "c", "major": 5, "minor": 6, "access": "r"}"#;
    let rule: LinuxDeviceCgroup = serde_json::from_str(rule).unwrap();
    let resources = linux.resources_mut().as_mut().unwrap();
    resources.set_pids(Some(LinuxPids::default())).set_devices(Some(vec![rule]));
    let profile = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5,
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_ARM"], "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6,
         "args": [{"index": 0, "value": 2, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
    linux.set_seccomp(Some(serde_json::from_str::<LinuxSeccomp>(profile).unwrap()));
    description
}

fn decide(description: &Description) -> Result<(Plan, Limits), Refusal> {
    Ok((plan(description, &Filters::default())?, limits(&description.resources())?))
}

/// The places of fields that are set one at a time: the fields of a struct that is in both, otherwise the whole value.
fn places(filled: &Value, rich: Option<&Value>, at: &str, found: &mut Vec<String>) {
    match (filled, rich) {
        (Value::Object(fields), Some(Value::Object(known))) => {
            for (name, value) in fields {
                places(value, known.get(name), &format!("{at}/{name}"), found);
            }
        }
        (Value::Array(one), Some(Value::Array(known))) if one[0].is_object() && !known.is_empty() => {
            places(&one[0], known.first(), &format!("{at}/0"), found);
        }
        _ => found.push(at.to_owned()),
    }
}

/// The value, changed in one place whose parent exists.
fn with(value: &Value, place: &str, new: &Value) -> Value {
    let mut changed = value.clone();
    let (parent, name) = place.rsplit_once('/').unwrap();
    let parent = changed.pointer_mut(parent).unwrap();
    parent.as_object_mut().unwrap().insert(name.to_owned(), new.clone());
    changed
}

#[test]
fn each_field_is_planned_or_refused_or_means_nothing() {
    let rich = rich();
    let as_it_is = decide(&rich).unwrap();
    let (all, json) =
        (serde_json::to_value(filled::<Spec>()).unwrap(), serde_json::to_value(&rich.spec).unwrap());
    let mut found = Vec::new();
    places(&all, Some(&json), "", &mut found);
    let mut lost = Vec::new();
    for place in &found {
        let changed = with(&json, place, all.pointer(place).unwrap());
        assert_ne!(changed, json, "{place}: filled with what it has");
        let mut description = rich.clone();
        description.spec = serde_json::from_value(changed).unwrap();
        if decide(&description).is_ok_and(|decided| decided == as_it_is) {
            lost.push(place.as_str());
        }
    }
    let meaningless: Vec<&str> = MEANINGLESS.iter().map(|(place, _reason)| *place).collect();
    let unexplained: Vec<_> = lost.iter().filter(|place| !meaningless.contains(place)).collect();
    assert!(unexplained.is_empty(), "neither planned nor refused: {unexplained:?}");
    let explained: Vec<_> = meaningless.iter().filter(|place| !lost.contains(place)).collect();
    assert!(explained.is_empty(), "not meaningless, or not there: {explained:?}");
    assert!(found.len() > 100, "{} fields: there are more", found.len());
}

#[test]
fn what_a_plan_cannot_say_is_refused_by_name() {
    let rich = rich();
    let json = serde_json::to_value(&rich.spec).unwrap();
    let last = json["mounts"].as_array().unwrap().len() - 1;
    let rows = [
        ("/linux/namespaces/0/path", Value::Null, "is the pod's and needs its path"),
        ("/linux/namespaces/0/type", "user".into(), "needs uidMappings and gidMappings"),
        ("/linux/namespaces/0/type", "time".into(), "time namespaces are not supported"),
        ("/linux/namespaces/3/path", "/x".into(), "cannot be joined by path"),
        ("/linux/namespaces", Value::Array(Vec::new()), "add mount"),
        ("/linux/devices/0/type", "p".into(), "character or a block device"),
        ("/linux/resources/devices/0/access", "x".into(), "not made of r, w and m"),
        ("/linux/cgroupsPath", "/elsewhere".into(), "linux.cgroupsPath"),
        ("/linux/rootfsPropagation", "unbindable".into(), "not one of private, slave and shared"),
        ("/linux/resources/cpu/idle", 2.into(), "neither 0 nor 1"),
        ("/process/args", Value::Array(Vec::new()), "process.args"),
        (&format!("/mounts/{last}/source"), "relative".into(), "not absolute"),
        (
            &format!("/mounts/{last}/options"),
            vec!["bind", "relatime"].into(),
            "not an option of a bind mount",
        ),
        ("/process", Value::Null, "process: it is missing"),
        ("/linux", Value::Null, "linux: it is missing"),
    ];
    for (place, value, words) in rows {
        let mut description = rich.clone();
        description.spec = serde_json::from_value(with(&json, place, &value)).unwrap();
        let refusal = decide(&description).unwrap_err();
        assert!(refusal.to_string().contains(words), "{place}: {refusal}");
    }
}
