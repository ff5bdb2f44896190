//! `SOCK_SEQPACKET` Unix sockets that carry descriptors.
//!
//! A datagram arrives whole or not at all, and the end of the other side is seen, so that no framing and no heartbeat
//! is needed. Every received descriptor is close-on-exec.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Named, Result};

/// The most descriptors that travel with one message.
pub const DESCRIPTOR_LIMIT: usize = 8;

/// How many connections may wait for a listener that does not accept them. A stopped listener can still be reached, by
/// one client after another.
const BACKLOG: i32 = 128;

/// Removes a socket; one that is not there is fine. Any other file stays: its path was configured by mistake.
///
/// # Errors
/// The kernel's error, or that there is another file.
pub fn remove(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    match std::fs::symlink_metadata(path) {
        Err(error) if absent(&error) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            let problem = "a file that is no socket is there: move it, or use another path";
            Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, problem))
        }
        found => match found.and_then(|_socket| std::fs::remove_file(path)) {
            Err(error) if !absent(&error) => Err(error),
            _gone => Ok(()),
        },
    }
}

/// A connected pair of blocking sockets.
///
/// # Errors
/// The kernel's error.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .named("socketpair", || "SOCK_SEQPACKET".into())
}

/// A non-blocking socket that listens at a path of any length; an existing file there is replaced.
///
/// # Errors
/// The kernel's error.
pub fn listen(path: &Path) -> Result<OwnedFd> {
    let name = || path.display().to_string();
    let (_directory, short) = short_path(path)?;
    let address = SocketAddrUnix::new(&short).named("bind", name)?;
    let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).named("unlink", name)?,
        _ => {}
    }
    rustix::net::bind(&socket, &address).named("bind", name)?;
    rustix::net::listen(&socket, BACKLOG).named("listen", name)?;
    Ok(socket)
}

/// Connects to the socket at a path without waiting; the socket is non-blocking.
///
/// # Errors
/// ECONNREFUSED or ENOENT if nobody listens, EAGAIN if too many connections are waiting.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let name = || path.display().to_string();
    let (_directory, short) = short_path(path)?;
    let address = SocketAddrUnix::new(&short).named("connect", name)?;
    let socket = new_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &address).named("connect", name)?;
    Ok(socket)
}

/// The same file through a descriptor of its directory: an address holds 107 bytes, and a pod's directory may have a
/// longer path.
fn short_path(path: &Path) -> Result<(OwnedFd, std::path::PathBuf)> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let directory = crate::fs::open(parent, nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY)?;
    let short =
        crate::fs::proc_path(std::os::fd::AsFd::as_fd(&directory)).join(path.file_name().unwrap_or_default());
    Ok((directory, short))
}

fn new_socket(flags: SocketFlags) -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .named("socket", || "SOCK_SEQPACKET".into())
}

/// Accepts a waiting connection, and returns it with the user id of the client.
///
/// # Errors
/// EAGAIN if there is none.
pub fn accept(listener: BorrowedFd<'_>) -> Result<(OwnedFd, u32)> {
    let socket =
        rustix::net::accept_with(listener, SocketFlags::CLOEXEC).named("accept4", || "a listener".into())?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)
        .named("getsockopt(SO_PEERCRED)", || "a connection".into())?;
    Ok((socket, peer.uid.as_raw()))
}

/// The process at the other end of a connection: the one that listened or the one that connected.
///
/// # Errors
/// ESRCH if it is gone.
pub fn peer_process(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    match crate::process::peer_pidfd(socket) {
        Err(error) if error.errno == Errno::ENOPROTOOPT => peer_by_number(socket),
        other => other,
    }
}

/// Before Linux 6.5 only the peer's pid is available, which may belong to another process by now. It does not if the
/// connection still has a peer after the pidfd was opened.
fn peer_by_number(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let peer = rustix::net::sockopt::socket_peercred(socket)
        .named("getsockopt(SO_PEERCRED)", || "a connection".into())?;
    let process = crate::process::open_pidfd(peer.pid.as_raw_nonzero().get())?;
    let mut ends = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut ends, PollTimeout::ZERO).named("poll", || "a connection".into())?;
    match ends[0].any() {
        Some(true) => Err(Error::new("pidfd_open", "the peer of a connection", Errno::ESRCH)),
        _ => Ok(process),
    }
}

/// Sends one datagram with at most [`DESCRIPTOR_LIMIT`] descriptors.
///
/// # Errors
/// EPIPE if the other side is gone, EAGAIN if a non-blocking socket is full.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::E2BIG).named("sendmsg", || format!("{} descriptors", descriptors.len()));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .named("sendmsg", || format!("{} bytes", bytes.len()))
        .map(drop)
}

