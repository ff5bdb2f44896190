//! The process that a runtime has made and left behind.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use wharf_isolation::bundle::Bundle;
use wharf_isolation::{Error, Stage as _};
use wharf_sys::fs::write_value;
use wharf_sys::process;

/// The file in which the runtime writes the number of the process, in the bundle.
pub(crate) const PID_FILE: &str = "pid-file";
const STAGE: &str = "finding the process that the runtime has made";

/// The process. It is the supervisor's child by now, so its number stays its own until the supervisor knows of it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: i32,
    pub(crate) process: OwnedFd,
}

impl Made {
    pub(crate) fn find(bundle: &Bundle) -> Result<Self, Error> {
        let text = bundle.read(PID_FILE, 64);
        let none = |_text| wharf_sys::Error::new("read", format!("{PID_FILE}: {text:?}"), Errno::ESRCH);
        let pid = text.trim().parse().map_err(none).stage(STAGE)?;
        Ok(Self { pid, process: process::open_pidfd(pid).stage(STAGE)? })
    }

    /// Kills it; one that is gone needs that no more.
    pub(crate) fn kill(&self) {
        process::signal(self.process.as_fd(), 9).unwrap_or_default();
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
