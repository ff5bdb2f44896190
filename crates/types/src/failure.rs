//! Errors that know their class. This is the only place that judges an errno.

use std::error::Error;
use std::io;

use nix::errno::Errno;

use crate::ErrorKind;

/// An error that knows its class. Code that adds context to an error keeps the error as the cause, and keeps its class.
pub trait Failure: Error + Send + Sync + 'static {
    /// The class of the error.
    fn kind(&self) -> ErrorKind;
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

/// The class of the kernel's error for a thing that a request or an image names: its author is at fault, unless the
/// machine is short of something or a disk is broken.
#[must_use]
pub fn named(errno: Errno) -> ErrorKind {
    match errno {
        Errno::EIO => ErrorKind::Internal,
        _ if errno.kind() == ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
        _ => ErrorKind::InvalidArgument,
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
    fn a_machine_that_ran_short_is_told_from_one_that_refuses() {
        for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE] {
            assert_eq!(errno.kind(), ErrorKind::ResourceExhausted, "{errno}");
            let error = io::Error::from(errno);
            assert_eq!(Failure::kind(&error), ErrorKind::ResourceExhausted, "{error}");
        }
        for errno in [Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ENOENT, Errno::EINVAL, Errno::EIO] {
            assert_eq!(errno.kind(), ErrorKind::Internal, "{errno}");
        }
        let of_names = [Errno::ENOENT, Errno::EACCES, Errno::ENOTDIR, Errno::EMFILE, Errno::EIO].map(named);
        let (blamed, short) = (ErrorKind::InvalidArgument, ErrorKind::ResourceExhausted);
        assert_eq!(of_names, [blamed, blamed, blamed, short, ErrorKind::Internal]);
        assert_eq!(Failure::kind(&io::Error::other("no answer of the kernel")), ErrorKind::Internal);
    }
}
