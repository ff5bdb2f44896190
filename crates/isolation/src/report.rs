//! What the container's first process says to its supervisor, and waits for, over one socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use wharf_sys::socket;

use crate::error::{Error, Kind, Stage};
use crate::identity::Identity;

const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// A message from the child. The end of the connection means that the program was executed.
#[derive(Debug)]
pub enum Report {
    /// Everything is set up; the program waits for its start.
    Ready {
        /// Who it will run as.
        identity: Identity,
        /// The terminal's master, if it has one.
        terminal: Option<OwnedFd>,
    },
    /// It failed, and the child is about to exit.
    Failed {
        /// What kind of failure.
        kind: Kind,
        /// For people.
        message: String,
    },
    /// The program was executed, or the child died.
    Closed,
}

impl Report {
    /// Receives the next report.
    ///
    /// # Errors
    /// The socket's; EAGAIN if it would have to wait.
    pub fn receive(socket: BorrowedFd<'_>) -> wharf_sys::Result<Self> {
        let mut buffer = vec![0; 16 * 1024];
        let (count, descriptors) = socket::receive(socket, &mut buffer)?;
        Ok(match buffer[..count].split_first() {
            Some((&READY, body)) => {
                let mut numbers = body.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                let (uid, gid) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                let identity = Identity { uid, gid, groups: numbers.collect(), home: None };
                Self::Ready { identity, terminal: descriptors.into_iter().next() }
            }
            Some((&FAILED, body)) => {
                let kind = match body.first() {
                    Some(b'i') => Kind::Invalid,
                    Some(b'n') => Kind::NotStarted,
                    _ => Kind::Internal,
                };
                let message = String::from_utf8_lossy(body.get(1..).unwrap_or_default()).into_owned();
                Self::Failed { kind, message }
            }
            _ => Self::Closed,
        })
    }
}

/// Says that all is set up.
pub(crate) fn ready(socket: &OwnedFd, identity: &Identity, terminal: Option<&OwnedFd>) -> Result<(), Error> {
    let mut bytes = vec![READY];
    for number in [identity.uid, identity.gid].iter().chain(&identity.groups) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let terminal: Vec<BorrowedFd<'_>> = terminal.iter().map(|fd| fd.as_fd()).collect();
    socket::send(socket.as_fd(), &bytes, &terminal).stage("reporting to the supervisor")
}

/// Says what failed. Nothing can be done if the supervisor is gone.
pub(crate) fn failed(socket: &OwnedFd, error: &Error) {
    let kind = match error.kind() {
        Kind::Internal => b'x',
        Kind::Invalid => b'i',
        Kind::NotStarted => b'n',
    };
    let mut bytes = vec![FAILED, kind];
    bytes.extend(error.line().into_bytes().into_iter().take(8000));
    drop(socket::send(socket.as_fd(), &bytes, &[]));
}

/// Waits for the supervisor's word to start; `false` if the supervisor is gone.
pub(crate) fn await_start(socket: &OwnedFd) -> bool {
    matches!(socket::receive(socket.as_fd(), &mut [0; 1]), Ok((1, _)))
}
