//! Failures as gRPC statuses: the one place where all failures meet.
//!
//! The class of a failure was set by the code that failed, and becomes a code here without being looked at again. A
//! client gets the whole chain of causes. Some messages begin with a word for which the kubelet looks.

use tonic::{Code, Status};
use wharf_types::{ErrorKind, Failure, chain};

/// The failures of the services themselves, as opposed to those of the code that does the work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A field of the request has an impossible value.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// This build does not support the call. These are the words of gRPC's own servers, which clients look for.
    #[error("method {call} not implemented")]
    Unimplemented {
        /// The call.
        call: &'static str,
    },
    /// There is no such image.
    #[error("there is no image {name:?}")]
    NoImage {
        /// What was asked for, shortened to 300 characters.
        name: String,
    },
    /// A client was too slow for the events.
    #[error("events were lost: the listener was too slow; list everything again")]
    EventsLost,
    /// The client no longer waits.
    #[error("the client's deadline has passed")]
    Overdue,
    /// The handler panicked.
    #[error("wharfd has a bug: see its log")]
    Panicked,
}

impl Fault {
    /// A required field is missing.
    pub(crate) fn missing(field: &'static str) -> Self {
        Self::Invalid { field, problem: "it is missing".to_owned() }
    }

    /// A field that must have a value is empty.
    pub(crate) fn empty(field: &'static str) -> Self {
        Self::Invalid { field, problem: "it is empty".to_owned() }
    }
}

impl Failure for Fault {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Unimplemented { .. } => ErrorKind::Unimplemented,
            Self::NoImage { .. } => ErrorKind::NotFound,
            Self::EventsLost => ErrorKind::DataLoss,
            Self::Overdue => ErrorKind::DeadlineExceeded,
            Self::Panicked => ErrorKind::Internal,
        }
    }
}

/// A failure, with all its causes.
pub(crate) fn of(failure: impl Failure) -> Status {
    told(&failure)
}

/// A failed pull. Its message begins with the word by which the kubelet recognises the reason, if there is one. The
/// kubelet looks for it at the very beginning, where it sees the code of every status except those with the code
/// Unknown.
pub(crate) fn of_pull(reason: Option<&str>, failure: &dyn Failure) -> Status {
    match reason {
        Some(reason) => Status::unknown(bounded(format!("{reason}: {}", chain(failure)))),
        None => told(failure),
    }
}

/// A request for a security profile that no registry can fulfil. The kubelet looks for the word in the message of any
/// code.
pub(crate) fn of_profile(fault: &Fault) -> Status {
    Status::new(code(fault.kind()), bounded(format!("SecurityProfileInvalid: {}", chain(fault))))
}

fn told(failure: &dyn Failure) -> Status {
    Status::new(code(failure.kind()), bounded(chain(failure)))
}

fn code(kind: ErrorKind) -> Code {
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

/// The longest message, in bytes. It travels as a header, with up to three bytes for each of its own, and a client
/// closes the connection, with all its other calls, if the headers are longer than 16 KiB.
const TEXT_LIMIT_BYTES: usize = 4096;

/// The text, or its beginning and its end: the former says what failed, the latter why.
fn bounded(text: String) -> String {
    if text.len() <= TEXT_LIMIT_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(TEXT_LIMIT_BYTES / 2);
    let tail = text.ceil_char_boundary(text.len() - TEXT_LIMIT_BYTES / 2 + "…".len());
    format!("{}…{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_where_the_kubelet_looks_for_it() {
        let error = std::io::Error::other("no route");
        let status = of_pull(Some("RegistryUnavailable"), &error);
        assert_eq!((status.code(), status.message()), (Code::Unknown, "RegistryUnavailable: no route"));
        let status = of_pull(None, &error);
        assert_eq!((status.code(), status.message()), (Code::Internal, "no route"));
    }

    #[test]
    fn a_long_text_keeps_both_ends() {
        assert_eq!(bounded("short".to_owned()), "short");
        let text = bounded(format!("what{}why", "ü".repeat(TEXT_LIMIT_BYTES)));
        assert!(text.len() <= TEXT_LIMIT_BYTES && text.len() > TEXT_LIMIT_BYTES - 8, "{}", text.len());
        assert!(text.starts_with("whatü") && text.ends_with("üwhy"), "{text}");
    }

    /// A failure of this class, with a cause.
    #[derive(Debug, thiserror::Error)]
    #[error("making it")]
    struct Failed(ErrorKind, #[source] std::io::Error);

    impl Failure for Failed {
        fn kind(&self) -> ErrorKind {
            self.0
        }
    }

    #[test]
    fn every_class_has_a_code_and_every_cause_is_in_the_message() {
        let table = [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::InvalidArgument, Code::InvalidArgument),
            (ErrorKind::AlreadyExists, Code::AlreadyExists),
            (ErrorKind::FailedPrecondition, Code::FailedPrecondition),
            (ErrorKind::ResourceExhausted, Code::ResourceExhausted),
            (ErrorKind::PermissionDenied, Code::PermissionDenied),
            (ErrorKind::Unavailable, Code::Unavailable),
            (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded),
            (ErrorKind::Unimplemented, Code::Unimplemented),
            (ErrorKind::DataLoss, Code::DataLoss),
            (ErrorKind::Internal, Code::Internal),
        ];
        for (kind, expected) in table {
            let status = of(Failed(kind, std::io::Error::other("no room")));
            assert_eq!((status.code(), status.message()), (expected, "making it: no room"));
        }
    }

    #[test]
    fn what_a_service_refuses_names_the_field() {
        let status = of(Fault::missing("config"));
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "config: it is missing"));
        assert_eq!(of(Fault::empty("cmd")).message(), "cmd: it is empty");
        assert_eq!(of(Fault::Overdue).code(), Code::DeadlineExceeded);
    }
}
