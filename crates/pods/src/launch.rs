//! Starting a supervisor: from a sealed memory file, so that no container can overwrite what supervises it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use wharf_sys::fs::sealed_memfd;
use wharf_sys::socket;

use crate::error::{Error, Stage};

/// The supervisor's program.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Copies the program at a path into memory and seals it.
    ///
    /// # Errors
    /// The program cannot be read.
    pub(crate) fn load(path: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(path)?;
        sealed_memfd("wharf-shim", &bytes).map(Self).map_err(|error| std::io::Error::from(error.errno))
    }

    /// Starts it for a pod's directory, and returns its connection.
    pub(crate) fn start(&self, directory: &Path) -> Result<(Process, OwnedFd), Error> {
        const STAGE: &str = "starting the pod's supervisor";
        let (ours, theirs) = socket::pair().stage(STAGE)?;
        let log = File::create(directory.join("shim.log")).stage(STAGE)?;
        let path = format!("/proc/self/fd/{}", self.0.as_fd().as_raw_fd());
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a supervisor")]
        let mut child = Command::new(path)
            .arg0("wharf-shim")
            .arg(directory)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .stage(STAGE)?;
        let pidfd = wharf_sys::process::open_pidfd(child.id().cast_signed()).stage(STAGE);
        if pidfd.is_err() {
            child.kill().and_then(|()| child.wait()).stage(STAGE)?;
        }
        Ok((Process { pidfd: pidfd?, child: Some(child) }, ours))
    }
}

/// A supervisor's process.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    /// One that this daemon started has to be reaped by it.
    child: Option<Child>,
}

impl Process {
    /// The supervisor that an earlier daemon started.
    pub(crate) fn adopt(pid: i32) -> Result<Self, Error> {
        let pidfd = wharf_sys::process::open_pidfd(pid).stage("finding the pod's supervisor")?;
        Ok(Self { pidfd, child: None })
    }

    /// Kills it; one that is gone is as good.
    pub(crate) fn kill(&self) {
        if let Err(error) = wharf_sys::process::signal(self.pidfd.as_fd(), 9) {
            tracing::debug!(%error, "a supervisor was gone before it was killed");
        }
    }

    /// Kills it if it is still there, and reaps it.
    pub(crate) fn end(self) -> Result<(), Error> {
        self.kill();
        match self.child {
            Some(mut child) => child.wait().map(drop).stage("ending the supervisor"),
            None => Ok(()),
        }
    }
}
