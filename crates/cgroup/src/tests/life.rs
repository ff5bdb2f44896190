//! Making, entering, killing, freezing, removing.

use super::{Fresh, PATIENCE, Shell, read};
use crate::detect::{Hierarchy, Kind};
use crate::{CgroupPath, Cgroups, Controller, Entry, Error, Version};
use std::path::Path;
use std::time::Duration;
use wharf_types::{ErrorKind, Failure};

#[test]
fn a_process_enters_every_hierarchy() {
    let fresh = Fresh::new("enter");
    let shell = Shell::idle(&fresh.0.entry());
    assert_eq!(fresh.0.pids().unwrap(), [shell.pid()]);
    assert!(fresh.0.is_populated().unwrap());
    let of_process = super::read(format!("/proc/{}/cgroup", shell.pid()).as_ref());
    let entry = fresh.0.entry();
    // The kernel lists the unified hierarchy even where that is not mounted.
    let is_mounted = |line: &&str| !line.starts_with("0::") || entry.directory.is_some();
    let mut all = of_process.lines().filter(is_mounted);
    assert!(all.all(|line| line.ends_with(fresh.0.path().as_str())), "{of_process}");
}

/// Whoever stops in a frozen cgroup is in all others by then.
#[test]
fn the_freezer_is_entered_last() {
    let mounts = [1, 2, 3].map(|_| tempfile::tempdir().unwrap());
    let controllers = [vec![Controller::Freezer], vec![Controller::Memory], vec![Controller::Pids]];
    let hierarchies = mounts.iter().zip(controllers);
    let hierarchies = hierarchies
        .map(|(mount, controllers)| Hierarchy::open(Kind::V1, mount.path().to_owned(), controllers).unwrap());
    let cgroups = Cgroups::of(hierarchies.collect()).unwrap();
    let tasks = cgroups.at(&CgroupPath::new("/c").unwrap()).entry().tasks;
    assert_eq!(tasks, [1, 2, 0].map(|number: usize| mounts[number].path().join("c/tasks")));
}

#[test]
fn creation_is_idempotent_and_makes_ancestors() {
    let fresh = Fresh::new("again");
    let cgroups = Cgroups::detect().unwrap();
    let path = fresh.0.path().child("burstable").unwrap().child("pod").unwrap();
    let inner = cgroups.create(&path).unwrap();
    let again = cgroups.create(&path).unwrap();
    assert_eq!(inner.entry(), again.entry());
    if let Some((Kind::V1, directory)) = inner.home(Controller::Cpuset) {
        let whole = directory.ancestors().nth(3).unwrap();
        for name in ["cpuset.cpus", "cpuset.mems"] {
            assert_eq!(super::read(&directory.join(name)), super::read(&whole.join(name)));
        }
    }
    let shell = Shell::idle(&inner.entry());
    assert_eq!(fresh.0.pids().unwrap(), [shell.pid()], "descendants count");
}

/// A write to a v1 cpuset takes the longer the more cpusets there are.
#[test]
fn the_cpusets_of_pods_are_copied_and_not_written() {
    let fresh = Fresh::new("copied");
    let (parent, cgroups) = (fresh.0.path().child("pods").unwrap(), Cgroups::detect().unwrap());
    let inner = cgroups.create(&parent.child("pod").unwrap()).unwrap();
    let Some((Kind::V1, directory)) = inner.home(Controller::Cpuset) else { return };
    let other = directory.with_file_name("other");
    std::fs::create_dir(&other).unwrap();
    for name in ["cpuset.cpus", "cpuset.mems"] {
        assert_eq!(super::read(&other.join(name)), super::read(&directory.join(name)));
    }
    let asked_for = fresh.at(Controller::Cpuset, "cgroup.clone_children");
    assert_eq!(super::read(&asked_for), "0", "only a cgroup on the way to another passes on");
}

/// As a daemon leaves it that was killed between making a cgroup and filling it.
#[test]
fn a_parent_that_was_left_empty_is_filled() {
    let fresh = Fresh::new("empty");
    let parent = fresh.0.path().child("pod").unwrap();
    for (_, directory) in fresh.0.v1_directories() {
        std::fs::create_dir(directory.join("pod")).unwrap();
    }
    let inner = Cgroups::detect().unwrap().create(&parent.child("container").unwrap()).unwrap();
    let _shell = Shell::idle(&inner.entry());
}

