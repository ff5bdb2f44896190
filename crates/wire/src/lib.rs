//! The supervisor protocol: what wharfd and wharf-shim say to each other over `SOCK_SEQPACKET`.
//!
//! One message is one datagram, and descriptors travel beside it. A message that may be larger than a datagram travels
//! in a sealed memory file: a plan and a command's arguments always, any other message when it needs to. Both sides run
//! as one user on one machine but may be of different releases: see [`VERSION`].

mod convert;

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use wharf_sys::error::Named as _;
use wharf_sys::socket;
use wharf_types::{ErrorKind, Failure};

pub use convert::{SizeError, exit_of};

/// The messages generated from `proto/supervisor/v1/supervisor.proto`.
#[allow(missing_docs, reason = "the proto's own comments explain its fields")]
#[allow(clippy::struct_excessive_bools, reason = "messages have flags")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
pub mod v1 {
    include!("generated.rs");
}

/// The version of the protocol that this build speaks. Within a version, fields are added, or reserved once no
/// supported release needs them. An addition that changes what a supervisor has to do is a [`feature`], so that an
/// older supervisor is not asked for it.
pub const VERSION: u32 = 1;

/// The names of what a supervisor can do and older ones of the same version cannot. It lists them in its state. A
/// container that asks for what its pod's supervisor cannot do is refused; what wharf adds by itself is left out there,
/// or no container would start in a pod that is older than the daemon.
pub mod feature {
    /// It does not begin a request after its deadline, and stops what is not done by then.
    pub const DEADLINES: &str = "deadlines";
    /// It makes a new file system read-only after the mounts inside it are made.
    pub const READ_ONLY_LAST: &str = "read-only-last";
    /// It fills an image's volumes.
    pub const VOLUMES: &str = "volumes";
    /// It mounts images.
    pub const IMAGES: &str = "images";
    /// It keeps the limits of logs.
    pub const LOG_LIMITS: &str = "log-limits";
    /// It gives programs their traits.
    pub const TRAITS: &str = "traits";
    /// It has AppArmor confine programs.
    pub const APPARMOR: &str = "apparmor";
    /// It gives SELinux labels to programs and files.
    pub const SELINUX: &str = "selinux";
    /// It has other runtimes make containers, and tells them the mounts: those that were only told what the daemon says
    /// were called `runtimes`.
    pub const RUNTIMES: &str = "runtimes-and-mounts";
    /// It has another runtime run all containers of the pod in one sandbox.
    pub const SANDBOXES: &str = "sandboxes";
}

/// The features of this build.
pub const FEATURES: [&str; 10] = [
    feature::DEADLINES,
    feature::READ_ONLY_LAST,
    feature::VOLUMES,
    feature::IMAGES,
    feature::LOG_LIMITS,
    feature::TRAITS,
    feature::APPARMOR,
    feature::SELINUX,
    feature::RUNTIMES,
    feature::SANDBOXES,
];

/// The longest datagram, in bytes; the kernel's default send buffer holds three of them.
pub const DATAGRAM_LIMIT_BYTES: usize = 64 * 1024;

/// The longest message in a memory file, in bytes.
pub const MESSAGE_LIMIT_BYTES: usize = 4 << 20;

/// The datagram that stands for a message in a memory file. No message begins with this byte: it would be an unfinished
/// field.
const IN_FILE: &[u8] = &[0xff];

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed; EAGAIN if the call would have blocked.
    #[error("the supervisor's connection failed")]
    Socket(#[source] wharf_sys::Error),
    /// The datagram is not a message of this protocol.
    #[error("a message of {bytes} bytes could not be understood")]
    Malformed {
        /// The length of the datagram.
        bytes: usize,
        /// What is wrong with it.
        #[source]
        source: prost::DecodeError,
    },
    /// The message is longer than [`MESSAGE_LIMIT_BYTES`].
    #[error("a message of {bytes} bytes is longer than {MESSAGE_LIMIT_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            // The other end is gone or about to be. A shortage of the machine keeps the kernel's own class.
            Self::Socket(error) if error.kind() == ErrorKind::Internal => ErrorKind::Unavailable,
            Self::Socket(error) => error.kind(),
            Self::TooLong { .. } => ErrorKind::InvalidArgument,
            Self::Malformed { .. } => ErrorKind::Internal,
        }
    }
}

impl Error {
    /// Whether the call would have blocked.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket(error) if error.errno == Errno::EAGAIN)
    }
}

