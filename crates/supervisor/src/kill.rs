//! Killing every process in a cgroup, whether or not the kernel has `cgroup.kill`.
//!
//! Without it the list is read again and again, because a process may fork while others are killed; frozen, it cannot.
//! A pid is never signalled by its number: it is opened first, and signalled if the list still has it. A container may
//! nest cgroups deeper than any path, so they are listed by descriptor.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use wharf_isolation::CgroupPlan;
use wharf_sys::Error;
use wharf_sys::deep;
use wharf_sys::fs::{proc_path, write_value};
use wharf_sys::process::{self, open_pidfd};
use wharf_types::HostPath;

use crate::diagnostics::{self, OrWarn as _};

/// How often the list is read again: processes that fork while they are being killed appear in a later reading.
const ROUNDS: usize = 64;
/// How often v1's freezer is asked whether all processes are frozen; each query makes it continue.
const FREEZER_ROUNDS: usize = 64;
/// How many cgroups of a container are thawed at a time.
const THAWED_LIMIT: usize = 256;
/// How many processes are opened before the list is read again.
const OPEN_LIMIT: usize = 256;

/// Sends SIGKILL to every process in a container's cgroups.
pub(crate) fn kill_container(plan: &CgroupPlan) {
    let freezers = freezers(plan);
    // The outermost has all others in it.
    let reached = freezers.first().and_then(|state| state.parent());
    // One that has no profile can make cgroups, whether or not it has limits.
    let reached = reached.filter(|cgroup| cgroup.metadata().is_ok_and(|metadata| metadata.nlink() > 2));
    let thaw = || reached.into_iter().for_each(thaw_below);
    thaw();
    kill_all(plan.kill_directory.as_path(), &freezers);
    thaw();
}

/// Sends SIGKILL to every process in a cgroup directory and below it, whose processes these freezers of v1 may hold.
fn kill_all(directory: &Path, freezers: &[PathBuf]) {
    if let Err(error) = write_value(directory.join("cgroup.kill"), "1") {
        // The file is missing on v1, and on v2 before Linux 5.14.
        if !is_gone(error.errno) {
            diagnostics::warn(error);
        }
        kill_listed(&|| pids(directory), || freeze(directory, freezers), || thaw(directory, freezers));
    }
    // Somebody may have frozen them, and v1's freezer holds back even SIGKILL.
    thaw(directory, freezers);
}

/// The same for a command's own cgroup in a container's. If the container has frozen itself, which it can if it is
/// enclosed, the command is frozen with it, or has stopped on its way in, and nothing but a thaw lets it die. One that
/// is frozen from outside of what the container can reach stays so, and its command dies when it is thawed.
pub(crate) fn kill_command(leaf: &Path, container: Option<&CgroupPlan>) {
    let reached = container.filter(|plan| is_enclosed(plan)).into_iter().flat_map(entered);
    let reached: Vec<&Path> = reached.filter(|cgroup| cgroup.join("freezer.state").exists()).collect();
    let thaw = || {
        reached.iter().for_each(|cgroup| thaw_below(cgroup));
        write_if_there(&leaf.join("freezer.state"), "THAWED");
    };
    thaw();
    kill_all(leaf, &[]);
    // It may have been frozen again before it was to die.
    thaw();
}

/// Whether a container's processes are in a cgroup below its own, to which it may write.
fn is_enclosed(plan: &CgroupPlan) -> bool {
    let mut entered = entered(plan).chain(plan.directory.as_ref().map(HostPath::as_path));
    entered.any(|entered| entered.parent() == Some(plan.kill_directory.as_path()))
}

/// The cgroups of v1 hierarchies that a container's processes enter.
fn entered(plan: &CgroupPlan) -> impl Iterator<Item = &Path> {
    plan.entries.iter().filter_map(|entry| entry.as_path().parent())
}

/// The states of v1's freezers that may hold the processes, the outermost first: of the cgroups that they entered and,
/// if these are inside that which is killed, of those around them in each hierarchy.
fn freezers(plan: &CgroupPlan) -> Vec<PathBuf> {
    let is_enclosed = is_enclosed(plan);
    let around = entered(plan).filter_map(Path::parent).filter(|_| is_enclosed);
    let states = around.chain(entered(plan)).map(|cgroup| cgroup.join("freezer.state"));
    states.filter(|state| state.exists()).collect()
}

/// Kills the listed processes until none is listed. While they are frozen none of them can fork, however fast it is.
fn kill_listed(list: &dyn Fn() -> Vec<i32>, freeze: impl Fn(), thaw: impl Fn()) {
    for _ in 0..ROUNDS {
        freeze();
        let pids = list();
        pids.chunks(OPEN_LIMIT).for_each(|pids| kill_if_listed(pids, list));
        thaw();
        if pids.is_empty() {
            return;
        }
    }
    diagnostics::warn(format_args!("processes are still listed after {ROUNDS} rounds of SIGKILL"));
}