/// Has the kernel identify the sender of each datagram received on this end: [`receive_from`].
///
/// # Errors
/// The kernel's error.
pub fn receive_senders(socket: BorrowedFd<'_>) -> Result<()> {
    rustix::net::sockopt::set_socket_passcred(socket, true)
        .named("setsockopt(SO_PASSCRED)", || "a connection".into())
}

/// Receives one datagram and its descriptors; a count of 0 means that the other side has closed.
///
/// # Errors
/// EAGAIN if a non-blocking socket is empty.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    receive_from(socket, buffer).map(|received| (received.count, received.descriptors))
}

/// A datagram.
#[derive(Debug)]
pub struct Received {
    /// Its length; 0 if the other side has closed.
    pub count: usize,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// The pid of its sender, if the socket has [`receive_senders`].
    pub sender: Option<i32>,
}

/// Receives one datagram, with its descriptors and its sender.
///
/// # Errors
/// EAGAIN if a non-blocking socket is empty.
pub fn receive_from(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .named("recvmsg", || "a connection".into())?;
    let (mut descriptors, mut sender) = (Vec::new(), None);
    for item in control.drain() {
        match item {
            RecvAncillaryMessage::ScmRights(received) => descriptors.extend(received),
            RecvAncillaryMessage::ScmCredentials(process) => {
                sender = Some(process.pid.as_raw_nonzero().get())
            }
            _ => {}
        }
    }
    Ok(Received { count: message.bytes, descriptors, sender })
}

/// Receives one datagram into a buffer of its size; one that is longer than the limit is truncated. If none is waiting,
/// which is the usual case, nothing is allocated: a buffer for the longest would cost a page fault for each of its
/// pages.
///
/// # Errors
/// EAGAIN if a non-blocking socket is empty.
pub fn receive_whole(socket: BorrowedFd<'_>, limit_bytes: usize) -> Result<(Vec<u8>, Received)> {
    let look = RecvFlags::PEEK | RecvFlags::TRUNC;
    let mut nowhere: [u8; 0] = [];
    let (_copied, waiting) =
        rustix::net::recv(socket, &mut nowhere, look).named("recv", || "a connection".into())?;
    let mut bytes = vec![0; waiting.min(limit_bytes)];
    let received = receive_from(socket, &mut bytes)?;
    bytes.truncate(received.count);
    Ok((bytes, received))
}

/// Shuts down a connection in both directions; its descriptor stays open and reads as ended.
pub fn shut_down(socket: BorrowedFd<'_>) {
    // This fails only if the connection has already ended.
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_peer_is_who_listens_and_none_once_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen(&path).unwrap();
        let ours = connect(&path).unwrap();
        for of in [peer_process, peer_by_number] {
            let process = of(ours.as_fd()).unwrap();
            crate::process::signal(process.as_fd(), 0).unwrap();
        }
        drop(listener);
        assert_eq!(peer_by_number(ours.as_fd()).unwrap_err().errno, Errno::ESRCH);
        assert_eq!(connect(&path).unwrap_err().errno, Errno::ECONNREFUSED);
    }

    #[test]
    fn only_a_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(listen(&path).unwrap());
        remove(&path).unwrap();
        remove(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        for (name, kept) in [("socket", true), ("link", true), ("none", false)] {
            let path = dir.path().join(name);
            assert_eq!(remove(&path).is_err(), kept, "{name}");
            assert_eq!(path.symlink_metadata().is_ok(), kept, "{name}");
        }
    }

    #[test]
    fn a_datagram_is_received_whole_up_to_the_limit() {
        let (ours, theirs) = pair().unwrap();
        let null = crate::fs::open("/dev/null", nix::fcntl::OFlag::O_RDWR).unwrap();
        for (sent, limit, received) in [(1, 100, 1), (100, 100, 100), (101, 100, 100)] {
            send(theirs.as_fd(), &vec![b'x'; sent], &[null.as_fd()]).unwrap();
            let (bytes, with) = receive_whole(ours.as_fd(), limit).unwrap();
            assert_eq!((bytes, with.descriptors.len()), (vec![b'x'; received], 1), "{sent} of {limit}");
        }
        drop(theirs);
        let (bytes, with) = receive_whole(ours.as_fd(), 100).unwrap();
        assert_eq!((bytes.len(), with.count, with.descriptors.len()), (0, 0, 0));
    }

    #[test]
    fn a_listener_that_takes_nobody_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = listen(&path).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match connect(&path) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.errno, Errno::EAGAIN);
        assert!(waiting.len() > 100);
    }
}
