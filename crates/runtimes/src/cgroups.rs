//! Having a process in the cgroups that wharf has made for its container, whatever its runtime thinks of cgroups:
//! limits, statistics and the end of a container rely on them.

use std::collections::BTreeSet;
use std::path::Path;

use nix::errno::Errno;
use wharf_isolation::{CgroupPlan, Error, Stage as _};
use wharf_sys::error::Named as _;
use wharf_sys::fs::write_value;
use wharf_sys::process;
use wharf_types::HostPath;

use crate::process::Made;

pub(crate) const STAGE: &str = "entering the cgroup";
/// How often a command's children are looked for: one that starts new ones all the time has them where it is by then.
const ROUNDS: usize = 4;

/// Moves a process into each of a container's cgroups.
pub(crate) fn enter(process: &Made, cgroup: &CgroupPlan) -> Result<(), Error> {
    directories(cgroup).try_for_each(|directory| process.enter(directory))
}

/// Moves this process into each of a cgroup's directories.
pub(crate) fn enter_self(cgroup: &CgroupPlan) -> Result<(), Error> {
    directories(cgroup).try_for_each(|place| write_value(place.join("cgroup.procs"), "0")).stage(STAGE)
}

/// Kills every process in a cgroup that can be seen there. Of a failure nobody could be told.
pub(crate) fn kill(cgroup: &CgroupPlan) {
    let listed = |directory: &Path| processes(directory).unwrap_or_default();
    for directory in directories(cgroup) {
        let opened = listed(directory).into_iter().filter_map(|pid| Made::of(pid).ok().flatten());
        let opened: Vec<Made> = opened.collect();
        // Those that are still listed have the numbers by which they were opened.
        let there = listed(directory);
        opened.iter().filter(|process| there.contains(&process.pid)).for_each(Made::kill);
    }
}

/// Moves a command there and then into its own cgroup, which is below one of these, with everything that it has started
/// by now. What has left its parents in the meantime is not found: it ends with the container.
pub(crate) fn enter_leaf(command: &Made, cgroup: &CgroupPlan, leaf: &Path) -> Result<(), Error> {
    let enter = |process: &Made| directories(cgroup).chain([leaf]).try_for_each(|place| process.enter(place));
    enter(command)?;
    let mut known: Vec<Made> = Vec::new();
    for _ in 0..ROUNDS {
        // Those that it starts from here on begin where it is.
        let mut listed = BTreeSet::new();
        for directory in directories(cgroup) {
            listed.extend(processes(directory)?);
        }
        known.retain(Made::is_there);
        listed.retain(|pid| known.iter().chain([command]).all(|known| known.pid != *pid));
        let young = listed.into_iter().map(|pid| child_of(pid, command, &known));
        let young: Vec<Made> = young.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        young.iter().try_for_each(enter)?;
        known.extend(young);
    }
    Ok(())
}

fn directories(cgroup: &CgroupPlan) -> impl Iterator<Item = &Path> {
    let v1 = cgroup.entries.iter().filter_map(|entry| entry.as_path().parent());
    v1.chain(cgroup.directory.as_ref().map(HostPath::as_path))
}