/// Kills processes that are still listed after their descriptors were opened: before that, a pid may have been reused.
fn kill_if_listed(pids: &[i32], list: &dyn Fn() -> Vec<i32>) {
    let mut opened = Vec::new();
    for &pid in pids {
        match open_pidfd(pid) {
            Ok(process) => opened.push((pid, process)),
            // A process that is gone by now needs no killing.
            Err(error) if error.errno == Errno::ESRCH => {}
            Err(error) => diagnostics::warn(format_args!("killing process {pid}: {error}")),
        }
    }
    let listed = BTreeSet::from_iter(list());
    let listed = opened.iter().filter(|(pid, _)| listed.contains(pid));
    listed.for_each(|(_, process)| kill_process(process.as_fd()));
}

/// Kills a process; one that is gone needs that no more.
pub(crate) fn kill_process(process: BorrowedFd<'_>) {
    match process::kill(process) {
        Err(error) if error.errno != Errno::ESRCH => diagnostics::warn(error),
        _ => {}
    }
}

/// The processes in a cgroup and in all below it, such as those of execs; none if the cgroup is gone.
fn pids(directory: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    let mut enter = |at: BorrowedFd<'_>| {
        for line in read(&proc_path(at).join("cgroup.procs")).lines() {
            match line.parse() {
                // A process of another PID namespace has the number 0 here.
                Ok(pid) if pid > 1 => pids.push(pid),
                _ => diagnostics::warn(format_args!("{}: {line:?} cannot be killed", directory.display())),
            }
        }
        Ok::<_, wharf_sys::Error>(())
    };
    let walked = deep::walk(directory, &mut enter, &mut |_, _| Ok(()));
    walked.or_warn(format_args!("listing the processes in {}", directory.display()));
    pids
}

fn freeze(directory: &Path, freezers: &[PathBuf]) {
    for state in freezers {
        for _ in 0..FREEZER_ROUNDS {
            // If the cgroup is gone, the state is empty.
            if !is_written(state, "FROZEN") || matches!(read(state).trim_end(), "FROZEN" | "") {
                break;
            }
            std::thread::yield_now();
        }
    }
    // Only v2 has this file, and there SIGKILL ends frozen processes, too.
    write_if_there(&directory.join("cgroup.freeze"), "1");
}

/// Thaws a cgroup; one that is gone needs no thawing.
fn thaw(directory: &Path, freezers: &[PathBuf]) {
    for state in freezers {
        write_if_there(state, "THAWED");
    }
    write_if_there(&directory.join("cgroup.freeze"), "0");
}

/// Thaws a cgroup and those below it, in v1's freezer: a container that may make some may also have frozen them.
/// It may have made so many that others would wait: the rest is for the daemon, which kills what has not ended in time.
fn thaw_below(cgroup: &Path) {
    let mut left = THAWED_LIMIT;
    let mut enter = |at: BorrowedFd<'_>| {
        write_if_there(&proc_path(at).join("freezer.state"), "THAWED");
        left = left.checked_sub(1).ok_or_else(|| Error::new("walk", "many cgroups", Errno::E2BIG))?;
        Ok::<_, Error>(())
    };
    match deep::walk(cgroup, &mut enter, &mut |_, _| Ok(())) {
        Err(error) if error.errno == Errno::E2BIG => {}
        walked => walked.or_warn(format_args!("thawing what is below {}", cgroup.display())),
    }
}

/// The content of a file of a cgroup; empty if the cgroup is gone. It is also empty if the file cannot be read, which
/// is logged.
fn read(file: &Path) -> String {
    match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            if !gone(&error) {
                diagnostics::warn(format_args!("reading {}: {error}", file.display()));
            }
            String::new()
        }
    }
}

/// Writes to a file of a cgroup if both exist.
fn write_if_there(file: &Path, value: &str) {
    is_written(file, value);
}

/// Whether the file exists and takes the value.
fn is_written(file: &Path, value: &str) -> bool {
    let written = write_value(file, value);
    match &written {
        Err(error) if !is_gone(error.errno) => diagnostics::warn(error),
        _ => {}
    }
    written.is_ok()
}

/// Whether an error means that the cgroup was removed, before or after its file was opened.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENODEV)
}

fn gone(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw).is_some_and(is_gone)
}

