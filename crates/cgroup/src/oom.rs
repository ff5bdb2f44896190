//! Setting `oom_score_adj` for the processes of a cgroup. The score belongs to a process, not to a cgroup: it is
//! written for each process, and children inherit it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open, open_below, write_fd};

use crate::error::Error;
use crate::group::Cgroup;

/// How often the cgroup is read again, to find children whose parent had the old score when it forked.
const LOOKS_MAX: usize = 16;

impl Cgroup {
    /// Gives every process in the cgroup and below it this score (`oom_score_adj`, -1000 to 1000).
    ///
    /// # Errors
    /// [`Error::Parse`] if the kernel lists a process that this process cannot see, [`Error::OomScore`] if the kernel
    /// refuses the score. A score below the inherited one needs `CAP_SYS_RESOURCE`; without it the old score stays, as
    /// it does when a container starts.
    pub fn set_oom_score(&self, score: i32) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for _look in 0..LOOKS_MAX {
            let new: Vec<i32> = self.pids()?.into_iter().filter(|pid| !seen.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            let pinned: Vec<(i32, OwnedFd)> = new.iter().filter_map(|&pid| Some((pid, pin(pid)?))).collect();
            // Between the reading and the pinning, a pid may have been given to another process. Reading the cgroup
            // again shows whether the pinned processes belong to it.
            let members = self.pids()?;
            for (pid, process) in pinned.iter().filter(|(pid, _)| members.contains(pid)) {
                write(process, score).map_err(|source| Error::OomScore { pid: *pid, source })?;
            }
            seen.extend(new);
        }
        Ok(())
    }
}

/// Opens the directory of a process in `/proc`, which refers to that process only, even after its pid is reused.
fn pin(pid: i32) -> Option<OwnedFd> {
    open(format!("/proc/{pid}"), OFlag::O_PATH | OFlag::O_DIRECTORY).ok()
}

fn write(process: &OwnedFd, score: i32) -> wharf_sys::Result<()> {
    let written = open_below(process.as_fd(), "oom_score_adj", OFlag::O_WRONLY, Resolve::BeneathNoLinks)
        .and_then(|file| write_fd(file.as_fd(), &score.to_string()));
    match written {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESRCH | Errno::EACCES) => Ok(()),
        other => other,
    }
}
