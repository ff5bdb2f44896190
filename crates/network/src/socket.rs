//! Sockets that belong to a pod's network, for the daemon to connect from.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use wharf_types::{ErrorKind, Failure};

use crate::netns::{self, NetnsError};

/// An unconnected, non-blocking TCP socket of one family inside a network.
#[derive(Debug)]
pub struct TcpSockets {
    /// For IPv4.
    pub v4: OwnedFd,
    /// For IPv6, where the kernel has it.
    pub v6: Option<OwnedFd>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The network cannot be entered.
    #[error("enter the pod's network")]
    Netns(#[from] NetnsError),
    /// The kernel gives none.
    #[error("open a TCP socket in the pod's network")]
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
    /// Opens them inside the namespace that `netns` pins, or in the host's network.
    ///
    /// # Errors
    /// The namespace is gone, or the kernel gives no socket.
    pub fn open(netns: Option<&Path>) -> Result<Self, SocketError> {
        match netns {
            Some(netns) => netns::inside(&netns::open(netns)?, Self::here)?,
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
            v6: open(AddressFamily::Inet6).ok(),
        })
    }
}
