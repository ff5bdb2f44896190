//! The supervisor protocol: what wharfd and wharf-shim say to each other over `SOCK_SEQPACKET`.
//!
//! One message is one datagram; descriptors travel beside it. A plan, or a command's arguments, may be larger than a
//! datagram: they travel as a sealed memory file. Both sides are of one user on one machine, but may be of different
//! releases: see [`VERSION`].

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use wharf_sys::socket;

/// The generated messages of `proto/supervisor/v1/supervisor.proto`.
#[allow(missing_docs, reason = "the proto's own comments explain its fields")]
#[allow(clippy::struct_excessive_bools, reason = "messages have flags")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
pub mod v1 {
    include!("generated.rs");
}

/// The version of the protocol this build speaks. Fields are only added within a version.
pub const VERSION: u32 = 1;

/// The longest datagram, in bytes; the kernel's default send buffer holds three of them.
pub const DATAGRAM_LIMIT_BYTES: usize = 64 * 1024;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed; EAGAIN if it would have had to wait.
    #[error("the supervisor's connection failed")]
    Socket(#[source] wharf_sys::Error),
    /// The bytes are not a message of this protocol.
    #[error("a message of {bytes} bytes could not be understood")]
    Malformed {
        /// The length of the datagram.
        bytes: usize,
        /// What is wrong with it.
        #[source]
        source: prost::DecodeError,
    },
    /// The message is longer than a datagram may be.
    #[error("a message of {bytes} bytes is longer than {DATAGRAM_LIMIT_BYTES}")]
    TooLong {
        /// The length it would have had.
        bytes: usize,
    },
}

impl Error {
    /// Whether the call would have had to wait.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket(error) if error.errno == Errno::EAGAIN)
    }
}

/// Sends one message with descriptors.
///
/// # Errors
/// [`Error::TooLong`], or the socket's.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl prost::Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let bytes = message.encode_to_vec();
    if bytes.len() > DATAGRAM_LIMIT_BYTES {
        return Err(Error::TooLong { bytes: bytes.len() });
    }
    socket::send(socket, &bytes, descriptors).map_err(Error::Socket)
}

/// Receives one message with its descriptors; `None` when the other side has closed.
///
/// # Errors
/// [`Error::Malformed`], or the socket's.
pub fn receive<M: prost::Message + Default>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(M, Vec<OwnedFd>)>, Error> {
    let mut buffer = vec![0; DATAGRAM_LIMIT_BYTES];
    let (count, descriptors) = socket::receive(socket, &mut buffer).map_err(Error::Socket)?;
    if count == 0 {
        return Ok(None);
    }
    let message = M::decode(&buffer[..count]).map_err(|source| Error::Malformed { bytes: count, source })?;
    Ok(Some((message, descriptors)))
}

/// A message as a sealed memory file, to travel beside a request that it would make too long.
///
/// # Errors
/// The kernel's.
pub fn to_file(message: &impl prost::Message) -> Result<OwnedFd, Error> {
    wharf_sys::fs::sealed_memfd("message", &message.encode_to_vec()).map_err(Error::Socket)
}

/// Reads a message from the memory file that [`to_file`] made.
///
/// # Errors
/// [`Error::Malformed`], or EFBIG past 4 MiB.
pub fn from_file<M: prost::Message + Default>(file: &OwnedFd) -> Result<M, Error> {
    nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekSet)
        .map_err(|errno| Error::Socket(wharf_sys::Error::new("lseek", "message", errno)))?;
    let bytes = wharf_sys::fs::read_bounded(file, 4 << 20).map_err(Error::Socket)?;
    M::decode(&*bytes).map_err(|source| Error::Malformed { bytes: bytes.len(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (a, b) = socket::pair().unwrap();
        let plan = v1::Plan { container: "x".repeat(100_000), ..Default::default() };
        let file = to_file(&plan).unwrap();
        let request = v1::Request { id: 7, body: None };
        send(a.as_fd(), &request, &[file.as_fd()]).unwrap();
        let (got, descriptors) = receive::<v1::Request>(b.as_fd()).unwrap().unwrap();
        assert_eq!(got, request);
        assert_eq!(from_file::<v1::Plan>(&descriptors[0]).unwrap(), plan);
        drop(a);
        assert!(receive::<v1::Request>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn noise_and_giants_are_refused() {
        let (a, b) = socket::pair().unwrap();
        socket::send(a.as_fd(), &[0xff; 10], &[]).unwrap();
        assert!(matches!(receive::<v1::Request>(b.as_fd()), Err(Error::Malformed { bytes: 10, .. })));
        let giant = v1::Plan { container: "x".repeat(DATAGRAM_LIMIT_BYTES + 1), ..Default::default() };
        assert!(matches!(send(a.as_fd(), &giant, &[]), Err(Error::TooLong { .. })));
        nix::fcntl::fcntl(&b, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        assert!(receive::<v1::Request>(b.as_fd()).unwrap_err().would_block());
    }
}
