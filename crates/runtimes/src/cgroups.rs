//! Having a process in the cgroups that wharf has made for its container, whatever its runtime thinks of cgroups:
//! limits, statistics and the end of a container rely on them.

use std::collections::BTreeSet;
use std::path::Path;

use nix::errno::Errno;
use wharf_isolation::{CgroupPlan, Error, Stage as _};
use wharf_sys::fs::write_value;
use wharf_types::HostPath;

const STAGE: &str = "entering the cgroup";
/// How often a command's children are looked for: one that starts new ones all the time has them where it is by then.
const ROUNDS: usize = 4;

/// Moves a process into each of a container's cgroups.
pub(crate) fn enter(pid: i32, cgroup: &CgroupPlan) -> Result<(), Error> {
    directories(cgroup).try_for_each(|directory| enter_one(pid, directory))
}

/// Moves a command there and then into its own cgroup, which is below one of these, with everything that it has started
/// by now. What has left its parents in the meantime is not found: it ends with the container.
pub(crate) fn enter_leaf(pid: i32, cgroup: &CgroupPlan, leaf: &Path) -> Result<(), Error> {
    let (mut young, mut known) = (vec![pid], BTreeSet::new());
    for _ in 0..ROUNDS {
        for pid in young {
            directories(cgroup).chain([leaf]).try_for_each(|directory| enter_one(pid, directory))?;
            known.insert(pid);
        }
        // Those that it starts from here on begin where it is.
        let listed: BTreeSet<i32> = directories(cgroup).flat_map(processes).collect();
        let is_young = |pid: &i32| parent(*pid).is_some_and(|parent| known.contains(&parent));
        young = listed.difference(&known).copied().filter(is_young).collect();
    }
    Ok(())
}

fn directories(cgroup: &CgroupPlan) -> impl Iterator<Item = &Path> {
    let v1 = cgroup.entries.iter().filter_map(|entry| entry.as_path().parent());
    v1.chain(cgroup.directory.as_ref().map(HostPath::as_path))
}

fn processes(directory: &Path) -> Vec<i32> {
    let listed = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The parent of a process, by the second field after its name, which may contain anything: proc_pid_stat(5).
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Moves a process with all its threads; one that is gone needs no cgroup.
fn enter_one(pid: i32, directory: &Path) -> Result<(), Error> {
    match write_value(directory.join("cgroup.procs"), &pid.to_string()) {
        Err(error) if error.errno == Errno::ESRCH => Ok(()),
        moved => moved.stage(STAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_parent_and_one_that_is_gone_has_none() {
        let own = std::process::id().cast_signed();
        assert_eq!(parent(own), Some(std::os::unix::process::parent_id().cast_signed()));
        assert_eq!(parent(i32::MAX), None);
    }

    #[test]
    fn each_cgroup_is_entered_by_the_whole_process() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| HostPath::new(directory.path().join(name).to_str().unwrap()).unwrap();
        for name in ["memory", "unified"] {
            std::fs::create_dir(at(name).as_path()).unwrap();
            std::fs::write(at(name).as_path().join("cgroup.procs"), "").unwrap();
        }
        let cgroup = CgroupPlan {
            directory: Some(at("unified")),
            entries: vec![at("memory/tasks")],
            kill_directory: at("unified"),
            oom_file: None,
        };
        enter(7, &cgroup).unwrap();
        for name in ["memory", "unified"] {
            assert_eq!(processes(at(name).as_path()), [7], "{name}");
        }
        assert!(enter(7, &CgroupPlan { directory: Some(at("gone")), ..cgroup }).is_err());
    }
}
