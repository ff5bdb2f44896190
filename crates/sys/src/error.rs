//! The error of a system call: the call, its arguments, and the kernel's errno.
//!
//! The arguments are the call's own, so a message shows what was tried. Which errno means what to a caller is decided
//! in `types`.

use nix::errno::Errno;
use wharf_types::{ErrorKind, Failure, failure};

/// A failed system call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}({arguments}): {words}", words = words(.call, *.errno))]
pub struct Error {
    /// The name of the call, as in its manual page.
    pub call: &'static str,
    /// The relevant arguments, for people.
    pub arguments: String,
    /// The kernel's error.
    pub errno: Errno,
}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error from the call, its arguments and the errno.
    pub fn new(call: &'static str, arguments: impl Into<String>, errno: Errno) -> Self {
        Self { call, arguments: arguments.into(), errno }
    }
}

/// The kernel's words; for a limit, also whose it is and what raises it.
fn words(call: &str, errno: Errno) -> String {
    match (call, errno) {
        ("clone" | "clone3", Errno::EAGAIN) => format!("{}: {}", errno.desc(), failure::PROCESSES),
        _ => failure::words(errno),
    }
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        self.errno.kind()
    }
}

/// Adds the call and its arguments to an error of `nix`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_named_with_what_raises_it() {
        let told = |call, errno| Error::new(call, "x", errno).to_string();
        assert_eq!(told("open", Errno::EAGAIN), "open(x): Try again");
        assert!(told("open", Errno::EMFILE).contains("LimitNOFILE"));
        for call in ["clone", "clone3"] {
            let text = told(call, Errno::EAGAIN);
            assert!(["pids.max", "TasksMax", "LimitNPROC"].iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
