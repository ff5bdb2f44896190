//! Starting a supervisor: from a sealed memory file, so that no container can overwrite what supervises it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use wharf_sys::fs::sealed_memfd;
use wharf_sys::launch::Launch;
use wharf_sys::process::{self, Reap};
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

    /// Starts it for a pod's directory, in a cgroup (v2) if there is one, and returns its connection.
    pub(crate) fn start(
        &self,
        directory: &Path,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(Process, OwnedFd), Error> {
        const STAGE: &str = "starting the pod's supervisor";
        let (ours, theirs) = socket::pair().stage(STAGE)?;
        let log = File::create(directory.join("shim.log")).stage(STAGE)?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_WRONLY).stage(STAGE)?;
        let directory = process::c_string(directory.as_os_str().as_bytes()).stage(STAGE)?;
        let launch = Launch {
            program: self.0.as_fd(),
            arguments: vec![c"wharf-shim".to_owned(), directory],
            streams: [theirs.as_fd(), null.as_fd(), log.as_fd()],
            cgroup,
        };
        let pidfd = launch.start().stage(STAGE)?;
        Ok((Process { pidfd, parent: Parent::ThisDaemon }, ours))
    }
}

/// A supervisor's process.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    parent: Parent,
}

/// Who has to reap a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    ThisDaemon,
    /// An earlier daemon; its children were handed to the init of the machine.
    Init,
}

impl Process {
    /// The supervisor that an earlier daemon started.
    pub(crate) fn adopt(pid: i32) -> Result<Self, Error> {
        let pidfd = process::open_pidfd(pid).stage("finding the pod's supervisor")?;
        Ok(Self { pidfd, parent: Parent::Init })
    }

    /// Kills it; one that is gone is as good.
    pub(crate) fn kill(&self) {
        if let Err(error) = process::signal(self.pidfd.as_fd(), 9) {
            tracing::debug!(%error, "a supervisor was gone before it was killed");
        }
    }

    /// Kills it if it is still there, and reaps it.
    pub(crate) fn end(self) -> Result<(), Error> {
        const STAGE: &str = "ending the supervisor";
        self.kill();
        match self.parent {
            Parent::ThisDaemon => {
                process::await_end(self.pidfd.as_fd()).stage(STAGE)?;
                process::wait(self.pidfd.as_fd(), Reap::Remove).map(drop).stage(STAGE)
            }
            Parent::Init => Ok(()),
        }
    }
}
