//! Making a child: its streams, its cgroup, and nothing of the supervisor's that it does not need.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use wharf_isolation::{Input, Origin, Place, Stream, Streams};
use wharf_sys::process::{self, Clone, Reap, SingleThreaded};
use wharf_sys::{Error, Result, socket};

use crate::kill;

/// What every child needs of the supervisor.
#[derive(Debug)]
pub(crate) struct Spawner {
    witness: SingleThreaded,
}

/// A child, seen from the supervisor.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Its reports come here, and its start goes there.
    pub(crate) report: OwnedFd,
    pub(crate) kin: Kin,
}

/// Which of two processes a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kin {
    /// The one that executes the program.
    Itself,
    /// One that is out of sight of the container, and of which that one will be born.
    Parent,
}

impl Child {
    /// Takes the process that was born for the one that it was born of, which is returned and about to end.
    pub(crate) fn take_over(&mut self, pid: i32, pidfd: OwnedFd) -> OwnedFd {
        self.pid = pid;
        self.kin = Kin::Itself;
        std::mem::replace(&mut self.pidfd, pidfd)
    }

    /// Ends a child that cannot be watched: nobody would ever learn of its end.
    pub(crate) fn abandon(&self) {
        kill::signal(self.pidfd.as_fd(), 9);
    }
}

impl Spawner {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { witness: SingleThreaded::check()? })
    }

    pub(crate) fn witness(&self) -> &SingleThreaded {
        &self.witness
    }

    /// Makes a child that runs `body`, in a PID namespace of its own or in the supervisor's. `keep` are the descriptors it
    /// may hold beside its end of the report socket.
    pub(crate) fn spawn(
        &self,
        place: Place<'_>,
        cgroup: Option<BorrowedFd<'_>>,
        keep: &[BorrowedFd<'_>],
        body: impl FnOnce(&Origin<'_>),
    ) -> Result<Child> {
        let (report, child_report) = socket::pair()?;
        set_nonblocking(&report)?;
        let (flags, kin) = match place {
            Place::New => (CloneFlags::CLONE_NEWPID, Kin::Itself),
            Place::Host => (CloneFlags::empty(), Kin::Itself),
            Place::Of(_) => (CloneFlags::empty(), Kin::Parent),
        };
        let supervisor = std::process::id();
        match process::clone(&self.witness, flags, cgroup)? {
            Clone::Parent { pid, pidfd } => Ok(Child { pid, pidfd, report, kin }),
            Clone::Child => {
                let kept: Vec<BorrowedFd<'_>> = keep.iter().copied().chain([child_report.as_fd()]).collect();
                let alone = process::keep_only(&self.witness, &kept).is_ok();
                // One that is never the program's process does not outlive the supervisor: it may not even be in its
                // cgroup yet, by which the container's processes are found.
                if alone && (kin == Kin::Itself || process::end_with_parent(supervisor) == Ok(true)) {
                    body(&Origin { place, supervisor: &child_report, witness: &self.witness });
                }
                process::exit_now(128)
            }
        }
    }
}

/// Processes that others were born of, until they have ended.
#[derive(Debug, Default)]
pub(crate) struct Spent(Vec<OwnedFd>);

impl Spent {
    pub(crate) fn add(&mut self, pidfd: OwnedFd) {
        self.0.push(pidfd);
    }

    /// Reaps those that have ended.
    pub(crate) fn reap(&mut self) {
        self.0.retain(|pidfd| matches!(process::wait(pidfd.as_fd(), Reap::Remove), Ok(None)));
    }
}

/// The supervisor's ends of a container's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
}

/// Makes the pipes of a container; its input is empty unless it is to stay open.
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
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("pipe2", "", errno))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| Error::new("fcntl(F_SETFL)", "O_NONBLOCK", errno))
}
