//! A procfs of a PID namespace with other processes in it, mounted by a process that is not in the namespace and not
//! visible there.
//!
//! Before Linux 6.17 a procfs belongs to the namespace of the process that makes it, so a process has to be created
//! there. That process has no memory and no descriptor except a line to an intermediate process, which has nothing
//! either: bound trees of the host are open in this process, and nobody in the namespace may get at them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use wharf_sys::clone::{Child, Clone, clone};
use wharf_sys::error::Named as _;
use wharf_sys::mount::{self, Attributes};
use wharf_sys::process::{self, Reap};
use wharf_sys::script::Script;
use wharf_sys::{Error, Result, descriptors, socket};

use crate::birth::Origin;

/// Makes a procfs of the PID namespace of a process, as a detached mount. This process is in the container's root.
pub(crate) fn of(process: BorrowedFd<'_>, attributes: Attributes, origin: &Origin<'_>) -> Result<OwnedFd> {
    let named = process::pid_namespace(process)
        .and_then(|namespace| mount::new_procfs(namespace.as_fd(), attributes));
    match named {
        // EINVAL before Linux 6.17, ENOTTY before 6.11.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOTTY) => {
            by_inhabitant(process, attributes, origin.child)
        }
        other => other,
    }
}

/// Has a process in the namespace make it.
fn by_inhabitant(process: BorrowedFd<'_>, attributes: Attributes, child: &Child) -> Result<OwnedFd> {
    let (ours, theirs) = socket::pair()?;
    match clone(child.single_threaded(), CloneFlags::empty(), None)? {
        Clone::Child(between) => {
            be_between(process, attributes, theirs, &between);
            process::exit_now(0)
        }
        Clone::Parent { pidfd, .. } => {
            drop(theirs);
            let made = take_procfs(ours.as_fd());
            reap(pidfd.as_fd())?;
            made
        }
    }
}

/// Takes the mount: the intermediate process sends the line to the process created in the namespace, which sends the
/// mount.
fn take_procfs(between: BorrowedFd<'_>) -> Result<OwnedFd> {
    let failed = |errno| Error::new("fsmount", "proc, in the PID namespace of others", errno);
    // A descriptor, or the errno; neither if the sender was killed.
    let take = |from: BorrowedFd<'_>| {
        let mut told = [0; size_of::<isize>()];
        let (count, sent) = socket::receive(from, &mut told)?;
        let errno = i32::try_from(isize::from_ne_bytes(told)).ok().filter(|_| count == told.len());
        let errno = errno.map_or(Errno::ESRCH, Errno::from_raw);
        sent.into_iter().next().ok_or_else(|| failed(errno))
    };
    let line = take(between)?;
    take(line.as_fd())
}

/// A failure is told to the parent: directly until that has the line, and on the line from then on.
fn be_between(process: BorrowedFd<'_>, attributes: Attributes, parent: OwnedFd, between: &Child) {
    match pass_line(process, &parent) {
        Err(error) => tell(parent.as_fd(), &error),
        Ok(()) => {
            drop(parent);
            if let Err(error) = make_inhabitant(attributes, between) {
                descriptors::standard_input().into_iter().for_each(|line| tell(line, &error));
            }
        }
    }
}

/// Enters the namespace, and makes the line. Its own end is its standard input.
fn pass_line(process: BorrowedFd<'_>, parent: &OwnedFd) -> Result<()> {
    nix::sched::setns(process, CloneFlags::CLONE_NEWPID).named("setns", || "CLONE_NEWPID".into())?;
    // Made here, because whoever has one of its ends can ask for a descriptor of its maker.
    let (theirs, ours) = socket::pair()?;
    socket::send(parent.as_fd(), b"L", &[theirs.as_fd()])?;
    nix::unistd::dup2_stdin(&ours).named("dup2", || "standard input".into())
}

fn make_inhabitant(attributes: Attributes, between: &Child) -> Result<()> {
    // The other standard streams, too, which are the host's null device.
    descriptors::close_others(between, 1, &[])?;
    let mut script = Script::new(descriptors::standard_input()?);
    script.send_procfs(attributes);
    let born = script.prepare()?.keep_memory(between)?.clone_child().map_err(|error| match error.errno {
        // The namespace's first process has ended.
        Errno::ENOMEM => Error { errno: Errno::ESRCH, ..error },
        _ => error,
    })?;
    reap(born.as_fd())
}

/// Tells the parent the errno.
fn tell(parent: BorrowedFd<'_>, error: &Error) {
    let _parent_may_be_gone = socket::send(parent, &(error.errno as isize).to_ne_bytes(), &[]);
}

fn reap(process: BorrowedFd<'_>) -> Result<()> {
    process::await_end(process)?;
    process::wait(process, Reap::Remove).map(drop)
}
