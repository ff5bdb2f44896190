//! Sockets in a pod's network, through which the daemon connects to the pod.
//!
//! A socket keeps the network in which it was opened. So only opening it needs a thread in the pod's namespace, and
//! connecting and forwarding are ordinary work of the daemon.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use wharf_types::{ErrorKind, Failure, PodId};

use crate::netns::{self, NetnsError};

/// Unconnected, non-blocking TCP sockets inside a network, one per family.
#[derive(Debug)]
pub struct TcpSockets {
    /// For IPv4.
    pub v4: OwnedFd,
    /// For IPv6, if the kernel has it.
    pub v6: Option<OwnedFd>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The namespace cannot be entered.
    #[error("cannot enter the pod's network")]
    Netns(#[from] NetnsError),
    /// The kernel returned an error.
    #[error("cannot open a TCP socket in the pod's network")]
    Open(#[source] Errno),
}

impl Failure for SocketError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Netns(error) => error.kind(),
            Self::Open(errno) => errno.kind(),
        }
    }
}

impl TcpSockets {
    /// Opens the sockets inside a network namespace, or in the host's.
    ///
    /// # Errors
    /// It is not a network namespace, or the kernel returned an error.
    pub fn open(netns: Option<BorrowedFd<'_>>) -> Result<Self, SocketError> {
        match netns {
            Some(netns) => netns::inside(netns, Self::here)?,
            None => Self::here(),
        }
    }

    fn here() -> Result<Self, SocketError> {
        let open = |family| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Stream, flags, None)
        };
        Ok(Self {
            v4: open(AddressFamily::Inet).map_err(SocketError::Open)?,
            v6: match open(AddressFamily::Inet6) {
                Err(Errno::EAFNOSUPPORT) => None,
                v6 => Some(v6.map_err(SocketError::Open)?),
            },
        })
    }
}

/// Nothing listens on the port, or it does not respond.
#[derive(Debug, thiserror::Error)]
#[error("port {port} of pod {pod}")]
pub struct Unreachable {
    /// The port.
    pub port: u16,
    /// The pod.
    pub pod: PodId,
    /// What the connection failed with.
    pub source: std::io::Error,
}

impl Failure for Unreachable {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}
