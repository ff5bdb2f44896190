//! A procfs of a PID namespace that others are in, mounted by a process that is not, and is not seen there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use wharf_sys::clone::{Clone, clone};
use wharf_sys::mount::{self, Attributes};
use wharf_sys::process;
use wharf_sys::{Error, Result, descriptors, socket};

use crate::birth::Origin;

/// Makes a procfs of the PID namespace of a process, as a detached mount. This process is in the container's root.
pub(crate) fn of(process: BorrowedFd<'_>, attributes: Attributes, origin: &Origin<'_>) -> Result<OwnedFd> {
    let named = process::pid_namespace(process)
        .and_then(|namespace| mount::new_procfs(namespace.as_fd(), attributes));
    match named {
        // Before Linux 6.17 a procfs is of the namespace of whoever makes it.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOTTY) => {
            by_inhabitant(process, attributes, origin)
        }
        other => other,
    }
}

/// Lets a process in the namespace make it. Bound trees of the host are open here, and that process must not hold them at
/// any moment: it is born of one in between, which closes all before it chooses the namespace.
fn by_inhabitant(process: BorrowedFd<'_>, attributes: Attributes, origin: &Origin<'_>) -> Result<OwnedFd> {
    let (ours, theirs) = socket::pair()?;
    match clone(origin.child.single_threaded(), CloneFlags::empty(), None)? {
        Clone::Child(_) => {
            let sent = be_between(process, attributes, (&theirs, origin));
            process::exit_now(i32::from(sent.is_err()))
        }
        Clone::Parent { pidfd, .. } => {
            drop(theirs);
            let received = socket::receive(ours.as_fd(), &mut [0; 1]);
            process::await_end(pidfd.as_fd())?;
            process::wait(pidfd.as_fd(), process::Reap::Remove)?;
            let (_, descriptors) = received?;
            let gone = || Error::new("fsmount", "proc, in the PID namespace of others", Errno::ESRCH);
            descriptors.into_iter().next().ok_or_else(gone)
        }
    }
}

fn be_between(
    process: BorrowedFd<'_>,
    attributes: Attributes,
    (line, origin): (&OwnedFd, &Origin<'_>),
) -> Result<()> {
    nix::sched::setns(process, CloneFlags::CLONE_NEWPID)
        .map_err(|errno| Error::new("setns", "pid", errno))?;
    // The standard streams too, which are the host's null device.
    descriptors::close_others(origin.child, 0, &[line.as_fd()])?;
    match clone(origin.child.single_threaded(), CloneFlags::empty(), None)? {
        Clone::Child(_) => {
            let made = mount::new_filesystem("proc", &[], attributes);
            let sent = made.and_then(|procfs| socket::send(line.as_fd(), b"P", &[procfs.as_fd()]));
            process::exit_now(i32::from(sent.is_err()))
        }
        Clone::Parent { pidfd, .. } => {
            process::await_end(pidfd.as_fd())?;
            process::wait(pidfd.as_fd(), process::Reap::Remove).map(drop)
        }
    }
}
