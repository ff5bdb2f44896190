//! What a hook is given, and what becomes of one that fails. What it sees of a container is tested with real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A container with hooks that are scripts; each is executed in the order of the list.
struct Rig {
    dir: TempDir,
    hooks: Vec<Value>,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), hooks: Vec::new() }
    }

    fn script(&mut self, body: &str, more: Value) {
        let path = self.dir.path().join(format!("{}.sh", self.hooks.len()));
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut hook = more;
        hook["path"] = path.to_str().unwrap().into();
        self.hooks.push(hook);
    }

    fn hooked(&self, point: &str) -> Hooked {
        let kept = json!({"ociVersion": "1.2.1", "annotations": {"a": "b"}, "hooks": {point: self.hooks}});
        Hooked {
            hooks: kept.to_string(),
            id: ContainerId::from_random([0xab; 32]),
            pid: 7,
            bundle: self.dir.path().join("bundle"),
        }
    }

    fn create(&self) -> Result<(), String> {
        self.hooked("createRuntime").create().map_err(|error| chain(&error))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

#[test]
fn a_hook_is_given_the_state_and_its_own_arguments_and_environment() {
    let mut rig = Rig::new();
    let out = rig.dir.path().display().to_string();
    rig.script(
        &format!("cat > {out}/state; echo \"$0 $1\" > {out}/words; env > {out}/env; pwd > {out}/cwd"),
        json!({"args": ["name", "first argument"], "env": ["A=b c"]}),
    );
    rig.script(&format!("echo $PATH > {out}/path"), json!({}));
    let hooked = rig.hooked("createRuntime");
    hooked.make_bundle(b"{}").unwrap();
    hooked.create().unwrap();
    let state: Value = serde_json::from_str(&rig.read("state")).unwrap();
    let bundle = hooked.bundle.to_str().unwrap();
    assert_eq!(
        state,
        json!({"ociVersion": "1.2.1", "id": hooked.id.as_str(), "status": "creating", "pid": 7,
        "bundle": bundle, "annotations": {"a": "b"}})
    );
    // A script's interpreter replaces the first argument with the script's path.
    assert!(rig.read("words").ends_with("0.sh first argument\n"), "{}", rig.read("words"));
    let env = rig.read("env");
    assert!(env.contains("A=b c\n") && !env.contains("CARGO"), "{env}");
    assert_eq!(rig.read("cwd").trim(), bundle);
    assert_eq!(rig.read("path").trim(), DEFAULT_PATH);
    assert_eq!(fs::read(hooked.bundle.join("config.json")).unwrap(), b"{}");
    let ended = Hooked { hooks: String::new(), ..hooked.clone() };
    for _ in 0..2 {
        ended.end().unwrap();
        assert_eq!(hooked.notes().map(|note| note.exists()), [false, true]);
    }
    for _ in 0..2 {
        hooked.remove_bundle().unwrap();
        assert!(!hooked.bundle.exists() && !hooked.notes().iter().any(|note| note.exists()));
        ended.end().unwrap();
    }
    Hooked { bundle: rig.dir.path().join("bundles/none"), ..ended }.remove_bundle().unwrap();
}

#[test]
fn the_first_hook_that_fails_is_the_last_and_what_it_wrote_is_told() {
    let mut rig = Rig::new();
    let ran = rig.dir.path().join("ran");
    rig.script("echo no GPU here >&2; exit 3", json!({}));
    rig.script(&format!("touch {}", ran.display()), json!({}));
    let failure = rig.create().unwrap_err();
    assert!(failure.contains("0.sh at createRuntime failed: exit status: 3: no GPU here"), "{failure}");
    assert!(!ran.exists());
}

#[test]
fn hooks_are_in_the_saved_spec_as_well_unless_that_is_damaged() {
    let mut rig = Rig::new();
    let spec = rig.dir.path().join("spec");
    let why = StageError::at("reading the record", std::io::Error::other("it is damaged"));
    let saved = |text: &str| {
        fs::write(&spec, text).unwrap();
        hooks_of_saved(&spec, &why).unwrap()
    };
    let ran = rig.dir.path().join("ran");
    rig.script(&format!("cat > {}", ran.display()), json!({}));
    let mut text: Value = serde_json::from_str(&rig.hooked("poststop").hooks).unwrap();
    text["hostname"] = "of-the-pod".into();
    let hooks = saved(&text.to_string());
    Hooked { hooks, ..rig.hooked("poststop") }.notify(Point::Poststop).unwrap();
    let state: Value = serde_json::from_str(&rig.read("ran")).unwrap();
    assert_eq!((&state["status"], &state["annotations"]), (&json!("stopped"), &json!({"a": "b"})));
    assert_eq!(saved(r#"{"ociVersion": "1.2.1"}"#), "", "it had none");
    assert_eq!(saved("nonsense"), "", "they are lost");
    fs::remove_file(&spec).unwrap();
    assert_eq!(hooks_of_saved(&spec, &why).unwrap(), "");
    // Reading it fails as on a broken disk.
    std::os::unix::fs::symlink("/proc/self/mem", &spec).unwrap();
    hooks_of_saved(&spec, &why).unwrap_err();
}

#[test]
fn where_nothing_can_be_undone_every_hook_is_executed() {
    let mut rig = Rig::new();
    let ran = rig.dir.path().join("ran");
    rig.script("exit 3", json!({}));
    rig.script(&format!("cat > {}", ran.display()), json!({}));
    rig.hooked("poststop").notify(Point::Poststop).unwrap();
    let state: Value = serde_json::from_str(&rig.read("ran")).unwrap();
    assert_eq!(state["status"], "stopped");
    rig.hooked("poststop").create().unwrap();
}

#[test]
fn a_hook_that_does_not_end_is_killed_at_its_deadline() {
    let mut rig = Rig::new();
    rig.script("sleep 1000", json!({"timeout": 1}));
    let begin = Instant::now();
    let failure = rig.create().unwrap_err();
    assert!(failure.contains("did not end within 1 s"), "{failure}");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_hook_that_is_not_there_or_says_too_much_has_failed() {
    let mut rig = Rig::new();
    rig.hooks.push(json!({"path": "/nowhere/hook"}));
    let failure = rig.create().unwrap_err();
    assert!(failure.contains("/nowhere/hook") && failure.contains("No such file"), "{failure}");
    rig.hooks.clear();
    rig.script("yes", json!({}));
    assert!(rig.create().unwrap_err().contains("wrote too much"));
    let none = Hooked { hooks: String::new(), ..rig.hooked("prestart") };
    assert!(!none.has_hooks());
    none.create().unwrap();
    none.notify(Point::Poststop).unwrap();
}
