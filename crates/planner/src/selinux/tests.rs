//! Labels of requests, levels, and what a policy says.

use std::collections::BTreeSet;

use wharf_sys::mount::Propagation;

use super::*;
use crate::request::{MountSource, Unread};
use crate::tests::{Asked, host};

const CONTEXTS: &str = r#"
# comment
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
"#;

fn policy() -> Policy {
    Policy::parse(CONTEXTS).unwrap()
}

fn options(user: &str, role: &str, kind: &str, level: &str) -> SeLinuxOption {
    let [user, role, r#type, level] = [user, role, kind, level].map(str::to_owned);
    SeLinuxOption { user, role, r#type, level }
}

/// The labels of a container: of its programs, and of its files.
fn labels(pods: Option<SeLinuxOption>, change: impl FnOnce(&mut Asked)) -> [String; 2] {
    let mut asked = Asked::default();
    asked.pod.linux.get_or_insert_default().security_context.get_or_insert_default().selinux_options = pods;
    change(&mut asked);
    let policy = policy();
    let on = Selinux::On(Labelling { policy: &policy, level: "s0:c1,c2" });
    let labels = labels_of(&Request { selinux: on, ..asked.request() }).unwrap().unwrap();
    [labels.process.map_or_else(String::new, |label| label.to_string()), labels.mount.to_string()]
}

const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

#[test]
fn what_nobody_asks_for_is_the_policys_and_the_pods() {
    assert_eq!(labels(None, |_| {}), ["system_u:system_r:container_t:s0:c1,c2", FILES]);
}

#[test]
fn a_containers_options_are_its_own_or_else_its_pods() {
    let pods = || Some(options("u", "", "pods_t", ""));
    let own = |own: SeLinuxOption| move |asked: &mut Asked| asked.security().selinux_options = Some(own);
    let of_u = "u:object_r:container_file_t:s0:c1,c2";
    assert_eq!(labels(pods(), |_| {}), ["u:system_r:pods_t:s0:c1,c2", of_u]);
    assert_eq!(labels(pods(), own(SeLinuxOption::default())), ["u:system_r:pods_t:s0:c1,c2", of_u]);
    let own_type = own(options("", "", "own_t", ""));
    assert_eq!(labels(pods(), own_type), ["system_u:system_r:own_t:s0:c1,c2", FILES]);
    let own_level = own(options("", "r", "", "s0:c7"));
    let files = "system_u:object_r:container_file_t:s0:c7";
    assert_eq!(labels(None, own_level), ["system_u:r:container_t:s0:c7", files]);
}

#[test]
fn the_privileged_are_unconfined_unless_a_type_is_asked_for() {
    let privileged = |own: SeLinuxOption| {
        move |asked: &mut Asked| {
            asked.security().privileged = true;
            asked.security().selinux_options = Some(own);
        }
    };
    assert_eq!(labels(None, privileged(SeLinuxOption::default())), ["system_u:system_r:spc_t:s0", FILES]);
    let level = privileged(options("", "", "", "s0:c7"));
    let files = "system_u:object_r:container_file_t:s0:c7";
    assert_eq!(labels(None, level), ["system_u:system_r:spc_t:s0:c7", files]);
    let kind = privileged(options("", "", "own_t", ""));
    assert_eq!(labels(None, kind), ["system_u:system_r:own_t:s0:c1,c2", FILES]);
    let mut asked = Asked::default();
    asked.security().privileged = true;
    let without = Policy { unconfined: None, ..policy() };
    let on = Selinux::On(Labelling { policy: &without, level: "s0:c1,c2" });
    let labels = labels_of(&Request { selinux: on, ..asked.request() }).unwrap().unwrap();
    assert_eq!((labels.process, labels.mount.as_str()), (None, FILES));
}

#[test]
fn options_that_no_label_can_have_are_refused_by_their_field() {
    let policy = policy();
    let on = Selinux::On(Labelling { policy: &policy, level: "s0:c1,c2" });
    for bad in [
        options("a b", "", "", ""),
        options("", "r:r", "", ""),
        options("", "", "t\"", ""),
        options("", "", "", "s0\n"),
        options("", "", "", &"c".repeat(300)),
    ] {
        for privileged in [false, true] {
            let mut asked = Asked::default();
            asked.security().privileged = privileged;
            asked.security().selinux_options = Some(bad.clone());
            let refusal = labels_of(&Request { selinux: on, ..asked.request() }).unwrap_err();
            assert!(refusal.to_string().starts_with("selinux_options: "), "{bad:?}: {refusal}");
        }
    }
}

#[test]
fn where_there_are_no_labels_options_have_no_effect_but_in_a_pod_without() {
    let mut asked = Asked::default();
    assert_eq!(labels_of(&Request { selinux: Selinux::Unlabelled, ..asked.request() }), Ok(None));
    asked.security().selinux_options = Some(options("no such", "", "", ""));
    assert_eq!(labels_of(&asked.request()), Ok(None));
    let refusal = labels_of(&Request { selinux: Selinux::Unlabelled, ..asked.request() }).unwrap_err();
    assert!(refusal.to_string().contains("recreate the pod"), "{refusal}");
}

#[test]
fn every_pair_of_categories_has_a_number() {
    let pairs: BTreeSet<_> = (0..1024 * 1023 / 2).map(pair).collect();
    assert_eq!(pairs.len(), 1024 * 1023 / 2);
    assert!(pairs.iter().all(|(low, high)| low < high && *high < 1024));
    assert_eq!([pair(0), pair(1), pair(2), pair(3)], [(0, 1), (0, 2), (1, 2), (0, 3)]);
}

#[test]
fn each_pod_gets_a_level_of_its_own_as_long_as_there_are_some() {
    let policy = policy();
    let mut taken = BTreeSet::new();
    for random in [5, 5, 0xff, 0, 3, 1] {
        let level = policy.free_level(4, [random; 32], |level| taken.contains(level)).unwrap();
        assert!(taken.insert(level));
    }
    assert!(taken.contains("s0:c0,c1") && taken.contains("s0:c2,c3"), "{taken:?}");
    assert_eq!(policy.free_level(4, [0; 32], |level| taken.contains(level)), None);
    assert_eq!(policy.free_level(1, [7; 32], |_| false), None);
    let plain = Policy::parse("process=u:r:t\nfile=u:o:f").unwrap();
    assert_eq!(plain.free_level(1024, [7; 32], |_| true).unwrap(), "");
    let ranges = Policy::parse("process=u:r:t:s0-s0:c0.c1023\nfile=u:o:f:s0").unwrap();
    assert_eq!(ranges.free_level(2, [7; 32], |_| false).unwrap(), "s0:c0,c1");
    assert_eq!(ranges.unconfined.unwrap().as_str(), "u:r:spc_t:s0");
}

#[test]
fn a_policy_names_both_labels() {
    assert_eq!(policy().file.as_str(), "system_u:object_r:container_file_t:s0");
    for (text, words) in [
        ("", "process: it is missing"),
        ("process = \"u:r:t:s0\"\n#file = \"u:o:f:s0\"", "file: it is missing"),
        ("process = \"u:r\"\nfile = \"u:o:f\"", "process: \"u:r\" is not a label"),
    ] {
        let error = Policy::parse(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn directories_of_the_machine_are_not_relabelled() {
    let policy = policy();
    let on = Selinux::On(Labelling { policy: &policy, level: "" });
    let relabelled = |path: &str, selinux| {
        let mut asked = Asked::default();
        let mount = wharf_cri_api::v1::Mount { selinux_relabel: true, ..Default::default() };
        asked.container.mounts =
            vec![wharf_cri_api::v1::Mount { selinux_relabel: false, ..mount.clone() }, mount];
        let source =
            |path| Ok::<_, Unread>(MountSource { path: host(path), propagation: Propagation::Private });
        asked.facts.mounts = vec![source("/plain"), source(path)];
        super::relabelled(&Request { selinux, ..asked.request() }, &asked.facts)
    };
    for path in ["/", "/usr", "/etc", "/home", "/root", "/var", "/proc", "/sys", "/dev", "/usr/lib"] {
        let refusal = relabelled(path, on).unwrap_err().to_string();
        assert!(refusal.contains(&format!("{path} belongs to the whole machine")), "{refusal}");
        assert_eq!(relabelled(path, Selinux::Off), Ok(Vec::new()));
    }
    assert_eq!(relabelled("/srv/data", on), Ok(vec![host("/srv/data")]));
}
