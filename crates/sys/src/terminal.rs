//! Pseudo-terminals, through their descriptors.
//!
//! A container's terminals are those of its own devpts, and what is at a path there is the container's to choose. So
//! nothing is opened by the name of a terminal, not even its other end. `isolation/src/terminal.rs` makes the pair.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Unlocks the other end of a pseudo-terminal.
///
/// # Errors
/// ENOTTY if the descriptor is not a pseudo-terminal.
pub fn unlock(master: BorrowedFd<'_>) -> Result<()> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int that lives through the call.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("ioctl(TIOCSPTLCK)", "a terminal's master", errno))
}

/// Opens the other end of a pseudo-terminal through its master, whatever is at its path.
///
/// # Errors
/// The kernel's error.
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    let fd = Errno::result(result)
        .map_err(|errno| Error::new("ioctl(TIOCGPTPEER)", "a terminal's master", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal the controlling terminal of this session.
///
/// # Errors
/// EPERM unless this process leads a session without a terminal.
pub fn control(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("ioctl(TIOCSCTTY)", "the terminal", errno))
}

/// Sets a terminal's size in characters.
///
/// # Errors
/// The kernel's error.
pub fn resize(terminal: BorrowedFd<'_>, width: u16, height: u16) -> Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize that lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("ioctl(TIOCSWINSZ)", format!("{width}x{height}"), errno))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_terminal_has_another_end_and_a_size() {
        let master = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
        unlock(master.as_fd()).unwrap();
        let peer = peer(master.as_fd()).unwrap();
        resize(master.as_fd(), 80, 24).unwrap();
        assert!(nix::unistd::isatty(&peer).unwrap());
    }

    #[test]
    fn what_is_no_terminal_is_named() {
        let file = File::open("/dev/null").unwrap();
        let errors = [
            unlock(file.as_fd()).unwrap_err(),
            super::peer(file.as_fd()).unwrap_err(),
            control(file.as_fd()).unwrap_err(),
            resize(file.as_fd(), 1, 1).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.errno == Errno::ENOTTY), "{errors:?}");
    }
}
