//! A supervisor's process, as the kernel reports it, whatever happens to the connection.
//!
//! It is held by its pidfd, so that neither a wait nor a kill can meet another process. A supervisor that an earlier
//! daemon started is found through its socket and is no child of this one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wharf_sys::process::{self, Reap};
use wharf_sys::socket;
use wharf_types::{Stage as _, StageError};

/// A supervisor's process; clones are the same one.
#[derive(Debug, Clone)]
pub struct Process(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pidfd: AsyncFd<OwnedFd>,
    parent: Parent,
}

/// Who must reap a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    ThisDaemon,
    /// An earlier daemon, whose children were inherited by the machine's init.
    Init,
}

impl Process {
    /// A supervisor that this daemon started.
    pub(crate) fn started(pidfd: OwnedFd) -> Result<Self, StageError> {
        Self::new(pidfd, Parent::ThisDaemon)
    }

    fn new(pidfd: OwnedFd, parent: Parent) -> Result<Self, StageError> {
        #[expect(
            deprecated,
            reason = "what its successor asks of the caller, unsafely, an `OwnedFd` upholds by itself"
        )]
        let watched = AsyncFd::with_interest(pidfd, Interest::READABLE);
        let pidfd = watched.stage("watching the pod's supervisor")?;
        Ok(Self(Arc::new(Inner { pidfd, parent })))
    }

    /// A supervisor that an earlier daemon started, identified through a connection to it.
    pub fn adopt(socket: BorrowedFd<'_>) -> Result<Self, StageError> {
        let pidfd = socket::peer_process(socket).stage("finding the pod's supervisor")?;
        Self::new(pidfd, Parent::Init)
    }

    /// Connects to a supervisor through its socket, and adopts its process if that is not known yet. `None`: nobody
    /// listens there. Blocking.
    ///
    /// # Errors
    /// It cannot be told now.
    pub fn reach(path: &Path, known: &mut Option<Self>) -> Result<Option<OwnedFd>, StageError> {
        let socket = match socket::connect(path) {
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            connected => connected.stage("connecting to the supervisor")?,
        };
        if known.is_none() {
            // If this fails, it has just exited, or descriptors run short: the next attempt shows which.
            *known = Some(Self::adopt(socket.as_fd())?);
        }
        Ok(Some(socket))
    }

    /// Waits until a process exits, and for ever if there is none.
    pub async fn ended_if_any(process: Option<&Self>) {
        match process {
            Some(process) => process.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it sleeps until there is something to do, as it nearly always does; `false` if that cannot be told. It
    /// is not woken for the answer. Blocking: it reads the kernel's files.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        process::is_asleep(self.0.pidfd.get_ref().as_fd()).unwrap_or(false)
    }

    /// Kills it, if it still exists.
    pub fn kill(&self) {
        if let Err(error) = process::kill(self.0.pidfd.get_ref().as_fd()) {
            tracing::debug!(%error, "a supervisor was gone before it was killed");
        }
    }

    /// Waits until it exits, and reaps it.
    pub async fn ended(&self) {
        // This fails only when the runtime shuts down, which ends this task, too.
        let _runtime_may_end = self.0.pidfd.readable().await;
        if self.0.parent == Parent::ThisDaemon {
            let _another_may_have_reaped_it = process::wait(self.0.pidfd.get_ref().as_fd(), Reap::Remove);
        }
    }
}
