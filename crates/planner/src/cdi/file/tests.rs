//! What is accepted as a file, and what of it is found again.

use serde_json::{Value, json};

use super::*;

/// A change of a file.
type Change = fn(&mut Value);

/// A file with everything that a file can have.
fn full() -> Value {
    let node = json!({"path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3,
        "fileMode": 432, "permissions": "rw", "uid": 7, "gid": 8});
    let hook = json!({"hookName": "createContainer", "path": "/bin/hook", "args": ["hook"], "env": ["A=b"], "timeout": 5});
    let mount = json!({"hostPath": "/lib", "containerPath": "/lib", "options": ["ro"], "type": "bind"});
    let rdt = json!({"closID": "x", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=1", "schemata": ["L3:0=f"],
        "enableMonitoring": true});
    let edits = json!({"env": ["A=b"], "deviceNodes": [node], "hooks": [hook], "mounts": [mount], "intelRdt": rdt,
        "netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}], "additionalGids": [5]});
    json!({"cdiVersion": "1.1.0", "kind": "vendor.com/gpu", "annotations": {"a": "b"}, "containerEdits": edits,
        "devices": [{"name": "0", "annotations": {"c": "d"}, "containerEdits": edits}]})
}

fn plain() -> Value {
    json!({"cdiVersion": "0.3.0", "kind": "vendor.com/gpu",
        "devices": [{"name": "gpu0", "containerEdits": {"env": ["A=b"]}}]})
}

/// The plain file with one value changed.
fn with(place: &str, value: Value) -> Result<File, String> {
    let mut file = plain();
    let (parent, name) = place.rsplit_once('/').unwrap();
    let parent = file.pointer_mut(parent).unwrap_or_else(|| panic!("{place}"));
    parent.as_object_mut().unwrap().insert(name.to_owned(), value);
    File::parse(file)
}

fn of_device(name: &str, value: Value) -> Result<File, String> {
    with(&format!("/devices/0/containerEdits/{name}"), value)
}

#[test]
fn what_a_file_says_of_a_device_is_found_by_its_whole_name() {
    let file = File::parse(full()).unwrap();
    let name = DeviceName::new("vendor.com/gpu=0").unwrap();
    assert_eq!(file.devices().collect::<Vec<_>>(), std::slice::from_ref(&name));
    let addition = file.addition(&name).unwrap();
    assert_eq!(addition, file.common(&name), "both have the same edits here");
    let node = &addition.edits.device_nodes[0];
    assert_eq!((node.major, node.minor, node.file_mode, node.uid), (Some(1), Some(3), Some(0o660), Some(7)));
    assert_eq!(addition.edits.hooks[0].timeout, Some(5));
    assert!(addition.edits.intel_rdt.unwrap().enable_monitoring);
    for other in ["vendor.com/gpu=1", "vendor.com/nic=0", "other.com/gpu=0"] {
        assert_eq!(file.addition(&DeviceName::new(other).unwrap()), None);
    }
}

/// As YAML is read, every scalar is text.
#[test]
fn numbers_may_be_text() {
    let node = json!({"path": "/dev/x", "type": "c", "major": "195", "minor": "0", "fileMode": "0660"});
    let file = of_device("deviceNodes", json!([node])).unwrap();
    let edits = file.addition(&file.devices().next().unwrap()).unwrap().edits;
    let node = &edits.device_nodes[0];
    assert_eq!((node.major, node.minor, node.file_mode), (Some(195), Some(0), Some(0o660)));
}

#[test]
fn every_version_lacks_what_came_later() {
    let parse = |version: &str, change: Change| {
        let mut file = plain();
        file["cdiVersion"] = version.into();
        change(&mut file);
        File::parse(file).map(drop)
    };
    let rows: [(&str, &str, Change); 9] = [
        ("0.3.0", "0.4.0", |file| {
            let mount = json!({"hostPath": "/a", "containerPath": "/b", "type": "bind"});
            file["devices"][0]["containerEdits"]["mounts"] = json!([mount]);
        }),
        ("0.4.0", "0.5.0", |file| file["devices"][0]["name"] = "0".into()),
        ("0.4.0", "0.5.0", |file| {
            file["containerEdits"] = json!({"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]});
        }),
        ("0.5.0", "0.6.0", |file| file["annotations"] = json!({"a": "b"})),
        ("0.5.0", "0.6.0", |file| file["kind"] = "vendor.com/gpu.big".into()),
        ("0.6.0", "0.7.0", |file| file["containerEdits"] = json!({"additionalGids": [5]})),
        ("0.6.0", "0.7.0", |file| file["containerEdits"] = json!({"intelRdt": {"closID": "x"}})),
        ("1.0.0", "1.1.0", |file| {
            file["containerEdits"] = json!({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]});
        }),
        ("1.0.0", "1.1.0", |file| file["containerEdits"] = json!({"intelRdt": {"enableMonitoring": true}})),
    ];
    for (older, newer, change) in rows {
        let fault = parse(older, change).unwrap_err();
        assert!(fault.contains(&format!("which needs {newer}")), "{older}: {fault}");
        parse(newer, change).unwrap();
        parse(&format!("v{newer}"), change).unwrap();
    }
    for version in ["0.2.0", "1.2.0", "", "1.1"] {
        let fault = parse(version, |_file| {}).unwrap_err();
        assert!(fault.contains("0.3.0 to 1.1.0 are"), "{fault}");
    }
}

#[test]
fn a_file_with_a_fault_is_of_no_use() {
    let rows = [
        (with("/devices", json!([])), "0 devices"),
        (with("/kind", "gpu".into()), "vendor.com/class"),
        (with("/kind", "vendor.com/".into()), "class"),
        (with("/kind", "-/gpu".into()), "vendor"),
        (with("/unknown", json!(1)), "unknown"),
        (with("/devices/0/name", "../x".into()), "../x"),
        (with("/devices/0/containerEdits", json!({})), "no containerEdits"),
        (with("/containerEdits", json!({"env": ["A"]})), "containerEdits: the variable \"A\""),
        (of_device("env", json!(["=b"])), "gpu0"),
        (of_device("mystery", json!([])), "mystery"),
        (of_device("deviceNodes", json!([{"path": ""}])), "no path"),
        (of_device("deviceNodes", json!([{"path": "/a", "type": "x"}])), "b, c, u and p"),
        (of_device("deviceNodes", json!([{"path": "/a", "permissions": "rx"}])), "r, w and m"),
        (of_device("deviceNodes", json!([{"path": "/a", "major": -1}])), "out of range"),
        (of_device("deviceNodes", json!([{"path": "/a", "major": "a"}])), "whole number"),
        (of_device("deviceNodes", json!([{"path": "/a", "uid": 4_294_967_296_u64}])), "out of range"),
        (of_device("mounts", json!([{"hostPath": "/a", "containerPath": ""}])), "containerPath"),
        (of_device("hooks", json!([{"hookName": "whenever", "path": "/a"}])), "whenever"),
        (of_device("hooks", json!([{"hookName": "prestart", "path": ""}])), "no path"),
        (of_device("hooks", json!([{"hookName": "prestart", "path": "/a", "env": ["A"]}])), "variable"),
    ];
    for (parsed, words) in rows {
        let fault = parsed.unwrap_err();
        assert!(fault.contains(words), "{words}: {fault}");
    }
    let mut twice = plain();
    let device = twice["devices"][0].clone();
    twice["devices"].as_array_mut().unwrap().push(device);
    assert!(File::parse(twice).unwrap_err().contains("listed twice"));
    let mut json = serde_json::Deserializer::from_str(r#"{"kind": "a/b", "kind": "c/d"}"#);
    assert!(File::parse(&mut json).unwrap_err().contains("duplicate field"));
}

#[test]
fn what_is_there_without_a_value_is_missing() {
    let mut file = plain();
    file["annotations"] = Value::Null;
    file["containerEdits"] = json!({"env": null, "additionalGids": null, "intelRdt": null});
    File::parse(file).unwrap();
}
