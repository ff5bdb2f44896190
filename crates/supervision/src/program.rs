//! Starting a supervisor, from a copy in memory, so that no container can overwrite its own supervisor.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use wharf_state::Layout;
use wharf_sys::error::Named;
use wharf_sys::fs::detached_program;
use wharf_sys::launch::Launcher;
use wharf_sys::socket;
use wharf_types::{Stage as _, StageError};

use crate::process::Process;

/// The supervisor's program.
#[derive(Debug)]
pub struct Program(Launcher);

impl Program {
    /// Copies the program at a path into memory that nobody can change. This is for the start of a daemon, when it has few
    /// descriptors: see [`Launcher`].
    ///
    /// # Errors
    /// The program cannot be read.
    pub fn load(path: &Path) -> wharf_sys::Result<Self> {
        let bytes = std::fs::read(path).named("read", || path.display().to_string())?;
        detached_program("wharf-shim", &bytes).and_then(Launcher::new).map(Self)
    }

    /// Starts it for a pod's directory, in a cgroup (v2) if there is one, and returns the connection.
    pub fn start(
        &self,
        directory: &Path,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(Process, OwnedFd), StageError> {
        const STAGE: &str = "starting the pod's supervisor";
        let (ours, theirs) = socket::pair().stage(STAGE)?;
        let log = File::create(Layout::supervisor_log(directory)).stage(STAGE)?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_WRONLY).stage(STAGE)?;
        let directory = wharf_sys::launch::c_string(directory.as_os_str().as_bytes()).stage(STAGE)?;
        let streams = [theirs.as_fd(), null.as_fd(), log.as_fd()];
        let pidfd = self.0.start(&[c"wharf-shim".to_owned(), directory], streams, cgroup).stage(STAGE)?;
        Ok((Process::started(pidfd)?, ours))
    }
}