#[test]
fn killing_reaches_descendants_of_every_kind() {
    let fresh = Fresh::new("kill");
    let mut own = Shell::enter(&fresh.0.entry(), "trap '' TERM HUP INT; setsid sleep 1000 & read forever");
    let below = fresh.0.kill_directory().join("exec-1");
    std::fs::create_dir(&below).unwrap();
    let mut below = Shell::idle(&Entry { directory: Some(below), ..fresh.0.entry() });
    fresh.0.kill(PATIENCE).unwrap();
    assert_eq!(own.end(), Some(9));
    assert_eq!(below.end(), Some(9));
    fresh.0.remove(PATIENCE).unwrap();
    assert!(!fresh.0.is_populated().unwrap());
    assert!(fresh.0.pids().unwrap().is_empty());
    let error = Cgroups::detect().unwrap().open(fresh.0.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // A cgroup that is gone can be killed and removed.
    fresh.0.kill(PATIENCE).unwrap();
    fresh.0.remove(PATIENCE).unwrap();
}

#[test]
fn removal_waits_for_the_last_process_but_not_for_ever() {
    let fresh = Fresh::new("busy");
    let mut shell = Shell::idle(&fresh.0.entry());
    let error = fresh.0.remove(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(&error, Error::Late { awaited: "empty", .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let cgroup = fresh.0.clone();
    let remover = std::thread::spawn(move || cgroup.remove(PATIENCE));
    shell.end();
    remover.join().unwrap().unwrap();
}

/// Another container can lend a descriptor of its own cgroup, into which a process is then moved in one hierarchy.
#[test]
fn a_process_that_is_in_one_hierarchy_alone_keeps_a_shared_cgroup_and_goes_home_from_anothers() {
    let (fresh, home) = (Fresh::new("lent"), Fresh::new("home"));
    let unified = Entry { directory: home.0.entry().directory, tasks: vec![] };
    for tasks in fresh.0.entry().tasks {
        let lent = Cgroups::detect().unwrap().create(fresh.0.path()).unwrap();
        let mut shell =
            Shell::enter(&Entry { tasks: vec![tasks.clone()], ..unified.clone() }, "read word; echo $word");
        if !lent.pids().unwrap().is_empty() {
            continue;
        }
        assert_eq!(lent.pids_in_all().unwrap(), [shell.pid()]);
        let shared = lent.remove_unused(Duration::ZERO).unwrap_err();
        assert!(matches!(shared, Error::Late { .. }), "{shared}");
        lent.remove(PATIENCE).unwrap();
        let own = tasks.to_str().unwrap().replace("-lent/", "-home/");
        assert_eq!(read(Path::new(&own)), shell.pid().to_string(), "{own}");
        shell.say("lives");
        assert_eq!(shell.line(), "lives");
    }
}

/// The home of a stray may be gone or refuse it: the container can see to both.
#[test]
fn a_stray_without_a_home_is_killed_and_never_moved_out_of_its_container() {
    let (fresh, home) = (Fresh::new("lender"), Fresh::container());
    let unified = Entry { directory: home.0.entry().directory, tasks: vec![] };
    for tasks in fresh.0.entry().tasks {
        let lent = Cgroups::detect().unwrap().create(fresh.0.path()).unwrap();
        let own = tasks.to_str().unwrap().replace(fresh.0.path().as_str(), home.0.path().as_str());
        let own = Path::new(&own).parent().unwrap();
        let cpus = own.join("cpuset.cpus");
        if cpus.exists() {
            std::fs::write(cpus, "\n").unwrap();
        } else {
            std::fs::remove_dir(own).unwrap();
        }
        let mut shell =
            Shell::enter(&Entry { tasks: vec![tasks.clone()], ..unified.clone() }, "read word; echo $word");
        if !lent.pids().unwrap().is_empty() {
            continue;
        }
        lent.remove(PATIENCE).unwrap();
        assert_eq!(shell.end(), Some(9), "{own:?}");
    }
}

/// While its cgroup is where processes are tracked, its places in the other hierarchies are what a stray goes home to.
#[test]
fn a_cgroup_is_removed_first_from_where_processes_are_tracked() {
    let cgroups = Cgroups::detect().unwrap();
    let order: Vec<_> = cgroups.tracker_first().map(|hierarchy| &hierarchy.mount).collect();
    assert_eq!(order[0], &cgroups.tracker().mount);
    let all: std::collections::BTreeSet<_> = order.iter().copied().collect();
    assert_eq!(all, cgroups.hierarchies().iter().map(|hierarchy| &hierarchy.mount).collect());
    assert_eq!(order.len(), all.len());
}

/// The same with the other container's freezer.
#[test]
fn a_process_that_another_container_has_frozen_can_be_killed() {
    let (fresh, lender) = (Fresh::new("borrower"), Fresh::new("lender"));
    let Some((Kind::V1, freezer)) = lender.0.home(Controller::Freezer) else { return };
    let below = freezer.join("a:freezer:");
    std::fs::create_dir(&below).unwrap();
    let mut shell = Shell::enter(&fresh.0.entry(), "read forever");
    std::fs::write(below.join("cgroup.procs"), shell.pid().to_string()).unwrap();
    let mut stranger =
        Shell::enter(&Entry { directory: None, tasks: vec![below.join("tasks")] }, "read word; echo $word");
    std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    fresh.0.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
    assert_eq!(read(&freezer.join("freezer.state")), "FROZEN", "it is another's");
    std::fs::write(freezer.join("freezer.state"), "THAWED").unwrap();
    stranger.say("lives");
    assert_eq!(stranger.line(), "lives");
}

/// A container may do that to the cgroups below its own.
#[test]
fn a_cgroup_with_a_threaded_one_below_it_can_be_killed() {
    let fresh = Fresh::new("threaded");
    let entry = fresh.0.entry();
    let Some(directory) = &entry.directory else { return };
    let below = directory.join("below");
    std::fs::create_dir(&below).unwrap();
    let mut shell = Shell::idle(&entry);
    std::fs::write(below.join("cgroup.type"), "threaded").unwrap();
    std::fs::write(below.join("cgroup.threads"), shell.pid().to_string()).unwrap();
    assert_eq!(fresh.0.pids().unwrap(), [shell.pid()]);
    fresh.0.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
}

#[test]
fn what_the_container_made_is_removed_too() {
    let fresh = Fresh::new("nested");
    let entry = fresh.0.entry();
    let directories = entry.tasks.iter().map(|file| file.parent().unwrap()).chain(entry.directory.as_deref());
    for directory in directories {
        std::fs::create_dir_all(directory.join("system.slice/a.service")).unwrap();
    }
    fresh.0.remove(PATIENCE).unwrap();
    assert!(Cgroups::detect().unwrap().open(fresh.0.path()).is_err());
}

/// The kubelet has a pod's cgroup in the hierarchies that it knows, and removes it there.
#[test]
fn in_a_hierarchy_of_nobody_the_pod_goes_with_its_last_container() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    for (is_ours_alone, is_left) in [(true, false), (false, true)] {
        let mut hierarchy = Hierarchy::open(Kind::V1, root.path().into(), vec![Controller::Freezer]).unwrap();
        hierarchy.is_ours_alone = is_ours_alone;
        let cgroups = Cgroups::of(vec![hierarchy]).unwrap();
        let containers = ["/kubepods/pod/one", "/kubepods/pod/two"].map(|path| {
            let path = CgroupPath::new(path).unwrap();
            cgroups.create(&path).unwrap()
        });
        containers[0].remove(PATIENCE).unwrap();
        assert!(at("kubepods/pod/two").exists());
        containers[1].remove(PATIENCE).unwrap();
        assert_eq!((at("kubepods/pod").exists(), at("kubepods").exists()), (is_left, true));
    }
}

#[test]
fn a_half_made_cgroup_can_be_opened_and_removed() {
    let fresh = Fresh::new("half");
    let entry = fresh.0.entry();
    if let Some(directory) = &entry.directory {
        std::fs::remove_dir(directory).unwrap();
    }
    let cgroups = Cgroups::detect().unwrap();
    if cgroups.version() != Version::V2 {
        cgroups.open(fresh.0.path()).unwrap().remove(PATIENCE).unwrap();
    }
    assert!(cgroups.open(fresh.0.path()).is_err());
}

#[test]
fn a_frozen_process_says_nothing_until_it_is_thawed() {
    let fresh = Fresh::new("freeze");
    let mut shell = Shell::enter(&fresh.0.entry(), "read word; echo \"heard $word\"");
    fresh.0.freeze(PATIENCE).unwrap();
    shell.say("hello");
    assert!(super::read(format!("/proc/{}/stat", shell.pid()).as_ref()).contains(") "));
    fresh.0.thaw(PATIENCE).unwrap();
    assert_eq!(shell.line(), "heard hello");
}

#[test]
fn a_frozen_cgroup_can_be_killed() {
    let fresh = Fresh::new("frozen");
    let mut shell = Shell::idle(&fresh.0.entry());
    fresh.0.freeze(PATIENCE).unwrap();
    fresh.0.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
}

#[test]
fn unknown_parents_are_made() {
    let fresh = Fresh::new("parents");
    let path = CgroupPath::new(&format!("{}/x/y.slice/z", fresh.0.path())).unwrap();
    assert_eq!(Cgroups::detect().unwrap().create(&path).unwrap().path(), &path);
}
