//! What the server needs from the runtime: to start commands, attach to containers and connect to ports. It gets
//! descriptors in return and knows nothing else about pods and containers.

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use wharf_types::{Exit, PodId, TerminalSize};

use crate::grant::{AttachGrant, ExecGrant};

/// Why the backend refused. The client sees the error with its causes.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Runs commands and opens connections.
///
/// A client may leave at any moment. Then the future of its call, or its [`Session`], is dropped.
pub trait Backend: Send + Sync + 'static {
    /// Starts a command. Its terminal, if any, has this size before the command begins; `None` if the client has not
    /// sent a size.
    fn exec(
        &self,
        grant: ExecGrant,
        size: Option<TerminalSize>,
    ) -> impl Future<Output = Result<Session, BackendError>> + Send;

    /// Attaches to the streams of a container's first process.
    fn attach(&self, grant: AttachGrant) -> impl Future<Output = Result<Session, BackendError>> + Send;

    /// Connects to a TCP port of localhost in the pod, over IPv4 or else over IPv6, and returns the socket.
    fn connect(&self, pod: &PodId, port: u16) -> impl Future<Output = Result<OwnedFd, BackendError>> + Send;

    /// Resolves when a pod has ended or does not exist.
    fn ended(&self, pod: &PodId) -> impl Future<Output = ()> + Send;
}

/// A process whose streams are pumped.
///
/// The descriptors are pipes, sockets or terminals, and are made nonblocking. One that the grant does not include is
/// closed. For an exec with a terminal, `stdin` and `stdout` are two descriptors of the same terminal.
pub struct Session {
    /// Standard input, to write to. It is closed when the client ends its input.
    pub stdin: Option<OwnedFd>,
    /// Standard output, to read from.
    pub stdout: Option<OwnedFd>,
    /// Standard error, to read from.
    pub stderr: Option<OwnedFd>,
    /// Sets the terminal's size, if there is a terminal.
    pub resize: Option<Resize>,
    /// Resolves with the exit when the process is gone and all its output is in the descriptors, or with the reason why
    /// the client can no longer be served: output that is not in the descriptors by then is not sent. It is dropped if
    /// the client leaves earlier. So what must then happen, such as killing the process, is done by its drop.
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

/// Sets a terminal's size. It must not block.
pub type Resize = Box<dyn Fn(TerminalSize) + Send + Sync>;
