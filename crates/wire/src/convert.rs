//! Conversions between wharf's types and the messages of the protocol.
//!
//! Both sides convert here and nowhere else, so a field that is added is read and written in one place. What an older
//! side does not send has the value that it meant then.

use wharf_types::{ErrorKind, Exit, Subject, TerminalSize};

use crate::v1::{self, exit, failure};

impl From<Exit> for v1::Exit {
    fn from(exit: Exit) -> Self {
        let (kind, value, oom) = match exit {
            Exit::Code(code) => (exit::Kind::Code, code, false),
            Exit::Signal { number, oom } => (exit::Kind::Signal, number, oom),
            Exit::NotStarted => (exit::Kind::NotStarted, 0, false),
            Exit::Lost => (exit::Kind::Lost, 0, false),
        };
        Self { kind: kind.into(), value: value.into(), oom }
    }
}

/// How something ended; a missing exit is a lost one.
#[must_use]
pub fn exit_of(told: Option<v1::Exit>) -> Exit {
    let Some(told) = told else { return Exit::Lost };
    let value = u8::try_from(told.value).unwrap_or(u8::MAX);
    match told.kind() {
        exit::Kind::Code => Exit::Code(value),
        exit::Kind::Signal => Exit::Signal { number: value, oom: told.oom },
        exit::Kind::NotStarted => Exit::NotStarted,
        exit::Kind::Lost => Exit::Lost,
    }
}

impl From<failure::Kind> for ErrorKind {
    fn from(kind: failure::Kind) -> Self {
        match kind {
            failure::Kind::Internal => Self::Internal,
            failure::Kind::NotFound => Self::NotFound,
            failure::Kind::Invalid => Self::InvalidArgument,
            failure::Kind::Precondition | failure::Kind::NotStarted => Self::FailedPrecondition,
            failure::Kind::Expired => Self::Unavailable,
            failure::Kind::Exhausted => Self::ResourceExhausted,
        }
    }
}

impl From<ErrorKind> for failure::Kind {
    /// Kinds that the protocol does not distinguish are the supervisor's own faults.
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::InvalidArgument => Self::Invalid,
            ErrorKind::FailedPrecondition => Self::Precondition,
            ErrorKind::ResourceExhausted => Self::Exhausted,
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => Self::Expired,
            ErrorKind::AlreadyExists
            | ErrorKind::PermissionDenied
            | ErrorKind::Unimplemented
            | ErrorKind::DataLoss
            | ErrorKind::Internal => Self::Internal,
        }
    }
}

impl From<failure::Subject> for Subject {
    fn from(subject: failure::Subject) -> Self {
        match subject {
            failure::Subject::Other => Self::Other,
            failure::Subject::ImageVolume => Self::ImageVolume,
        }
    }
}

impl From<Subject> for failure::Subject {
    fn from(subject: Subject) -> Self {
        match subject {
            Subject::Other => Self::Other,
            Subject::ImageVolume => Self::ImageVolume,
        }
    }
}

impl From<TerminalSize> for v1::TerminalSize {
    fn from(TerminalSize { width, height }: TerminalSize) -> Self {
        Self { width: width.into(), height: height.into() }
    }
}

/// A terminal size that does not fit the kernel's 16-bit numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a terminal cannot have {width} columns and {height} rows")]
pub struct SizeError {
    width: u32,
    height: u32,
}

impl TryFrom<v1::TerminalSize> for TerminalSize {
    type Error = SizeError;

    fn try_from(v1::TerminalSize { width, height }: v1::TerminalSize) -> Result<Self, SizeError> {
        match (u16::try_from(width), u16::try_from(height)) {
            (Ok(width), Ok(height)) => Ok(Self { width, height }),
            _ => Err(SizeError { width, height }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::signal::{SIGKILL, SIGTERM};

    #[test]
    fn every_exit_is_what_it_was_told_to_be() {
        for exit in [
            Exit::Code(0),
            Exit::Code(255),
            Exit::Signal { number: SIGTERM, oom: false },
            Exit::Signal { number: SIGKILL, oom: true },
            Exit::NotStarted,
            Exit::Lost,
        ] {
            assert_eq!(exit_of(Some(exit.into())), exit);
        }
        let strange = |kind: i32, value| exit_of(Some(v1::Exit { kind, value, oom: false }));
        assert_eq!(strange(exit::Kind::Code.into(), 300), Exit::Code(255));
        assert_eq!((strange(99, 1), exit_of(None)), (Exit::Lost, Exit::Lost));
    }

    #[test]
    fn sizes_are_those_of_the_kernel() {
        let size = TerminalSize { width: 80, height: u16::MAX };
        assert_eq!(TerminalSize::try_from(v1::TerminalSize::from(size)), Ok(size));
        let error = TerminalSize::try_from(v1::TerminalSize { width: 80, height: 70_000 }).unwrap_err();
        assert_eq!(error.to_string(), "a terminal cannot have 80 columns and 70000 rows");
    }

    #[test]
    fn what_failed_is_told_as_it_was() {
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::InvalidArgument,
            ErrorKind::FailedPrecondition,
            ErrorKind::ResourceExhausted,
            ErrorKind::Unavailable,
            ErrorKind::Internal,
        ] {
            assert_eq!(ErrorKind::from(failure::Kind::from(kind)), kind);
        }
        assert_eq!(failure::Kind::from(ErrorKind::PermissionDenied), failure::Kind::Internal);
        for subject in [Subject::Other, Subject::ImageVolume] {
            assert_eq!(Subject::from(failure::Subject::from(subject)), subject);
        }
    }
}