/// An encoded message with its own copies of the descriptors.
#[derive(Debug)]
pub struct Datagram {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Datagram {
    /// Encodes a message and duplicates the descriptors that travel beside it.
    ///
    /// # Errors
    /// [`Error::TooLong`], or the kernel's error.
    pub fn new(message: &impl prost::Message, descriptors: &[BorrowedFd<'_>]) -> Result<Self, Error> {
        let bytes = message.encode_to_vec();
        let mut all = Vec::new();
        let in_file = bytes.len() > DATAGRAM_LIMIT_BYTES;
        if in_file {
            all.push(file_of(&bytes)?);
        }
        for descriptor in descriptors {
            let copy = descriptor.try_clone_to_owned();
            let what = || format!("descriptor {}", descriptor.as_raw_fd());
            all.push(copy.named("dup", what).map_err(Error::Socket)?);
        }
        Ok(Self { bytes: if in_file { IN_FILE.to_vec() } else { bytes }, descriptors: all })
    }

    /// Sends it. After an error it can be sent again.
    ///
    /// # Errors
    /// The socket's error.
    pub fn send(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let descriptors: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(AsFd::as_fd).collect();
        socket::send(socket, &self.bytes, &descriptors).map_err(Error::Socket)
    }
}

/// Sends one message with descriptors.
///
/// # Errors
/// [`Error::TooLong`], or the socket's error.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl prost::Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let bytes = message.encode_to_vec();
    if bytes.len() <= DATAGRAM_LIMIT_BYTES {
        return socket::send(socket, &bytes, descriptors).map_err(Error::Socket);
    }
    let file = file_of(&bytes)?;
    let all: Vec<BorrowedFd<'_>> = std::iter::once(file.as_fd()).chain(descriptors.iter().copied()).collect();
    socket::send(socket, IN_FILE, &all).map_err(Error::Socket)
}

/// Receives one message with its descriptors; `None` if the other side has closed the connection.
///
/// # Errors
/// [`Error::Malformed`], or the socket's error.
pub fn receive<M: prost::Message + Default>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(M, Vec<OwnedFd>)>, Error> {
    let (bytes, received) = socket::receive_whole(socket, DATAGRAM_LIMIT_BYTES).map_err(Error::Socket)?;
    let mut descriptors = received.descriptors;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes == IN_FILE && !descriptors.is_empty() {
        let message = from_file(&descriptors.remove(0))?;
        return Ok(Some((message, descriptors)));
    }
    Ok(Some((decode(&bytes)?, descriptors)))
}

/// Puts a message that would make a request too long into a sealed memory file, which travels beside the request.
///
/// # Errors
/// [`Error::TooLong`], or the kernel's error.
pub fn to_file(message: &impl prost::Message) -> Result<OwnedFd, Error> {
    file_of(&message.encode_to_vec())
}

fn file_of(bytes: &[u8]) -> Result<OwnedFd, Error> {
    if bytes.len() > MESSAGE_LIMIT_BYTES {
        return Err(Error::TooLong { bytes: bytes.len() });
    }
    wharf_sys::fs::sealed_memfd("message", bytes).map_err(Error::Socket)
}

/// Reads a message from a memory file that [`to_file`] made.
///
/// # Errors
/// [`Error::Malformed`], or EFBIG if it is longer than [`MESSAGE_LIMIT_BYTES`].
pub fn from_file<M: prost::Message + Default>(file: &OwnedFd) -> Result<M, Error> {
    decode(&read_file(file)?)
}

/// Reads a message's bytes from a memory file, to be decoded later.
///
/// # Errors
/// The kernel's error, or EFBIG if there are more than [`MESSAGE_LIMIT_BYTES`].
pub fn read_file(file: &OwnedFd) -> Result<Vec<u8>, Error> {
    nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekSet)
        .map_err(|errno| Error::Socket(wharf_sys::Error::new("lseek", "message", errno)))?;
    wharf_sys::fs::read_bounded(file, MESSAGE_LIMIT_BYTES).map_err(Error::Socket)
}

/// Decodes a message.
///
/// # Errors
/// [`Error::Malformed`].
pub fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|source| Error::Malformed { bytes: bytes.len(), source })
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
        let request = v1::Request { id: 7, ..Default::default() };
        send(a.as_fd(), &request, &[file.as_fd()]).unwrap();
        let (got, descriptors) = receive::<v1::Request>(b.as_fd()).unwrap().unwrap();
        assert_eq!(got, request);
        assert_eq!(from_file::<v1::Plan>(&descriptors[0]).unwrap(), plan);
        drop(a);
        assert!(receive::<v1::Request>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_message_longer_than_a_datagram_arrives_all_the_same() {
        let (a, b) = socket::pair().unwrap();
        let status =
            |number: u32| v1::ContainerStatus { id: number.to_string().repeat(4000), ..Default::default() };
        let state = v1::State { containers: (0..40).map(status).collect(), ..Default::default() };
        let datagram = Datagram::new(&state, &[a.as_fd()]).unwrap();
        let again = || datagram.send(a.as_fd());
        let anew = || send(a.as_fd(), &state, &[a.as_fd()]);
        let sends: [&dyn Fn() -> Result<(), Error>; 3] = [&again, &again, &anew];
        for send in sends {
            send().unwrap();
            let (got, descriptors) = receive::<v1::State>(b.as_fd()).unwrap().unwrap();
            assert_eq!((got, descriptors.len()), (state.clone(), 1));
        }
    }

    #[test]
    fn noise_and_giants_are_refused() {
        let (a, b) = socket::pair().unwrap();
        socket::send(a.as_fd(), &[0xff; 10], &[]).unwrap();
        assert!(matches!(receive::<v1::Request>(b.as_fd()), Err(Error::Malformed { bytes: 10, .. })));
        socket::send(a.as_fd(), IN_FILE, &[]).unwrap();
        assert!(matches!(receive::<v1::Request>(b.as_fd()), Err(Error::Malformed { bytes: 1, .. })));
        let giant = v1::Plan { container: "x".repeat(MESSAGE_LIMIT_BYTES + 1), ..Default::default() };
        assert!(matches!(send(a.as_fd(), &giant, &[]), Err(Error::TooLong { .. })));
        assert!(matches!(to_file(&giant), Err(Error::TooLong { .. })));
        nix::fcntl::fcntl(&b, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        assert!(receive::<v1::Request>(b.as_fd()).unwrap_err().would_block());
    }
}
