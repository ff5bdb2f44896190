//! The terminal that a runtime makes, and sends to a socket in the bundle.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use wharf_isolation::bundle::Bundle;
use wharf_isolation::{Error, Stage as _};
use wharf_sys::error::Named as _;
use wharf_sys::{socket, terminal};
use wharf_types::TerminalSize;

/// The socket, in the bundle.
pub(crate) const SOCKET: &str = "console";
const STAGE: &str = "taking the terminal from the runtime";

/// The socket to which the terminal will be sent.
#[derive(Debug)]
pub(crate) struct Console(UnixListener);

impl Console {
    /// Listens in the bundle, which is the working directory.
    pub(crate) fn listen(_bundle: &Bundle) -> Result<Self, Error> {
        UnixListener::bind(SOCKET).named("bind", || SOCKET.into()).stage(STAGE).map(Self)
    }

    /// Takes the terminal, which a runtime that has exited without an error has sent.
    pub(crate) fn accept(self) -> Result<OwnedFd, Error> {
        let none = || wharf_sys::Error::new("accept", "no terminal was sent", Errno::ENOTTY);
        self.0.set_nonblocking(true).named("fcntl", || SOCKET.into()).stage(STAGE)?;
        let (connection, _address) = self.0.accept().named("accept", || SOCKET.into()).stage(STAGE)?;
        // The name of the terminal comes with it.
        let (_count, sent) = socket::receive(connection.as_fd(), &mut [0; 4096]).stage(STAGE)?;
        sent.into_iter().next().ok_or_else(none).stage(STAGE)
    }
}

/// Gives a terminal its size, if that is known.
pub(crate) fn resize(terminal: &OwnedFd, size: Option<TerminalSize>) -> Result<(), Error> {
    let Some(TerminalSize { width, height }) = size else { return Ok(()) };
    terminal::resize(terminal.as_fd(), width, height).stage(STAGE)
}
