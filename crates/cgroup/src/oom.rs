//! The preference of the out-of-memory killer for the processes of a cgroup. It is of a process, not of a cgroup, so each is
//! written, and each hands it on to its children.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open, open_below, write_fd};

use crate::error::Error;
use crate::group::Cgroup;

/// How often it is looked for children that came meanwhile of a parent whose turn had not come.
const LOOKS_MAX: usize = 16;

impl Cgroup {
    /// Gives every process in the cgroup and below this score (`oom_score_adj`, -1000 to 1000).
    ///
    /// # Errors
    /// [`Error::Parse`] if the kernel names a process that this one cannot see, [`Error::OomScore`] for a score that it
    /// refuses. One below the inherited one needs `CAP_SYS_RESOURCE`; without it the old one stays, as at a start.
    pub fn set_oom_score(&self, score: i32) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for _look in 0..LOOKS_MAX {
            let new: Vec<i32> = self.pids()?.into_iter().filter(|pid| !seen.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            let pinned: Vec<(i32, OwnedFd)> = new.iter().filter_map(|&pid| Some((pid, pin(pid)?))).collect();
            // A number may have been given to another process between the reading and the pinning: a second look at the
            // cgroup says whose the pinned ones are.
            let members = self.pids()?;
            for (pid, process) in pinned.iter().filter(|(pid, _)| members.contains(pid)) {
                write(process, score).map_err(|source| Error::OomScore { pid: *pid, source })?;
            }
            seen.extend(new);
        }
        Ok(())
    }
}

/// The directory of a process in `/proc`: it is of nobody any more once the process is gone.
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
