//! Setting `oom_score_adj` for the processes of a cgroup. The score belongs to a process, not to a cgroup: it is
//! written for each process, and children inherit it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open, open_below, read_bounded, write_fd};

use crate::error::Error;
use crate::group::Cgroup;

/// How often the cgroup is read again, to find children whose parent had the old score when it forked.
const LOOKS_MAX: usize = 16;
const FILE: &str = "oom_score_adj";
/// A sign, four digits and the end of a line, with room.
const SCORE_LIMIT_BYTES: usize = 16;

/// The scores of processes as they were before a change.
#[derive(Debug, Default)]
pub struct OldScores(Vec<(OwnedFd, String)>);

impl OldScores {
    /// Puts them back; a process that is gone needs none.
    pub fn restore(&self) {
        for (process, score) in self.0.iter().rev() {
            if let Err(error) = write(process, score) {
                tracing::warn!(%error, score, "old oom_score_adj not restored");
            }
        }
    }
}

impl Cgroup {
    /// Gives every process in the cgroup and below it this score (`oom_score_adj`, -1000 to 1000), or none of them;
    /// returns the scores they had.
    ///
    /// # Errors
    /// [`Error::Parse`] if the kernel lists a process that this process cannot see, [`Error::OomScore`] if the kernel
    /// refuses the score. A score below the inherited one needs `CAP_SYS_RESOURCE`; without it the old score stays, as
    /// it does when a container starts.
    pub fn set_oom_score(&self, score: i32) -> Result<OldScores, Error> {
        let mut old = OldScores::default();
        let scored = self.score_all(&score.to_string(), &mut old);
        match scored {
            Ok(()) => Ok(old),
            Err(error) => {
                old.restore();
                Err(error)
            }
        }
    }

    fn score_all(&self, score: &str, old: &mut OldScores) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for _look in 0..LOOKS_MAX {
            let new: Vec<i32> = self.pids()?.into_iter().filter(|pid| !seen.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            let mut pinned = Vec::new();
            for &pid in &new {
                let process = pin(pid).map_err(|source| Error::OomScore { pid, source })?;
                pinned.extend(process.map(|process| (pid, process)));
            }
            // Between the reading and the pinning, a pid may have been given to another process. Reading the cgroup
            // again shows whether the pinned processes belong to it.
            let members = self.pids()?;
            for (pid, process) in pinned.into_iter().filter(|(pid, _)| members.contains(pid)) {
                let refused = |source| Error::OomScore { pid, source };
                let Some(before) = read(&process).map_err(refused)? else { continue };
                write(&process, score).map_err(refused)?;
                old.0.push((process, before));
            }
            seen.extend(new);
        }
        Ok(())
    }
}

/// Opens the directory of a process in `/proc`, which refers to that process only, even after its pid is reused. `None`
/// if it is gone.
fn pin(pid: i32) -> wharf_sys::Result<Option<OwnedFd>> {
    match open(format!("/proc/{pid}"), OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESRCH) => Ok(None),
        opened => opened.map(Some),
    }
}

/// The score of a process; `None` if it is gone.
fn read(process: &OwnedFd) -> wharf_sys::Result<Option<String>> {
    let read = open_below(process.as_fd(), FILE, OFlag::O_RDONLY, Resolve::BeneathNoLinks)
        .and_then(|file| read_bounded(&file, SCORE_LIMIT_BYTES));
    match read {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_end().to_owned())),
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(process: &OwnedFd, score: &str) -> wharf_sys::Result<()> {
    let written = open_below(process.as_fd(), FILE, OFlag::O_WRONLY, Resolve::BeneathNoLinks)
        .and_then(|file| write_fd(file.as_fd(), score));
    match written {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESRCH | Errno::EACCES) => Ok(()),
        other => other,
    }
}
