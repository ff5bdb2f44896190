//! Who serves a socket, for people and for those who would take its place.
//!
//! What is killed and does not end serves nobody, whatever it keeps.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use wharf_sys::fs::kernel_text;

use crate::killed::Killed;

/// A process that serves a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    /// `None` if it is outside of the container in which this process is, or cannot be told.
    process: Option<(i32, String)>,
}

impl Listener {
    /// Whoever serves the socket at a path; `None` if nobody does. Never waits: one whose queue is full serves it, too.
    ///
    /// # Errors
    /// The kernel has no descriptor to ask with, which says nothing of the socket at that path.
    pub(crate) fn at(path: &Path) -> io::Result<Option<Self>> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let own = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let Ok(address) = UnixAddr::new(path) else { return Ok(None) };
        match connect(own.as_raw_fd(), &address) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ECONNREFUSED) => return Ok(None),
            // Its queue is full, or it is a socket of another type.
            Err(_untold) => return Ok(Some(Self::of(None))),
        }
        let stream = UnixStream::from(own);
        let owner = getsockopt(&stream, PeerCredentials).ok().map(|owner| owner.pid()).filter(|pid| *pid > 0);
        Ok(owner.and_then(Killed::find).is_none().then(|| Self::of(owner)))
    }

    /// This process, if it is known.
    pub(crate) fn of(pid: Option<i32>) -> Self {
        Self { process: pid.map(|pid| (pid, program(pid))) }
    }

    /// Whether it is known to be a wharfd.
    pub(crate) fn is_wharfd(&self) -> bool {
        self.process.is_some() && self.may_be_wharfd()
    }

    /// Whether it may be a wharfd.
    pub(crate) fn may_be_wharfd(&self) -> bool {
        self.process.as_ref().is_none_or(|(_pid, name)| name == "wharfd")
    }
}

/// Whether a process has one of these sockets, which are called as procfs shows descriptors of them.
///
/// # Errors
/// The kernel's error; NotFound if the process is gone.
#[expect(clippy::disallowed_methods, reason = "procfs waits for no disk")]
pub(crate) fn has_one(pid: i32, sockets: &[PathBuf]) -> io::Result<bool> {
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that is closed meanwhile is none of them.
        let target = std::fs::read_link(descriptor?.path()).unwrap_or_default();
        if sockets.contains(&target) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The name of a process's program, as the kernel has it.
pub(crate) fn program(pid: i32) -> String {
    kernel_text(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

impl fmt::Display for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(formatter, "{name} (pid {pid})"),
            None => formatter.write_str("another process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use wharf_sys::seccomp::Call;

    use super::*;

    #[test]
    fn whoever_serves_a_socket_is_named_even_if_the_queue_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let at = || Listener::at(&path).unwrap();
        assert_eq!(at(), None);
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let found = at().unwrap();
        assert!(found.to_string().ends_with(&format!(" (pid {})", std::process::id())), "{found}");
        // That connection is in the queue, which has no room for another one.
        assert_eq!(at().unwrap().to_string(), "another process");
        drop(listener);
        assert_eq!(at(), None);
        let other = Listener { process: Some((7, "containerd".to_owned())) };
        assert!(!other.may_be_wharfd() && Listener::of(None).may_be_wharfd());
        let own = Listener { process: Some((7, "wharfd".to_owned())) };
        assert!(own.is_wharfd() && !other.is_wharfd() && !Listener::of(None).is_wharfd());
    }

    #[test]
    fn without_a_descriptor_nobody_is_said_to_serve() {
        let ask = || {
            wharf_sys::seccomp::refuse(Call::SOCKET, Errno::EMFILE).expect("these tests need root");
            Listener::at(Path::new("/no/such/socket"))
        };
        let error = std::thread::spawn(ask).join().unwrap().unwrap_err();
        assert!(wharf_types::chain(&error).contains("LimitNOFILE"), "{error}");
    }
}
