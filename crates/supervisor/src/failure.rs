//! Why a request failed, as the daemon is told: its class, what it is about, and the text. The class is that of the
//! cause, so that a machine that ran short of something is told from a request that cannot work.

use wharf_types::{ErrorKind, Subject, chain};
use wharf_wire::v1;
use wharf_wire::v1::failure::Kind;

/// The longest text, in bytes: names in it may be as long as a whole message.
const TEXT_LIMIT_BYTES: usize = 4096;

/// A failure to pass on to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) subject: Subject,
    pub(crate) message: String,
}

impl Failure {
    /// A failure of this kind; a text that is too long is cut.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > TEXT_LIMIT_BYTES {
            message.truncate(message.floor_char_boundary(TEXT_LIMIT_BYTES));
            message.push('…');
        }
        Self { kind, subject: Subject::Other, message }
    }

    /// The failure of an operation, with its class and all its causes.
    pub(crate) fn of(error: impl wharf_types::Failure) -> Self {
        Self::reported((error.kind(), error.subject()), chain(&error))
    }

    /// A failure with this class and subject, as a child reports it.
    pub(crate) fn reported((kind, subject): (ErrorKind, Subject), message: String) -> Self {
        Self { subject, ..Self::new(kind.into(), message) }
    }

    /// A bug in wharf: whoever sent the request can mend nothing.
    pub(crate) fn fault(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// The pod, the container or the command is in the wrong state.
    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::Precondition, message)
    }

    /// The caller no longer waits.
    pub(crate) fn expired() -> Self {
        Self::new(Kind::Expired, "its caller had stopped waiting before it was done")
    }

    /// The same failure, with what else was said about it.
    pub(crate) fn with(self, said: &str) -> Self {
        Self { subject: self.subject, ..Self::new(self.kind, format!("{}: {said}", self.message)) }
    }

    /// The same failure, with what it was part of.
    pub(crate) fn within(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }
}

impl<E: wharf_types::Failure> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::of(error)
    }
}

impl From<Failure> for v1::Failure {
    fn from(Failure { kind, subject, message }: Failure) -> Self {
        let subject = v1::failure::Subject::from(subject);
        Self { kind: kind.into(), subject: subject.into(), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn a_failure_keeps_its_class_and_its_causes() {
        for (errno, kind) in [
            (Errno::ENOSPC, Kind::Exhausted),
            (Errno::ENOMEM, Kind::Exhausted),
            (Errno::EMFILE, Kind::Exhausted),
            (Errno::EAGAIN, Kind::Exhausted),
            (Errno::EACCES, Kind::Internal),
        ] {
            let failure = Failure::of(wharf_sys::Error::new("mkdir", "/x", errno)).within("making it");
            assert_eq!(failure.kind, kind, "{errno}");
            let words = wharf_types::failure::words(errno);
            assert_eq!(failure.message, format!("making it: mkdir(/x): {words}"));
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let failure = Failure::fault("ü".repeat(100_000));
        assert!(failure.message.len() < 5000 && failure.message.ends_with("ü…"));
    }
}
