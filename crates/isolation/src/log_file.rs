//! Opening a container's log below its directory, so that no link and no special file leads elsewhere.
//!
//! The directory is the request's, and on a node whoever may write to it could put anything there. This is for the
//! daemon and the log writer; no process of a container ever has the file.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::libc::{S_IFMT, S_IFREG};
use nix::sys::stat::{FileStat, fstatat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use wharf_sys::error::Named as _;
use wharf_sys::fs::{Resolve, open, open_below, open_below_mode, split_last};

use crate::plan::LogFile;

impl LogFile {
    /// Creates the file if it is missing, and returns the directory, in which [`open_log`] finds it. Its time is now,
    /// which it is for [`Self::remove_unused`] from then on.
    ///
    /// # Errors
    /// The kernel's error; EINVAL if it is not a regular file.
    pub fn make(&self) -> wharf_sys::Result<OwnedFd> {
        let directory = open(self.directory.as_path(), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let file = open_log(directory.as_fd(), &self.name)?;
        futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)
            .named("futimens", || self.name.clone())?;
        Ok(directory)
    }

    /// Removes the file if nothing is in it and its time is between these, in nanoseconds since the epoch: another one
    /// is another container's. Success also if there is none, or something else in its place.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove_unused(&self, made_ns: &Range<i64>) -> wharf_sys::Result<()> {
        let directory = open(self.directory.as_path(), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let (parent, name) = parent_of(directory.as_fd(), &self.name)?;
        let named = |call| move |errno| wharf_sys::Error::new(call, self.name.as_str(), errno);
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(named("fstatat")(errno)),
            Ok(stat) if stat.st_mode & S_IFMT == S_IFREG && stat.st_size == 0 && is_made(&stat, made_ns) => {
                unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir).map_err(named("unlinkat"))
            }
            Ok(_other) => Ok(()),
        }
    }
}

/// Whether the time of a file is between these. The times of files are a few milliseconds behind.
fn is_made(stat: &FileStat, made_ns: &Range<i64>) -> bool {
    const BEHIND_NS: i64 = 20_000_000;
    let time_ns = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec);
    time_ns >= made_ns.start.saturating_sub(BEHIND_NS) && time_ns < made_ns.end
}

/// Opens a log for appending, and creates it if it is missing. It must be a regular file, because the reader of a FIFO
/// could block the writer.
///
/// # Errors
/// Those of [`LogFile::make`].
pub fn open_log(directory: BorrowedFd<'_>, name: &str) -> wharf_sys::Result<OwnedFd> {
    open_to_append(directory, name, OFlag::O_CREAT, 0o640)
}

/// The same for a log that must be there.
///
/// # Errors
/// Those of [`LogFile::make`], and ENOENT.
pub fn open_existing_log(directory: BorrowedFd<'_>, name: &str) -> wharf_sys::Result<OwnedFd> {
    open_to_append(directory, name, OFlag::empty(), 0)
}

fn open_to_append(
    directory: BorrowedFd<'_>,
    name: &str,
    flags: OFlag,
    mode: u32,
) -> wharf_sys::Result<OwnedFd> {
    let flags = flags | OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open_below_mode(directory, name, flags, mode, Resolve::BeneathNoLinks)?;
    let named = |errno| wharf_sys::Error::new("open", name, errno);
    let stat = nix::sys::stat::fstat(&file).map_err(named)?;
    if stat.st_mode & S_IFMT == S_IFREG { Ok(file) } else { Err(named(Errno::EINVAL)) }
}

/// The directory that a log is in, and its name there.
fn parent_of<'a>(directory: BorrowedFd<'_>, name: &'a str) -> wharf_sys::Result<(OwnedFd, &'a OsStr)> {
    let (parent, last) = split_last(name);
    let parent = if parent.is_empty() { "." } else { parent };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    Ok((open_below(directory, parent, flags, Resolve::BeneathNoLinks)?, last))
}

/// Puts an empty log in the place of the one of this name, and opens it.
///
/// # Errors
/// Those of [`LogFile::make`]; then the old one is still there.
pub fn replace_log(directory: BorrowedFd<'_>, name: &str) -> wharf_sys::Result<OwnedFd> {
    let (parent, last) = parent_of(directory, name)?;
    let new = format!("{}.new", last.display());
    let file = open_log(parent.as_fd(), &new)?;
    // What an earlier attempt left may not be empty.
    nix::unistd::ftruncate(&file, 0).named("ftruncate", || new.clone())?;
    nix::fcntl::renameat(&parent, new.as_str(), &parent, last).named("renameat", || new.clone())?;
    Ok(file)
}
