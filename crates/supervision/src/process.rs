//! A supervisor as a process: what the kernel says of it, whatever becomes of the connection to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

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

/// Who has to reap a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    ThisDaemon,
    /// An earlier daemon; its children were handed to the init of the machine.
    Init,
}

impl Process {
    /// One that this daemon started.
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

    /// The supervisor that an earlier daemon started, by a connection to it.
    pub fn adopt(socket: BorrowedFd<'_>) -> Result<Self, StageError> {
        let pidfd = socket::peer_process(socket).stage("finding the pod's supervisor")?;
        Self::new(pidfd, Parent::Init)
    }

    /// Kills it, if it is still there.
    pub fn kill(&self) {
        if let Err(error) = process::signal(self.0.pidfd.get_ref().as_fd(), 9) {
            tracing::debug!(%error, "a supervisor was gone before it was killed");
        }
    }

    /// Waits for its end, and reaps it.
    pub async fn ended(&self) {
        // It fails only when the runtime ends, and this task with it.
        drop(self.0.pidfd.readable().await);
        if self.0.parent == Parent::ThisDaemon {
            // Reaped already by another who waited.
            drop(process::wait(self.0.pidfd.get_ref().as_fd(), Reap::Remove));
        }
    }
}
