//! What the server needs of the runtime: to start commands, attach to containers and connect to ports. It gets descriptors
//! back, and knows nothing else of pods and containers.

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use wharf_types::{Exit, PodId, TerminalSize};

use crate::grant::{AttachGrant, ExecGrant};

/// Why the backend refused. The client sees it with its causes.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Runs commands and opens connections.
///
/// A client may leave at any moment: the future of a call is then dropped, and so is a [`Session`].
pub trait Backend: Send + Sync + 'static {
    /// Starts a command. If it has a terminal, that has this size before the command begins; `None` if the client has
    /// not told it.
    fn exec(
        &self,
        grant: ExecGrant,
        size: Option<TerminalSize>,
    ) -> impl Future<Output = Result<Session, BackendError>> + Send;

    /// Joins the streams of a container's first process.
    fn attach(&self, grant: AttachGrant) -> impl Future<Output = Result<Session, BackendError>> + Send;

    /// Connects to a TCP port of localhost, as the pod sees it: over IPv4, else over IPv6. Returns the socket.
    fn connect(&self, pod: &PodId, port: u16) -> impl Future<Output = Result<OwnedFd, BackendError>> + Send;

    /// Resolves when a pod has ended, or is not there.
    fn ended(&self, pod: &PodId) -> impl Future<Output = ()> + Send;
}

/// A process whose streams are pumped.
///
/// The descriptors are pipes, sockets or terminals; they are made nonblocking. One that the grant did not ask for is
/// closed. For an exec with a terminal, `stdin` and `stdout` are two descriptors of the same master.
pub struct Session {
    /// Where input is written. It is closed when the client ends its input.
    pub stdin: Option<OwnedFd>,
    /// Where output is read.
    pub stdout: Option<OwnedFd>,
    /// Where errors are read.
    pub stderr: Option<OwnedFd>,
    /// Sets the size of the terminal, if there is one.
    pub resize: Option<Resize>,
    /// Resolves when the process is gone and all it wrote is in the descriptors, or with why the client can be served no
    /// more: what is not there then is not sent. It is dropped when the client leaves earlier: whatever is to happen
    /// then, such as the killing of the process, hangs on its drop.
    pub exit: Pin<Box<dyn Future<Output = Result<Exit, String>> + Send>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .finish_non_exhaustive()
    }
}

/// Sets the size of a terminal. Must not block.
pub type Resize = Box<dyn Fn(TerminalSize) + Send + Sync>;
