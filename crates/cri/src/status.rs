//! Kinds of errors as gRPC codes: the one place where they meet.

use tonic::{Code, Status};
use wharf_types::ErrorKind;

/// The code of a kind.
pub(crate) fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

/// An error of pods as a status.
pub(crate) fn of_pods(error: wharf_pods::Error) -> Status {
    Status::new(code(error.kind()), error.to_string())
}

/// Any error with its whole chain.
pub(crate) fn of(kind: ErrorKind, error: &dyn std::error::Error) -> Status {
    Status::new(code(kind), wharf_types::chain(error))
}

/// What this build does not do.
pub(crate) fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not implemented yet"))
}
