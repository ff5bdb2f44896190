//! Starting a supervisor: from a copy in memory, so that no container can overwrite what supervises it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wharf_state::Layout;
use wharf_sys::error::Named;
use wharf_sys::fs::detached_program;
use wharf_sys::launch::Launch;
use wharf_sys::process::{self, Reap};
use wharf_sys::socket;

use crate::error::{Error, Stage};

/// The supervisor's program.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Copies the program at a path into memory that nobody can change.
    ///
    /// # Errors
    /// The program cannot be read.
    pub(crate) fn load(path: &Path) -> wharf_sys::Result<Self> {
        let bytes = std::fs::read(path).named("read", || path.display().to_string())?;
        detached_program("wharf-shim", &bytes).map(Self)
    }

    /// Starts it for a pod's directory, in a cgroup (v2) if there is one, and returns its connection.
    pub(crate) fn start(
        &self,
        directory: &Path,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(Process, OwnedFd), Error> {
        const STAGE: &str = "starting the pod's supervisor";
        let (ours, theirs) = socket::pair().stage(STAGE)?;
        let log = File::create(Layout::supervisor_log(directory)).stage(STAGE)?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_WRONLY).stage(STAGE)?;
        let directory = wharf_sys::launch::c_string(directory.as_os_str().as_bytes()).stage(STAGE)?;
        let launch = Launch {
            program: self.0.as_fd(),
            arguments: vec![c"wharf-shim".to_owned(), directory],
            streams: [theirs.as_fd(), null.as_fd(), log.as_fd()],
            cgroup,
        };
        let pidfd = launch.start().stage(STAGE)?;
        Ok((Process::new(pidfd, Parent::ThisDaemon)?, ours))
    }
}

/// A supervisor's process; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Process(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pidfd: AsyncFd<OwnedFd>,
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
    fn new(pidfd: OwnedFd, parent: Parent) -> Result<Self, Error> {
        #[expect(
            deprecated,
            reason = "what its successor asks of the caller, unsafely, an `OwnedFd` upholds by itself"
        )]
        let watched = AsyncFd::with_interest(pidfd, Interest::READABLE);
        let pidfd = watched.stage("watching the pod's supervisor")?;
        Ok(Self(Arc::new(Inner { pidfd, parent })))
    }

    /// The supervisor that an earlier daemon started, by a connection to it.
    pub(crate) fn adopt(socket: BorrowedFd<'_>) -> Result<Self, Error> {
        let pidfd = socket::peer_process(socket).stage("finding the pod's supervisor")?;
        Self::new(pidfd, Parent::Init)
    }

    /// Kills it; one that is gone is as good.
    pub(crate) fn kill(&self) {
        if let Err(error) = process::signal(self.0.pidfd.get_ref().as_fd(), 9) {
            tracing::debug!(%error, "a supervisor was gone before it was killed");
        }
    }

    /// Waits for its end, and reaps it.
    pub(crate) async fn ended(&self) {
        // It fails only when the runtime ends, and this task with it.
        drop(self.0.pidfd.readable().await);
        if self.0.parent == Parent::ThisDaemon {
            // Reaped already by another who waited.
            drop(process::wait(self.0.pidfd.get_ref().as_fd(), Reap::Remove));
        }
    }
}