/// The `oom_kill` counter in a file of the memory controller; 0 if there is none.
pub(crate) fn oom_kills(file: &Path) -> u64 {
    read(file)
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Stdio};

    /// A child that waits to be killed, and ends with its standard input at the latest.
    #[expect(clippy::disallowed_methods, reason = "a test's own process")]
    fn waits() -> (Child, i32) {
        let child = std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        (child, pid)
    }

    /// Makes files in a directory, and the directories above them; returns their paths.
    fn files<const N: usize>(top: &Path, names: [&str; N]) -> [PathBuf; N] {
        names.map(|name| {
            let file = top.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "").unwrap();
            file
        })
    }

    fn plan<const N: usize>(
        top: &Path,
        killed: &str,
        directory: Option<&str>,
        entries: [&str; N],
    ) -> CgroupPlan {
        let path = |name: &str| HostPath::new(top.join(name).to_str().unwrap()).unwrap();
        CgroupPlan {
            directory: directory.map(path),
            entries: entries.map(path).into(),
            kill_directory: path(killed),
            oom_file: None,
        }
    }

    #[test]
    fn a_freezer_may_be_around_what_was_entered_in_another_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        let [pod, whole, inside, plain] = files(
            dir.path(),
            [
                "freezer/pod/freezer.state",
                "freezer/pod/c/freezer.state",
                "freezer/pod/c/container/freezer.state",
                "freezer/pod/d/freezer.state",
            ],
        );
        let unified = |container| {
            freezers(&plan(dir.path(), "unified/pod/c", Some(container), ["freezer/pod/c/container/tasks"]))
        };
        assert_eq!(unified("unified/pod/c/container"), [whole.clone(), inside.clone()]);
        let entries = ["cpu/pod/c/container/tasks", "freezer/pod/c/container/tasks"];
        assert_eq!(freezers(&plan(dir.path(), "freezer/pod/c", None, entries)), [whole, inside]);
        let alone =
            freezers(&plan(dir.path(), "unified/pod/d", Some("unified/pod/d"), ["freezer/pod/d/tasks"]));
        assert!(alone == [plain] && pod.exists(), "the pod's own is somebody else's");
    }

    #[test]
    fn what_a_container_froze_below_its_cgroup_is_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["c/freezer.state", "c/container/freezer.state", "c/container/a/b/freezer.state"];
        let [_, inside, below] = files(dir.path(), names);
        kill_container(&plan(dir.path(), "c", None, ["c/container/tasks"]));
        let texts = [inside, below].map(|state| std::fs::read_to_string(state).unwrap());
        assert_eq!(texts, ["THAWED"; 2]);
    }

    #[test]
    fn what_is_listed_is_killed() {
        use std::os::unix::process::ExitStatusExt;
        use wharf_types::signal::SIGKILL;
        let (mut child, pid) = waits();
        let times = std::cell::Cell::new(0);
        let frozen = std::cell::Cell::new(0);
        let list = || {
            assert_eq!(frozen.get(), 1, "what is not frozen forks faster than it is killed");
            times.set(times.get() + 1);
            if times.get() > 2 { vec![] } else { vec![pid] }
        };
        kill_listed(&list, || frozen.set(frozen.get() + 1), || frozen.set(frozen.get() - 1));
        assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL.into()));
        assert_eq!(frozen.get(), 0);
    }

    #[test]
    fn what_is_no_process_is_left_alone_and_what_is_gone_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "1\n70\nnone\n").unwrap();
        std::fs::write(dir.path().join("below/cgroup.procs"), "0\n71\n").unwrap();
        assert_eq!(pids(dir.path()), [70, 71]);
        assert!(pids(&dir.path().join("gone")).is_empty());
    }

    /// A container that manages its own cgroups hides nothing in one that no path names.
    #[test]
    fn processes_are_found_however_deep_their_cgroup_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "70\n").unwrap();
        let name = "d".repeat(250);
        let mut at = deep::open(None, dir.path()).unwrap().unwrap();
        for level in 71..111 {
            nix::sys::stat::mkdirat(&at, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
            at = deep::open(Some(at.as_fd()), Path::new(&name)).unwrap().unwrap();
            std::fs::write(proc_path(at.as_fd()).join("cgroup.procs"), format!("{level}\n")).unwrap();
        }
        assert_eq!(pids(dir.path()), Vec::from_iter(70..111));
    }

    /// A container may have as many cgroups as it likes, and each list goes through all of them.
    #[test]
    fn many_processes_are_killed_by_few_lists() {
        let mut children = [waits(), waits(), waits()];
        let pids = children.each_ref().map(|(_, pid)| *pid);
        let times = std::cell::Cell::new(0);
        kill_if_listed(&pids, &|| {
            times.set(times.get() + 1);
            pids.to_vec()
        });
        assert_eq!(times.get(), 1);
        children.iter_mut().for_each(|(child, _)| assert!(!child.wait().unwrap().success()));
    }

    #[test]
    fn a_number_that_is_anothers_by_now_is_left_alone() {
        let (mut child, pid) = waits();
        kill_if_listed(&[pid], &Vec::new);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
