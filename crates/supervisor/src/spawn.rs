//! Spawning a child: with its streams and its cgroup, and with nothing of the supervisor's that it does not need.
//!
//! The supervisor has one thread, which a witness proves, so a child may run ordinary code after the clone. Every
//! descriptor that is not named is closed first: the daemon's connection and other containers' pipes must not get into
//! a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use wharf_isolation::{Input, Origin, Place, Stream, Streams};
use wharf_sys::clone::{self, Clone, SingleThreaded, clone, end_with_parent};
use wharf_sys::{Error, Result, descriptors, process, signals, socket};

use crate::child::{Child, Role};

/// What every child needs from the supervisor.
#[derive(Debug)]
pub(crate) struct Spawner {
    witness: SingleThreaded,
}

impl Spawner {
    /// Also sets the signals of this process as its children need them.
    pub(crate) fn new() -> Result<Self> {
        signals::reset_actions()?;
        Ok(Self { witness: SingleThreaded::check()? })
    }

    pub(crate) fn witness(&self) -> &SingleThreaded {
        &self.witness
    }

    /// Spawns a child that runs `body`, in a PID namespace of its own or in the supervisor's. It may keep the
    /// descriptors `keep` and its end of the report socket.
    pub(crate) fn spawn(
        &self,
        place: Place<'_>,
        cgroup: Option<BorrowedFd<'_>>,
        keep: &[BorrowedFd<'_>],
        body: impl FnOnce(Origin<'_>),
    ) -> Result<Child> {
        let (report, line) = socket::pair()?;
        set_nonblocking(&report)?;
        let role = match place {
            Place::New | Place::Host => Role::Program,
            Place::Of(..) => Role::Creator,
            Place::Runtimes(_) => Role::Caller,
            Place::Sandbox(_) => Role::Attendant,
        };
        let is_new = matches!(place, Place::New);
        let flags = if is_new { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let end_with = (role != Role::Program).then(std::process::id);
        match clone(&self.witness, flags, cgroup)? {
            Clone::Parent { pid, pidfd } => Ok(Child::new(pid, pidfd, report, role)),
            Clone::Child(child) => {
                match leave(&child, &[keep, &[line.as_fd()][..]].concat(), end_with) {
                    Ok(()) => body(Origin { place, line, child: &child }),
                    Err(source) => report_failure(&line, source),
                }
                process::exit_now(128)
            }
        }
    }
}

fn report_failure(line: &OwnedFd, source: Error) {
    let error = wharf_isolation::Error::Stage { stage: "leaving the supervisor", source };
    wharf_isolation::report_failure(line, &error);
}

/// Leaves the supervisor, in its child: closes everything that is not to be kept. A process that never becomes the
/// program's must also `end_with` the supervisor: it may not even be in its cgroup yet, through which the container's
/// processes are found.
fn leave(child: &clone::Child, keep: &[BorrowedFd<'_>], end_with: Option<u32>) -> Result<()> {
    descriptors::keep_only(child, keep)?;
    match end_with.map(end_with_parent).transpose()? {
        Some(false) => Err(Error::new("prctl", "PR_SET_PDEATHSIG, the supervisor has ended", Errno::ESRCH)),
        Some(true) | None => Ok(()),
    }
}

/// The supervisor's ends of a container's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
}

/// Makes a container's pipes. Its input is empty unless it is to stay open.
pub(crate) fn pipes(input: Input) -> Result<(Streams, Pipes)> {
    let (stdout, out) = pipe()?;
    let (stderr, err) = pipe()?;
    set_nonblocking(&stdout)?;
    set_nonblocking(&stderr)?;
    let (stdin, keep) = match input {
        Input::Empty => (Stream::Null, None),
        Input::Kept | Input::Once => {
            let (read, write) = pipe()?;
            (Stream::Pipe(read), Some(write))
        }
    };
    Ok((
        Streams { stdin, stdout: Stream::Pipe(out), stderr: Stream::Pipe(err) },
        Pipes { stdout, stderr, stdin: keep },
    ))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("pipe2", "O_CLOEXEC", errno))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| Error::new("fcntl(F_SETFL)", "O_NONBLOCK", errno))
}
