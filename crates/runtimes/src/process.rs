//! A process that a runtime has made and left behind, or one that such a process has started.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use wharf_isolation::bundle::Bundle;
use wharf_isolation::{Error, Stage as _};
use wharf_sys::fs::write_value;
use wharf_sys::process;

/// The file in which the runtime writes the number of the process, in the bundle.
pub(crate) const PID_FILE: &str = "pid-file";
const STAGE: &str = "finding the process that the runtime has made";

/// The number of a process that the runtime has written to a file.
pub(crate) fn number(bundle: &Bundle, file: &str) -> Result<i32, Error> {
    let text = bundle.read(file, 64);
    let none = |_text| wharf_sys::Error::new("read", format!("{file}: {text:?}"), Errno::ESRCH);
    text.trim().parse().map_err(none).stage(STAGE)
}

/// The process. Those that the runtime has made are the supervisor's children by now, so their numbers stay their own
/// until the supervisor knows of them. Others may be reaped at any time, and their numbers be given away.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: i32,
    pub(crate) process: OwnedFd,
}

impl Made {
    /// The process of a number; `None` if there is none.
    pub(crate) fn of(pid: i32) -> Result<Option<Self>, Error> {
        match process::open_pidfd(pid) {
            Ok(process) => Ok(Some(Self { pid, process })),
            Err(error) if error.errno == Errno::ESRCH => Ok(None),
            Err(error) => Err(error).stage(STAGE),
        }
    }

    pub(crate) fn find(bundle: &Bundle) -> Result<Self, Error> {
        let pid = number(bundle, PID_FILE)?;
        let none = || wharf_sys::Error::new("open", format!("process {pid}"), Errno::ESRCH);
        Self::of(pid)?.ok_or_else(none).stage(STAGE)
    }

    /// Kills it. One that is gone needs that no more, and of any other failure nobody could be told: the caller has one
    /// to report already.
    pub(crate) fn kill(&self) {
        let _may_be_gone = process::kill(self.process.as_fd());
    }

    /// Whether it has not been reaped, so that its number is no other's.
    pub(crate) fn is_there(&self) -> bool {
        process::signal(self.process.as_fd(), 0).is_ok()
    }

    /// Moves it with all its threads into a cgroup; one that is gone needs none. The kernel gives a number away only
    /// after all others, so it cannot be another's a moment after it was seen.
    pub(crate) fn enter(&self, directory: &Path) -> Result<(), Error> {
        if !self.is_there() {
            return Ok(());
        }
        match write_value(directory.join("cgroup.procs"), &self.pid.to_string()) {
            Err(error) if error.errno == Errno::ESRCH => Ok(()),
            moved => moved.stage(crate::cgroups::STAGE),
        }
    }

    /// Sets its `oom_score_adj`, if that is not what it inherits; one that is gone needs none.
    pub(crate) fn set_oom_score(&self, score: Option<i32>) -> Result<(), Error> {
        let Some(score) = score else { return Ok(()) };
        match write_value(format!("/proc/{}/oom_score_adj", self.pid), &score.to_string()) {
            Err(error) if !matches!(error.errno, Errno::ENOENT | Errno::ESRCH | Errno::EACCES) => {
                Err(error).stage("setting oom_score_adj")
            }
            _ => Ok(()),
        }
    }
}
