//! Errors that know their class. This is the only place that judges an errno.

use std::error::Error;
use std::io;

use nix::errno::Errno;

use crate::{ErrorKind, Subject};

/// An error that knows its class. Code that adds context to an error keeps the error as the cause, and keeps its class.
pub trait Failure: Error + Send + Sync + 'static {
    /// The class of the error.
    fn kind(&self) -> ErrorKind;

    /// What it is about.
    fn subject(&self) -> Subject {
        Subject::Other
    }
}

impl Failure for Errno {
    /// A client may retry when the machine is short of something; it can mend nothing else. A file that is missing is
    /// missing to wharf alone, and so is a permission: `NotFound` and `PermissionDenied` would tell a client something
    /// about the object that it named, and on `NotFound` the kubelet forgets a pod. Code whose system call is about a
    /// thing that the request names knows better, and uses [`named`].
    fn kind(&self) -> ErrorKind {
        match self {
            Self::ENOSPC
            | Self::EDQUOT
            | Self::ENOMEM
            | Self::EMFILE
            | Self::ENFILE
            | Self::EAGAIN
            | Self::ENOBUFS => ErrorKind::ResourceExhausted,
            _ => ErrorKind::Internal,
        }
    }
}

/// The class of the kernel's error for a thing that a request or an image names. Its author is at fault if the
/// thing is missing, of another type, too large, or out of reach; any other error, such as that of a broken disk
/// or of a server that does not respond, is this machine's.
#[must_use]
pub fn named(errno: Errno) -> ErrorKind {
    match errno {
        Errno::ENOENT
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EEXIST
        | Errno::ELOOP
        | Errno::ENAMETOOLONG
        | Errno::EXDEV
        | Errno::EACCES
        | Errno::EPERM
        | Errno::EROFS
        | Errno::ENODEV
        | Errno::ENXIO
        | Errno::ETXTBSY
        | Errno::EINVAL
        | Errno::EFBIG
        | Errno::EOPNOTSUPP => ErrorKind::InvalidArgument,
        other => other.kind(),
    }
}

/// Why no process or thread can be started, and what raises it. The kernel does not say which limit it is.
pub const PROCESSES: &str = "a limit on processes was reached: pids.max of a cgroup or of one above it (TasksMax of \
                             wharfd.service), the user's (LimitNPROC) or the machine's (the sysctl kernel.threads-max)";

/// What to do about a disk that has failed, or takes no writes.
pub const FAILED_DISK: &str =
    "a disk has failed, or is mounted read-only: see wharf doctor, and the kernel's log (dmesg)";

/// What to do about an error whose last words are the kernel's for such a disk. The standard library has words of its
/// own, which end with the number.
#[must_use]
pub fn of_disk(message: &str) -> Option<&'static str> {
    let errnos = [Errno::EROFS, Errno::EIO, Errno::ESTALE, Errno::ESHUTDOWN, Errno::EUCLEAN];
    let is_told = |errno: Errno| {
        message.ends_with(errno.desc()) || message.ends_with(&format!("(os error {})", errno as i32))
    };
    errnos.into_iter().any(is_told).then_some(FAILED_DISK)
}

/// The kernel's words for an error. Of a limit on open files they do not say whose it is, so that is said here, with
/// what raises it.
#[must_use]
pub fn words(errno: Errno) -> String {
    match advice(errno) {
        Some(advice) => format!("{}: {advice}", errno.desc()),
        None => errno.desc().to_owned(),
    }
}

/// Which limit an error tells of, and what raises it.
pub(crate) fn advice(errno: Errno) -> Option<&'static str> {
    match errno {
        // Supervisors are given wharfd's limit.
        Errno::EMFILE => {
            Some("the limit is this process's: raise LimitNOFILE of wharfd.service, and restart wharfd")
        }
        Errno::ENFILE => Some("the limit is the machine's: raise the sysctl fs.file-max"),
        _ => None,
    }
}

impl Failure for io::Error {
    /// The class of the errno inside; an error without one did not come from the kernel.
    fn kind(&self) -> ErrorKind {
        self.raw_os_error().map_or(ErrorKind::Internal, |number| Errno::from_raw(number).kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_has_failed_is_known_by_the_last_words() {
        for errno in [Errno::EROFS, Errno::EIO, Errno::EUCLEAN] {
            for words in [errno.desc().to_owned(), io::Error::from(errno).to_string()] {
                assert_eq!(of_disk(&format!("openat(lock): {words}")), Some(FAILED_DISK));
                assert_eq!(of_disk(&format!("{words}: but it went on")), None);
            }
        }
        assert_eq!(of_disk("mkdirat(.b): File exists"), None);
    }

    #[test]
    fn a_limit_is_named_with_what_raises_it() {
        assert_eq!(words(Errno::ENOENT), "No such file or directory");
        assert!(
            words(Errno::EMFILE).starts_with("Too many open files: ")
                && words(Errno::EMFILE).contains("LimitNOFILE")
        );
        assert!(words(Errno::ENFILE).contains("fs.file-max"));
    }

    #[test]
    fn a_machine_that_ran_short_is_told_from_one_that_refuses() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE] {
            assert_eq!(errno.kind(), ErrorKind::ResourceExhausted, "{errno}");
            let error = io::Error::from(errno);
            assert_eq!(Failure::kind(&error), ErrorKind::ResourceExhausted, "{error}");
        }
        for errno in [Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ENOENT, Errno::EINVAL, Errno::EIO] {
            assert_eq!(errno.kind(), ErrorKind::Internal, "{errno}");
        }
        for errno in [Errno::ENOENT, Errno::EACCES, Errno::ENOTDIR, Errno::ELOOP] {
            assert_eq!(named(errno), ErrorKind::InvalidArgument, "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENOMEM, Errno::ENOSPC] {
            assert_eq!(named(errno), ErrorKind::ResourceExhausted, "{errno}");
        }
        for errno in
            [Errno::EIO, Errno::ESTALE, Errno::ENOTCONN, Errno::ETIMEDOUT, Errno::EBADF, Errno::EFAULT]
        {
            assert_eq!(named(errno), ErrorKind::Internal, "{errno}");
        }
        assert_eq!(Failure::kind(&io::Error::other("not from the kernel")), ErrorKind::Internal);
    }
}