/// The numbers of the processes in a cgroup. One of another PID namespace is 0 here.
fn processes(directory: &Path) -> Result<Vec<i32>, Error> {
    let file = directory.join("cgroup.procs");
    let listed = std::fs::read_to_string(&file).named("read", || file.display().to_string()).stage(STAGE)?;
    Ok(listed.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

/// The process of a number, if its parent is the command or one of these. What is read by a number is about the process
/// whose descriptor was opened before, as long as that is there afterwards.
fn child_of(pid: i32, command: &Made, known: &[Made]) -> Result<Option<Made>, Error> {
    let Some(process) = Made::of(pid)? else { return Ok(None) };
    let Some(parent) = parent(pid)? else { return Ok(None) };
    let mut parents = known.iter().chain([command]).filter(|known| known.pid == parent);
    Ok(Some(process).filter(|process| parents.any(Made::is_there) && process.is_there()))
}

/// The parent of a process. `None` if the process is gone.
fn parent(pid: i32) -> Result<Option<i32>, Error> {
    const PARENT: usize = 4;
    match process::stat_field(pid, PARENT) {
        Ok(parent) => Ok(parent.and_then(|parent| parent.parse().ok())),
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(error).stage(STAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A child that waits for the end of its input.
    #[expect(clippy::disallowed_methods, reason = "a test's own process")]
    fn waits() -> (Child, Made) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let made = Made::of(child.id().cast_signed()).unwrap().unwrap();
        (child, made)
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    fn own() -> Made {
        Made::of(std::process::id().cast_signed()).unwrap().unwrap()
    }

    /// Cgroups of a plan and a leaf, which list these processes.
    struct Places {
        directory: tempfile::TempDir,
        plan: CgroupPlan,
    }

    impl Places {
        fn new(listed: &[i32]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let lines: String = listed.iter().map(|pid| format!("{pid}\n")).collect();
            for name in ["memory", "unified", "leaf"] {
                let place = directory.path().join(name);
                std::fs::create_dir(&place).unwrap();
                std::fs::write(place.join("cgroup.procs"), if name == "leaf" { "" } else { &lines }).unwrap();
            }
            let at = |name: &str| HostPath::new(directory.path().join(name).to_str().unwrap()).unwrap();
            let plan = CgroupPlan {
                directory: Some(at("unified")),
                entries: vec![at("memory/tasks")],
                kill_directory: at("unified"),
                oom_file: None,
            };
            Self { directory, plan }
        }

        fn leaf(&self) -> std::path::PathBuf {
            self.directory.path().join("leaf")
        }

        /// What was written to one: a file keeps only the last.
        fn moved(&self, name: &str) -> String {
            std::fs::read_to_string(self.directory.path().join(name).join("cgroup.procs")).unwrap()
        }
    }

    #[test]
    fn a_process_has_a_parent_and_one_that_is_gone_has_none() {
        let own = own().pid;
        assert_eq!(parent(own).unwrap(), Some(std::os::unix::process::parent_id().cast_signed()));
        assert_eq!(parent(i32::MAX).unwrap(), None);
    }

    #[test]
    fn each_cgroup_is_entered_by_the_whole_process() {
        let places = Places::new(&[]);
        let process = own();
        enter(&process, &places.plan).unwrap();
        for name in ["memory", "unified"] {
            assert_eq!(places.moved(name), process.pid.to_string());
        }
        let gone = HostPath::new("/no/such/cgroup").unwrap();
        assert!(enter(&process, &CgroupPlan { directory: Some(gone), ..places.plan.clone() }).is_err());
    }

    #[test]
    fn a_number_that_may_be_anothers_moves_nobody() {
        let (child, process) = waits();
        end(child);
        let places = Places::new(&[]);
        enter_leaf(&process, &places.plan, &places.leaf()).unwrap();
        for name in ["memory", "unified", "leaf"] {
            assert_eq!(places.moved(name), "", "{name}");
        }
    }

    #[test]
    fn what_a_command_has_started_is_its_child_as_long_as_both_are_there() {
        let ((child, started), command) = (waits(), own());
        let (other, stranger) = waits();
        let number = started.pid;
        assert_eq!(child_of(number, &command, &[]).unwrap().map(|process| process.pid), Some(number));
        assert!(child_of(number, &stranger, &[]).unwrap().is_none(), "nothing of its own");
        assert!(child_of(number, &stranger, &[own()]).unwrap().is_some(), "a grandchild");
        end(child);
        assert!(child_of(number, &command, &[]).unwrap().is_none());
        end(other);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert!(processes(directory.path()).is_err(), "no list");
        std::fs::create_dir(directory.path().join("cgroup.procs")).unwrap();
        assert!(processes(directory.path()).is_err(), "no file");
        let places = Places::new(&[0, 71]);
        assert_eq!(processes(places.plan.directory.as_ref().unwrap().as_path()).unwrap(), [71]);
    }
}
