//! A process's standard streams: where they come from, who owns them, and that none of them is the host's.
//!
//! The supervisor or the daemon makes the pipes. Here they are given to the container's user, so that a program can
//! open `/dev/stdout` again, and put in their places. An input that nobody asked for is the container's own null
//! device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat, makedev};
use nix::unistd::Uid;
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open_below};

use crate::error::{Error, Stage};
use crate::root::kind;
use crate::terminal::Terminal;

const STAGE: &str = "connecting the standard streams";

/// The other end of a stream.
#[derive(Debug)]
pub enum Stream {
    /// The container's own null device.
    Null,
    /// A pipe.
    Pipe(OwnedFd),
}

/// The three streams of a process without a terminal.
#[derive(Debug)]
pub struct Streams {
    /// Standard input.
    pub stdin: Stream,
    /// Standard output.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
}

impl Stream {
    /// Takes a descriptor. In place of a null device, which is the host's, the container gets its own.
    ///
    /// # Errors
    /// EINVAL for any other device, because a container could change its mode and owner; or the kernel's error.
    pub fn new(fd: OwnedFd) -> wharf_sys::Result<Self> {
        let stat = fstat(&fd).named("fstat", || "a standard stream".into())?;
        match kind(&stat) {
            _ if is_null_device(&stat) => Ok(Self::Null),
            SFlag::S_IFCHR | SFlag::S_IFBLK => Err(wharf_sys::Error::new("fstat", "a device", Errno::EINVAL)),
            _ => Ok(Self::Pipe(fd)),
        }
    }
}

impl Streams {
    /// Gives them to a user of the host, whom a process in a user namespace may not know.
    pub(crate) fn give(&self, uid: u32) -> Result<(), Error> {
        self.descriptors().into_iter().try_for_each(|stream| give(stream, uid))
    }

    /// The descriptors that a child needs for them.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .filter_map(|stream| match stream {
                Stream::Null => None,
                Stream::Pipe(fd) => Some(fd.as_fd()),
            })
            .collect()
    }
}

/// Opens the container's `/dev/null`, and checks that it is one: a link or a file there would be written to.
pub(crate) fn open_null(root: BorrowedFd<'_>, flags: OFlag) -> wharf_sys::Result<OwnedFd> {
    let null = open_below(root, "dev/null", flags, Resolve::BeneathNoLinks)?;
    if is_null_device(&fstat(&null).named("fstat", || "/dev/null".into())?) {
        return Ok(null);
    }
    Err(wharf_sys::Error::new("open", "the container's /dev/null is not device 1:3", Errno::ENODEV))
}

/// What this process's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connected {
    Streams,
    Terminal,
}

/// Makes the terminal, or else the streams, this process's standard input, output and error.
pub(crate) fn connect(
    root: BorrowedFd<'_>,
    streams: &Streams,
    terminal: Option<&Terminal>,
) -> Result<Connected, Error> {
    if let Some(Terminal { peer, .. }) = terminal {
        return replace([peer.as_fd(); 3]).map(|()| Connected::Terminal);
    }
    let all = [&streams.stdin, &streams.stdout, &streams.stderr];
    let null = match all {
        [Stream::Pipe(_), Stream::Pipe(_), Stream::Pipe(_)] => None,
        // O_NONBLOCK has no effect on it, but what a container put in its place must not block this process.
        _ => Some(open_null(root, OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK).stage(STAGE)?),
    };
    let mut chosen = Vec::with_capacity(all.len());
    for stream in all {
        match (stream, &null) {
            (Stream::Pipe(fd), _) => chosen.push(fd.as_fd()),
            (Stream::Null, Some(null)) => chosen.push(null.as_fd()),
            (Stream::Null, None) => {}
        }
    }
    match <[BorrowedFd<'_>; 3]>::try_from(chosen) {
        Ok(chosen) => replace(chosen).map(|()| Connected::Streams),
        Err(_fewer) => {
            Err(wharf_sys::Error::new("dup2", "fewer than three streams", Errno::EBADF)).stage(STAGE)
        }
    }
}

/// Gives a stream or a terminal to a user, by the number in this process's user namespace: a program reopens its output
/// as `/dev/stdout` or by its terminal's name. The group stays: a terminal's is the one with which its file system was
/// mounted.
pub(crate) fn give(fd: BorrowedFd<'_>, uid: u32) -> Result<(), Error> {
    let given = nix::unistd::fchown(fd, Some(Uid::from_raw(uid)), None);
    given.named("fchown", || uid.to_string()).stage(STAGE)
}

fn replace([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> Result<(), Error> {
    nix::unistd::dup2_stdin(stdin).named("dup2", || "standard input".into()).stage(STAGE)?;
    nix::unistd::dup2_stdout(stdout).named("dup2", || "standard output".into()).stage(STAGE)?;
    nix::unistd::dup2_stderr(stderr).named("dup2", || "standard error".into()).stage(STAGE)
}

fn is_null_device(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == makedev(1, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_of_the_host_is_handed_on() {
        let open = |path| wharf_sys::fs::open(path, OFlag::O_RDWR).unwrap();
        assert!(matches!(Stream::new(open("/dev/null")), Ok(Stream::Null)));
        assert!(Stream::new(open("/dev/zero")).is_err());
        let (read, _write) = nix::unistd::pipe().unwrap();
        assert!(matches!(Stream::new(read), Ok(Stream::Pipe(_))));
    }
}
