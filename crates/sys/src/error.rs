//! The error of a system call: which call, on what, and what the kernel said.

use nix::errno::Errno;
use wharf_types::{ErrorKind, Failure};

/// A failed system call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}({arguments}): {errno}", errno = .errno.desc())]
pub struct Error {
    /// The name of the call, as its manual page has it.
    pub call: &'static str,
    /// The arguments that matter, for people.
    pub arguments: String,
    /// What the kernel answered.
    pub errno: Errno,
}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Names a call and its arguments beside the kernel's answer.
    pub fn new(call: &'static str, arguments: impl Into<String>, errno: Errno) -> Self {
        Self { call, arguments: arguments.into(), errno }
    }
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        self.errno.kind()
    }
}

/// Turns a result of `nix` into one that names the call and its arguments.
pub trait Named<T> {
    /// Adds the call's name and arguments to the error.
    ///
    /// # Errors
    /// The same failure, named.
    fn named(self, call: &'static str, arguments: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Named<T> for nix::Result<T> {
    fn named(self, call: &'static str, arguments: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::new(call, arguments(), errno))
    }
}

impl<T> Named<T> for rustix::io::Result<T> {
    fn named(self, call: &'static str, arguments: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::new(call, arguments(), Errno::from_raw(errno.raw_os_error())))
    }
}

impl<T> Named<T> for std::io::Result<T> {
    fn named(self, call: &'static str, arguments: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            Error::new(call, arguments(), Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        })
    }
}
