//! The descriptors of a process: those it was started with, and those it keeps.
//!
//! Rust's types say who owns a descriptor, which a child made by clone does not change: whatever it does not need is
//! closed here by number, and only in a process that is known to be such a child.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;

use crate::clone::Child;
use crate::error::{Error, Named, Result};

/// What has become of the standard streams: one of the three below. Whoever owns them may close them, so a process
/// that has lent one for good never gives them away, and the other way round.
static STREAMS: AtomicU8 = AtomicU8::new(FREE);
const FREE: u8 = 0;
const LENT: u8 = 1;
const TAKEN: u8 = 2;

/// Takes the three standard streams with which this process was started. This works once.
///
/// # Errors
/// EBADF if one is not open, EBUSY if they have been taken, or standard input has been lent.
pub fn take_standard_streams() -> Result<[OwnedFd; 3]> {
    (0..3).try_for_each(is_open)?;
    if STREAMS.compare_exchange(FREE, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return Err(Error::new("dup", "the standard streams, which have an owner or are lent", Errno::EBUSY));
    }
    // SAFETY: they are open, whoever started this process gave them to it, and nobody else has or gets them.
    Ok([0, 1, 2].map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Standard input. The standard library's handle costs a buffer that nobody reads into.
///
/// # Errors
/// EBADF if it is not open, EBUSY if it has an owner, who may close it.
pub fn standard_input() -> Result<BorrowedFd<'static>> {
    is_open(libc::STDIN_FILENO)?;
    if let Err(TAKEN) = STREAMS.compare_exchange(FREE, LENT, Ordering::Relaxed, Ordering::Relaxed) {
        return Err(Error::new("dup", "standard input, which has an owner", Errno::EBUSY));
    }
    // SAFETY: it is open and never gets an owner. Only an owner can close it; whoever replaces it leaves something
    // open in its place.
    Ok(unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) })
}

fn is_open(number: RawFd) -> Result<()> {
    // SAFETY: F_GETFD only looks.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
    Errno::result(open).map(drop).map_err(|errno| Error::new("fcntl(F_GETFD)", number.to_string(), errno))
}

/// Marks every descriptor from `first` on as close-on-exec.
///
/// # Errors
/// The kernel's error; ENOSYS before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: three integers; descriptors stay open until an exec.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("close_range", first.to_string(), errno))
}

/// Gives a child that shares its parent's descriptors a table of its own, with copies of those up to `last`.
///
/// # Errors
/// The kernel's error; ENOSYS before Linux 5.9.
pub fn copy_up_to(_child: &Child, last: RawFd) -> Result<()> {
    let first = last.cast_unsigned() + 1;
    // SAFETY: three integers; what is closed are copies that nobody in this child uses.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("close_range", first.to_string(), errno))
}

/// Closes every descriptor from 3 on except those in `keep`, and replaces standard error, which is the parent's log,
/// with standard input. It is a child's first step, so that nothing of its parent leaks into it.
///
/// # Errors
/// The kernel's error.
pub fn keep_only(child: &Child, keep: &[BorrowedFd<'_>]) -> Result<()> {
    close_others(child, 3, keep)?;
    nix::unistd::dup2_stderr(standard_input()?).named("dup2", || "2".into())
}

/// Closes every descriptor from `first` on except those in `keep`.
///
/// # Errors
/// The kernel's error.
pub fn close_others(_child: &Child, first: u32, keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut numbers: Vec<u32> =
        keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).filter(|&fd| fd >= first).collect();
    numbers.sort_unstable();
    let mut first = first;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: only a new child calls this, which shows a witness of that. Whoever owns these descriptors owns them in
    // the parent; the child uses none of those that it did not name.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("close_range", format!("{first}, {last}"), errno))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::clone::{Clone, clone3};
    use crate::process::{Ended, Reap, await_end, exit_now, wait};

    #[test]
    fn a_child_keeps_what_it_names() {
        let open = || std::fs::File::open("/dev/null").unwrap();
        let files = [open(), open(), open()];
        let [first, kept, last] = files.each_ref().map(|file| file.as_raw_fd());
        let named = [files[1].as_fd()];
        match clone3(0, None).unwrap() {
            Clone::Child(child) => {
                let closed = keep_only(&child, &named).is_ok();
                let open = [first, kept, last].map(|number| is_open(number).is_ok());
                exit_now(i32::from(!closed || open != [false, true, false]))
            }
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
                assert!(
                    [first, kept, last].into_iter().all(|number| is_open(number).is_ok()),
                    "the parent's are its own"
                );
            }
        }
    }

    #[test]
    fn a_child_that_shares_all_descriptors_goes_on_with_the_lowest() {
        let files = [(); 2].map(|()| std::fs::File::open("/dev/null").unwrap());
        let mut numbers = files.each_ref().map(|file| file.as_raw_fd());
        numbers.sort_unstable();
        match clone3(u64::from(libc::CLONE_FILES.cast_unsigned()), None).unwrap() {
            Clone::Child(child) => {
                let copied = copy_up_to(&child, numbers[0]).is_ok();
                exit_now(i32::from(!copied || numbers.map(|number| is_open(number).is_ok()) != [true, false]))
            }
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
                assert!(
                    numbers.into_iter().all(|number| is_open(number).is_ok()),
                    "the parent's are its own"
                );
            }
        }
    }

    /// Runs a check in a child, whose standard streams nobody has taken yet.
    fn holds_in_a_child(check: impl FnOnce() -> bool) {
        match clone3(0, None).unwrap() {
            Clone::Child(_) => exit_now(i32::from(!check())),
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
            }
        }
    }

    fn is_busy<T>(result: Result<T>) -> bool {
        result.is_err_and(|error| error.errno == Errno::EBUSY)
    }

    #[test]
    fn standard_streams_with_an_owner_are_nobody_elses() {
        holds_in_a_child(|| {
            let Ok(taken) = take_standard_streams() else { return false };
            let numbers = taken.each_ref().map(AsRawFd::as_raw_fd);
            numbers == [0, 1, 2] && is_busy(take_standard_streams()) && is_busy(standard_input())
        });
    }

    #[test]
    fn a_standard_input_that_is_lent_never_gets_an_owner() {
        holds_in_a_child(|| {
            let lent = standard_input().is_ok() && standard_input().is_ok();
            lent && is_busy(take_standard_streams()) && is_open(0).is_ok()
        });
        holds_in_a_child(|| {
            let closed = take_standard_streams().map(drop).is_ok();
            closed && standard_input().is_err_and(|error| error.errno == Errno::EBADF)
        });
    }
}
