//! Errors that know their class, and the class of what the kernel answers: the only place that judges an errno.

use std::error::Error;
use std::io;

use nix::errno::Errno;

use crate::ErrorKind;

/// An error that knows its class. Whoever adds a context to one keeps both: the error as the cause, and its class.
pub trait Failure: Error + Send + Sync + 'static {
    /// The class of the error.
    fn kind(&self) -> ErrorKind;
}

impl Failure for Errno {
    /// Where the machine ran short, a client may try again later; all else is nothing that a client could mend. What is
    /// missing is missing to wharf alone, and so is a permission: to a client `NotFound` and `PermissionDenied` would say
    /// something of what it named, and the kubelet forgets a pod for the one. Whoever made a call on what a request names
    /// knows better, and says so.
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

/// The class of what the kernel answers of a thing that a request or an image names: the fault of who named it, unless the
/// machine ran short or a disk is broken.
#[must_use]
pub fn named(errno: Errno) -> ErrorKind {
    match errno {
        Errno::EIO => ErrorKind::Internal,
        _ if errno.kind() == ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
        _ => ErrorKind::InvalidArgument,
    }
}

impl Failure for io::Error {
    /// As the errno in it; one without is no answer of the kernel.
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
