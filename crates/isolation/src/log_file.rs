//! Opening a container's log: below its directory, so that no link and no special file leads elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{S_IFMT, S_IFREG};
use wharf_sys::fs::{Resolve, open, open_below_mode};

use crate::plan::LogFile;

impl LogFile {
    /// Makes the file where it is missing; returns the directory, which [`open_log`] finds it in.
    ///
    /// # Errors
    /// The kernel's; EINVAL if there is something else than a regular file.
    pub fn make(&self) -> wharf_sys::Result<OwnedFd> {
        let directory = open(self.directory.as_path(), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        open_log(directory.as_fd(), &self.name)?;
        Ok(directory)
    }
}

/// Opens a log for appending, making it where it is missing. Only a regular file, so that no reader of a FIFO can stop who
/// writes.
///
/// # Errors
/// As [`LogFile::make`].
pub fn open_log(directory: BorrowedFd<'_>, name: &str) -> wharf_sys::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open_below_mode(directory, name, flags, 0o640, Resolve::BeneathNoLinks)?;
    let named = |errno| wharf_sys::Error::new("open", name, errno);
    let stat = nix::sys::stat::fstat(&file).map_err(named)?;
    if stat.st_mode & S_IFMT == S_IFREG { Ok(file) } else { Err(named(Errno::EINVAL)) }
}
