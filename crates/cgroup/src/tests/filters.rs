//! Device filters of both forms, enforced on a shell.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Fresh, Shell};
use crate::device::program::program;
use crate::{Access, Controller, DeviceRule, DeviceType, Entry, Limits, default_devices};
use wharf_sys::bpf::{DeviceProgram, attached};

/// Whether a process in the cgroup may open the device for writing.
fn can_write(entry: &Entry, device: &str) -> bool {
    let script = format!("if (: > {device}) 2>&-; then echo yes; else echo no; fi");
    Shell::enter(entry, &script).line() == "yes"
}

fn with_devices(rules: Vec<DeviceRule>) -> Limits {
    Limits { devices: Some(rules), ..Limits::default() }
}

fn zero_only() -> Vec<DeviceRule> {
    vec![DeviceRule::allow(DeviceType::Char, Some(1), Some(5), Access::ALL)]
}

#[test]
fn the_node_s_own_filter_is_enforced_and_replaced() {
    let fresh = Fresh::new("devices");
    let entry = fresh.0.entry();
    assert!(can_write(&entry, "/dev/null"));
    fresh.0.apply(&with_devices(zero_only())).unwrap();
    assert!(!can_write(&entry, "/dev/null"));
    assert!(can_write(&entry, "/dev/zero"));
    fresh.0.update(&with_devices(default_devices())).unwrap();
    assert!(can_write(&entry, "/dev/null"));
    fresh.0.update(&with_devices(zero_only())).unwrap();
    assert!(!can_write(&entry, "/dev/null"));
}

#[test]
fn the_v1_list_is_the_rules_and_nothing_else() {
    let fresh = Fresh::new("list");
    if fresh.0.home(Controller::Devices).is_none() {
        assert!(fresh.0.unified().is_some(), "devices need one of both filters");
        return;
    }
    fresh.0.apply(&with_devices(zero_only())).unwrap();
    assert_eq!(super::read(&fresh.at(Controller::Devices, "devices.list")), "c 1:5 rwm");
    fresh.0.update(&with_devices(vec![])).unwrap();
    assert_eq!(super::read(&fresh.at(Controller::Devices, "devices.list")), "");
    let all = DeviceRule::allow(DeviceType::All, None, None, Access::ALL);
    fresh.0.update(&with_devices(vec![all])).unwrap();
    assert_eq!(super::read(&fresh.at(Controller::Devices, "devices.list")), "a *:* rwm");
}

#[test]
fn the_v2_program_is_enforced_and_replaced() {
    let fresh = Fresh::new("ebpf");
    // Only the unified hierarchy, so that the v1 filter of a hybrid node plays no part.
    let directory = fresh.0.unified().expect("no unified hierarchy to attach a program to").to_path_buf();
    let entry = Entry { directory: Some(directory.clone()), tasks: Vec::new() };
    set(&directory, &zero_only());
    assert!(!can_write(&entry, "/dev/null"));
    assert!(can_write(&entry, "/dev/zero"));
    set(&directory, &default_devices());
    assert!(can_write(&entry, "/dev/null"));
    assert_eq!(attached(File::open(&directory).unwrap().as_fd()).unwrap().len(), 1, "replaced, not added");
    let read_only = Access::READ;
    set(&directory, &[DeviceRule::allow(DeviceType::Char, None, None, read_only)]);
    assert!(!can_write(&entry, "/dev/zero"));
}

fn set(directory: &Path, rules: &[DeviceRule]) {
    let loaded = DeviceProgram::load(&program(rules).unwrap()).unwrap();
    crate::apply::set_program(directory, &loaded).unwrap();
}

#[test]
fn leftover_programs_are_detached() {
    let fresh = Fresh::new("leftover");
    let directory = fresh.0.unified().expect("no unified hierarchy to attach a program to").to_path_buf();
    let cgroup = File::open(&directory).unwrap();
    for rules in [zero_only(), vec![], default_devices()] {
        DeviceProgram::load(&program(&rules).unwrap()).unwrap().attach(cgroup.as_fd(), None).unwrap();
    }
    assert_eq!(attached(cgroup.as_fd()).unwrap().len(), 3);
    set(&directory, &default_devices());
    assert_eq!(attached(cgroup.as_fd()).unwrap().len(), 1);
    let entry = Entry { directory: Some(directory), tasks: Vec::new() };
    assert!(can_write(&entry, "/dev/null"));
}

#[test]
fn a_filter_that_v1_cannot_express_changes_nothing() {
    let fresh = Fresh::new("hole");
    if fresh.0.home(Controller::Devices).is_none() {
        assert!(fresh.0.unified().is_some(), "devices need one of both filters");
        return;
    }
    let hole = vec![
        DeviceRule::allow(DeviceType::Char, Some(1), None, Access::ALL),
        DeviceRule::deny(DeviceType::Char, Some(1), Some(3), Access::WRITE),
    ];
    let limits = Limits { pids_limit: Some(5), ..with_devices(hole) };
    assert!(fresh.0.update(&limits).is_err());
    assert_eq!(super::read(&fresh.at(Controller::Pids, "pids.max")), "max");
}
