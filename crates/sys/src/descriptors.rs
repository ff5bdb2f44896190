//! The descriptors of a process: those it was started with, and those it keeps.
//!
//! Rust's types say who owns a descriptor, which a child made by clone does not change: whatever it does not need is
//! closed here by number, and only in a process that is known to be such a child.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::clone::Child;
use crate::error::{Error, Named, Result};

/// Whether the standard streams have an owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the three standard streams with which this process was started. This works once.
///
/// # Errors
/// EBADF if one is not open, EBUSY if they have already been taken.
pub fn take_standard_streams() -> Result<[OwnedFd; 3]> {
    for number in 0..3 {
        // SAFETY: F_GETFD only looks.
        let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
        Errno::result(open).map_err(|errno| Error::new("fcntl(F_GETFD)", number.to_string(), errno))?;
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Error::new("dup", "the standard streams, which have an owner", Errno::EBUSY));
    }
    // SAFETY: they are open, whoever started this process gave them to it, and nobody else has taken them.
    Ok([0, 1, 2].map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Standard input. The standard library's handle costs a buffer that nobody reads into.
#[must_use]
pub fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: a program starts with it open, and whoever replaces it leaves something open in its place.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
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
    nix::unistd::dup2_stderr(standard_input()).named("dup2", || "2".into())
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

    /// Whether a number is an open descriptor.
    fn is_open(number: i32) -> bool {
        // SAFETY: F_GETFD only looks.
        unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn a_child_keeps_what_it_names() {
        let open = || std::fs::File::open("/dev/null").unwrap();
        let files = [open(), open(), open()];
        let [first, kept, last] = files.each_ref().map(|file| file.as_raw_fd());
        let named = [files[1].as_fd()];
        match clone3(0, None).unwrap() {
            Clone::Child(child) => {
                let closed = keep_only(&child, &named).is_ok();
                let open = [first, kept, last].map(is_open);
                exit_now(i32::from(!closed || open != [false, true, false]))
            }
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
                assert!([first, kept, last].into_iter().all(is_open), "the parent's are its own");
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
                exit_now(i32::from(!copied || numbers.map(is_open) != [true, false]))
            }
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
                assert!(numbers.into_iter().all(is_open), "the parent's are its own");
            }
        }
    }

    #[test]
    fn the_standard_streams_have_one_owner() {
        let taken = take_standard_streams().unwrap();
        assert_eq!(take_standard_streams().unwrap_err().errno, Errno::EBUSY);
        // They belong to the test process and stay open.
        let numbers = taken.map(std::os::fd::IntoRawFd::into_raw_fd);
        assert_eq!(numbers, [0, 1, 2]);
    }
}
