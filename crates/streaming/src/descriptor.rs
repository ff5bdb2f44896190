//! A descriptor of a process, or of a connection into a pod: a pipe, socket or terminal, driven by the reactor.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How many unread bytes a descriptor other than a pipe may hold: more than a terminal or a local socket does.
const CAPACITY_DEFAULT: usize = 1 << 20;

/// A nonblocking descriptor.
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Makes the descriptor nonblocking and registers it.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        #[expect(
            deprecated,
            reason = "what its successor asks of the caller, unsafely, an `OwnedFd` upholds by itself"
        )]
        let registered = AsyncFd::new(fd)?;
        Ok(Self(registered))
    }

    /// Reads what is available, and waits for the first byte; 0 means the end.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| read_or_end(fd, buffer)).await
    }

    /// Reads what is available now; 0 if there is nothing.
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match read_or_end(self.0.get_ref(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            read => read,
        }
    }

    /// Writes all bytes.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(nix::unistd::write(fd, bytes)?);
            bytes = &bytes[self.0.async_io(Interest::WRITABLE, write).await?..];
        }
        Ok(())
    }

    /// Tells the other side of a socket that nothing more follows.
    pub(crate) fn end_writing(&self) -> io::Result<()> {
        Ok(shutdown(self.0.get_ref().as_raw_fd(), Shutdown::Write)?)
    }

    /// The most bytes that may be in it unread.
    pub(crate) fn capacity(&self) -> usize {
        let pipe = fcntl(self.0.get_ref().as_fd(), FcntlArg::F_GETPIPE_SZ).ok();
        pipe.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(CAPACITY_DEFAULT)
    }
}

fn read_or_end(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match nix::unistd::read(fd, buffer) {
        // The terminal is no longer open in any process: pty(7).
        Err(Errno::EIO) => Ok(0),
        read => Ok(read?),
    }
}
