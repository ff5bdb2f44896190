//! Creating processes with clone3(2).
//!
//! A child is a copy of its parent, with a single thread. Whatever another thread of the parent was doing is never
//! finished in the child, so that a lock held by that thread stays locked. Hence two witnesses. [`SingleThreaded`] says
//! that there is no other thread, and is required for making a child that runs ordinary code. [`Child`] says that this
//! process is such a child: it may close what it inherited and does not use, whoever owns that in the parent.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use crate::error::{Error, Named, Result};
use crate::mapping::Mapping;
use crate::process::{exit_now, prctl};
use crate::raw;

/// A witness that this process has one thread. That thread holds it, and it cannot be sent to another one.
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Counts the threads. The holder of the witness must start none.
    ///
    /// # Errors
    /// EBUSY if there is more than one, or the kernel's error if `/proc` cannot be read.
    pub fn check() -> Result<Self> {
        let tasks =
            std::fs::read_dir("/proc/self/task").named("readdir", || "/proc/self/task".into())?.count();
        if tasks == 1 {
            Ok(Self(PhantomData))
        } else {
            Err(Error::new("clone3", format!("{tasks} threads"), Errno::EBUSY))
        }
    }
}

/// A witness that this process was cloned and has not executed a program since.
#[derive(Debug)]
pub struct Child(SingleThreaded);

impl Child {
    /// A new process has one thread.
    #[must_use]
    pub fn single_threaded(&self) -> &SingleThreaded {
        &self.0
    }

    /// For the child's side of a clone.
    pub(crate) fn new() -> Self {
        Self(SingleThreaded(PhantomData))
    }
}

/// The side of a clone.
#[derive(Debug)]
pub enum Clone {
    /// The new process.
    Child(Child),
    /// The process that cloned, with the child's pid (for printing) and pidfd (for acting).
    Parent {
        /// The child's pid in the parent's PID namespace.
        pid: i32,
        /// The child.
        pidfd: OwnedFd,
    },
}

/// The kernel's `CLONE_INTO_CGROUP`, which does not fit an int.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process into new namespaces, and into a cgroup (v2) if one is given.
///
/// # Errors
/// The kernel's error; EAGAIN at a limit on pids.
pub fn clone(
    _witness: &SingleThreaded,
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Clone> {
    let side = clone3(u64::from(namespaces.bits().cast_unsigned()), cgroup)?;
    if let Clone::Child(_) = side {
        end_by_panic();
    }
    Ok(side)
}

/// Makes a panic exit instead of abort. A C library still remembers the parent's pid in a child that it did not make
/// itself, and abort would signal whichever process has that pid in the child's PID namespace.
fn end_by_panic() {
    std::panic::set_hook(Box::new(|_| exit_now(134)));
}

/// Forks with flags that share nothing. Unless this process has only one thread, the child may make system calls and
/// nothing else.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Clone> {
    let mut pidfd: libc::c_int = -1;
    let mut args = arguments(flags, cgroup, &mut pidfd);
    // SAFETY: `args` lives through the call and no stack is given, so this is a fork; that no lock is needed in the
    // child which another thread held is for the callers, of which all outside of this crate show a witness.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let pid =
        Errno::result(result).map_err(|errno| Error::new("clone3", format!("flags {flags:#x}"), errno))?;
    if pid == 0 {
        return Ok(Clone::Child(Child::new()));
    }
    // SAFETY: the kernel stored a new descriptor there, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Clone::Parent { pid: i32::try_from(pid).unwrap_or(-1), pidfd })
}

fn arguments(flags: u64, cgroup: Option<BorrowedFd<'_>>, pidfd: &mut libc::c_int) -> libc::clone_args {
    // SAFETY: all-zero bytes are a valid clone_args: plain integers, where 0 means unset.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = (&raw mut *pidfd).expose_provenance() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    args
}

/// More than the frames of a few system calls need, even in an unoptimised build.
const STACK_BYTES: usize = 64 << 10;

