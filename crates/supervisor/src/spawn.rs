//! Making a child: its streams, its PID namespace, its cgroup, and nothing of the supervisor's that it does not need.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use wharf_isolation::{Input, Streams};
use wharf_sys::process::{self, Clone, SingleThreaded};
use wharf_sys::{Error, Result, socket};

/// What every child needs of the supervisor.
#[derive(Debug)]
pub(crate) struct Spawner {
    witness: SingleThreaded,
    own_pid_namespace: OwnedFd,
}

/// Which PID namespace a child is made in.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// One of its own, of which it is the first process.
    New,
    /// The supervisor's, which is the host's.
    Host,
    /// That of a process.
    Of(BorrowedFd<'a>),
}

/// A child, seen from the supervisor.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Its reports come here, and its start goes there.
    pub(crate) report: OwnedFd,
}

impl Spawner {
    pub(crate) fn new() -> Result<Self> {
        let own_pid_namespace = wharf_sys::fs::open("/proc/self/ns/pid", OFlag::O_RDONLY)?;
        Ok(Self { witness: SingleThreaded::check()?, own_pid_namespace })
    }

    pub(crate) fn witness(&self) -> &SingleThreaded {
        &self.witness
    }

    /// Makes a child that runs `body` with its end of the report socket. `keep` are the descriptors it may hold.
    pub(crate) fn spawn(
        &self,
        place: &Place<'_>,
        cgroup: Option<BorrowedFd<'_>>,
        keep: &[BorrowedFd<'_>],
        body: impl FnOnce(&OwnedFd),
    ) -> Result<Child> {
        let (report, child_report) = socket::pair()?;
        set_nonblocking(&report)?;
        let flags = match place {
            Place::New => CloneFlags::CLONE_NEWPID,
            Place::Host | Place::Of(_) => CloneFlags::empty(),
        };
        if let Place::Of(process) = place {
            join_pid_namespace(*process)?;
        }
        let cloned = process::clone(&self.witness, flags, cgroup);
        if let Ok(Clone::Child) = cloned {
            let kept: Vec<BorrowedFd<'_>> = keep.iter().copied().chain([child_report.as_fd()]).collect();
            if process::keep_only(&self.witness, &kept).is_ok() {
                body(&child_report);
            }
            process::exit_now(128);
        }
        if matches!(place, Place::Of(_)) {
            // The namespace of children only; the supervisor itself never leaves its own.
            join_pid_namespace(self.own_pid_namespace.as_fd())?;
        }
        match cloned? {
            Clone::Parent { pid, pidfd } => Ok(Child { pid, pidfd, report }),
            Clone::Child => process::exit_now(128),
        }
    }
}

fn join_pid_namespace(of: BorrowedFd<'_>) -> Result<()> {
    nix::sched::setns(of, CloneFlags::CLONE_NEWPID).map_err(|errno| Error::new("setns", "pid", errno))
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
        Input::Empty => (wharf_sys::fs::open("/dev/null", OFlag::O_RDONLY)?, None),
        Input::Kept | Input::Once => {
            let (read, write) = pipe()?;
            (read, Some(write))
        }
    };
    Ok((Streams { stdin, stdout: out, stderr: err }, Pipes { stdout, stderr, stdin: keep }))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("pipe2", "", errno))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| Error::new("fcntl(F_SETFL)", "O_NONBLOCK", errno))
}
