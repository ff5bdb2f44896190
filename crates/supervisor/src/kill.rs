//! Killing every process of a cgroup, whether the kernel has `cgroup.kill` or not.

use std::path::Path;

use wharf_sys::fs::write_value;
use wharf_sys::process::{open_pidfd, signal};

/// How often the list is read again: processes that fork while they are killed appear in a later one.
const ROUNDS: usize = 64;

/// Sends SIGKILL to every process in a cgroup directory and below it.
pub(crate) fn kill_all(directory: &Path) {
    if write_value(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for _ in 0..ROUNDS {
        let pids = pids(directory);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // One that is gone by now is what was wanted.
            drop(open_pidfd(pid).and_then(|process| signal(std::os::fd::AsFd::as_fd(&process), 9)));
        }
    }
}

/// The processes of a cgroup and of all below it, such as those of execs; none if it is gone.
fn pids(directory: &Path) -> Vec<i32> {
    let list = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> =
        list.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 1).collect();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(self::pids(&entry.path()));
        }
    }
    pids
}

/// Lets processes go on that somebody stopped by v1's freezer, in whose directories even SIGKILL waits.
pub(crate) fn thaw<'a>(directories: impl Iterator<Item = &'a Path>) {
    for directory in directories {
        // Only the freezer's directory has the file.
        drop(write_value(directory.join("freezer.state"), "THAWED"));
    }
}

/// The value of the `oom_kill` counter in a file of the memory controller; 0 if there is none.
pub(crate) fn oom_kills(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|n| n.trim().parse().ok())
        .unwrap_or(0)
}
