//! The behaviour on a node without a unified hierarchy: tracking by the v1 freezer, killing through pidfds. On a hybrid
//! node the same code runs on the v1 side of a cgroup.

use super::{Fresh, PATIENCE, Shell};
use crate::detect::{Hierarchy, Kind};
use crate::{Cgroup, Cgroups, Controller, Limits};

/// The cgroup as a node without a unified hierarchy would see it.
fn seen_by_v1(fresh: &Fresh) -> Cgroup {
    let mount = |controller| {
        let (kind, directory) = fresh.0.home(controller).unwrap();
        assert_eq!(kind, Kind::V1, "this test needs v1 hierarchies");
        directory.parent().unwrap().to_path_buf()
    };
    let at = |controller| Hierarchy::open(Kind::V1, mount(controller), vec![controller]).unwrap();
    Cgroups::of(vec![at(Controller::Freezer), at(Controller::Pids)]).unwrap().at(fresh.0.path())
}

#[test]
fn killing_leaves_nothing_even_of_a_fork_storm() {
    let fresh = Fresh::new("v1-storm");
    let v1 = seen_by_v1(&fresh);
    let storm = "while :; do (sleep 1000 >/dev/null &) & wait; done";
    let _shell =
        Shell::enter(&v1.entry(), &format!("({storm}) >/dev/null & ({storm}) >/dev/null & read forever"));
    assert!(v1.entry().directory.is_none());
    v1.kill(PATIENCE).unwrap();
    assert!(!v1.is_populated().unwrap());
    v1.remove(PATIENCE).unwrap();
}

#[test]
fn a_frozen_cgroup_is_thawed_to_die() {
    let fresh = Fresh::new("v1-frozen");
    let v1 = seen_by_v1(&fresh);
    let mut shell = Shell::enter(&v1.entry(), "read word; echo \"heard $word\"");
    v1.freeze(PATIENCE).unwrap();
    v1.thaw(PATIENCE).unwrap();
    shell.say("hello");
    assert_eq!(shell.line(), "heard hello");
    let mut shell = Shell::idle(&v1.entry());
    v1.freeze(PATIENCE).unwrap();
    v1.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
}

#[test]
fn what_somebody_froze_is_thawed_to_die_on_hybrid_too() {
    let fresh = Fresh::new("hybrid-frozen");
    let v1 = seen_by_v1(&fresh);
    let mut shell = Shell::enter(&fresh.0.entry(), "read forever");
    v1.freeze(PATIENCE).unwrap();
    fresh.0.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
}

#[test]
fn an_enclosed_cgroup_that_is_frozen_inside_dies_too() {
    let fresh = Fresh::new("v1-enclosed");
    let v1 = seen_by_v1(&fresh).enclosed();
    v1.apply(&Limits { pids_limit: Some(20), ..Limits::default() }).unwrap();
    let mut shell = Shell::idle(&v1.entry());
    assert_eq!(v1.pids().unwrap(), [shell.pid()]);
    v1.inside().unwrap().freeze(PATIENCE).unwrap();
    v1.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
    v1.remove(PATIENCE).unwrap();
}