/// Makes a child in this process's memory, which runs `body` and then ends or becomes another program; this thread
/// waits until then. Nothing is copied: a fork takes longer the larger the process is, and afterwards its threads take
/// a page fault for each page that they write.
///
/// `body` may do whatever this waiting thread may do. If it returns, the child exits with 127.
///
/// # Errors
/// The kernel's error.
pub(crate) fn clone_to_execute<T: FnMut(&Child)>(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: &mut T,
) -> Result<OwnedFd> {
    unsafe extern "C" fn run<T: FnMut(&Child)>(body: *mut T) -> ! {
        // SAFETY: whoever lent it waits.
        unsafe { (*body)(&Child::new()) };
        exit_now(127)
    }
    // Not on this thread's own stack: each thread of a pool would keep the pages.
    let stack = Mapping::new(STACK_BYTES)?;
    let mut pidfd: libc::c_int = -1;
    let flags = flags | u64::from((libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned());
    let mut args = arguments(flags, cgroup, &mut pidfd);
    args.stack = stack.range().start as u64;
    args.stack_size = STACK_BYTES as u64;
    // SAFETY: the stack is this call's and used by nobody else. With CLONE_VFORK this thread goes on when the child has
    // ended or executed a program, so all that `body` borrows lives as long as the child may use it.
    let result = unsafe { raw::clone3(&mut args, run::<T>, body) };
    if result < 0 {
        let errno = Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EIO));
        return Err(Error::new("clone3", format!("flags {flags:#x}"), errno));
    }
    // SAFETY: the kernel stored a new descriptor there, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Has the kernel kill this process when its parent ends; `false` if the parent, given by its pid, has already ended. A
/// change of user resets this.
///
/// # Errors
/// The kernel's error.
pub fn end_with_parent(parent: u32) -> Result<bool> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL.cast_unsigned().into(), 0)?;
    Ok(std::os::unix::process::parent_id() == parent)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::process::{Ended, Reap, await_end, wait};

    #[test]
    fn a_process_with_threads_is_no_witness() {
        // The test's own thread, besides the one that waits for it.
        assert_eq!(SingleThreaded::check().unwrap_err().errno, Errno::EBUSY);
    }

    #[test]
    fn a_child_ends_with_its_code_and_is_reaped_once() {
        match clone3(0, None).unwrap() {
            Clone::Child(_) => exit_now(7),
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Leave).unwrap(), Some(Ended::Code(7)));
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(7)));
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap_err().errno, Errno::ECHILD);
            }
        }
    }

    /// A signal would go to whichever process has the parent's number in the child's PID namespace.
    #[test]
    fn a_child_that_panics_exits_and_signals_nobody() {
        // A child that only panics needs no lock that another thread may have held.
        match clone(&SingleThreaded(PhantomData), CloneFlags::empty(), None).unwrap() {
            Clone::Child(_) => panic!("a child's"),
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(134)));
            }
        }
    }

    #[test]
    fn a_child_in_this_memory_has_run_when_its_maker_goes_on() {
        let (mut ran, own) = (Vec::new(), std::process::id());
        let mut body = |_: &Child| ran.push(nix::unistd::getpid().as_raw().cast_unsigned() != own);
        let pidfd = clone_to_execute(0, None, &mut body).unwrap();
        await_end(pidfd.as_fd()).unwrap();
        assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(127)));
        assert_eq!(ran, [true]);
        let threads = u64::try_from(libc::CLONE_THREAD).unwrap();
        assert_eq!(clone_to_execute(threads, None, &mut |_| {}).unwrap_err().errno, Errno::EINVAL);
    }

    #[test]
    fn impossible_flags_and_what_is_no_cgroup_are_errors() {
        let threads = u64::try_from(libc::CLONE_THREAD).unwrap();
        let error = clone3(threads, None).unwrap_err();
        assert_eq!((error.errno, error.arguments.as_str()), (Errno::EINVAL, "flags 0x10000"));
        let file = std::fs::File::open("/tmp").unwrap();
        assert_eq!(clone3(0, Some(file.as_fd())).unwrap_err().call, "clone3");
    }
}
