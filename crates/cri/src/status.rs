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

/// The longest message, in bytes. It travels as a header, at worst in three bytes for each of its own, and a client ends
/// the connection, with all its other calls, when headers are longer than 16 KiB.
const TEXT_LIMIT_BYTES: usize = 4096;

/// An error of pods as a status.
pub(crate) fn of_pods(error: wharf_pods::Error) -> Status {
    Status::new(code(error.kind()), bounded(error.to_string()))
}

/// Any error with its whole chain.
pub(crate) fn of(kind: ErrorKind, error: &dyn std::error::Error) -> Status {
    Status::new(code(kind), bounded(wharf_types::chain(error)))
}

/// A failed pull, beginning with the word by which the kubelet knows its reason, if it has one. The kubelet looks for it at
/// the very beginning, where it sees the code of every status but one of the code Unknown.
pub(crate) fn of_pull(kind: ErrorKind, reason: Option<&str>, error: &dyn std::error::Error) -> Status {
    match reason {
        Some(reason) => Status::unknown(bounded(format!("{reason}: {}", wharf_types::chain(error)))),
        None => of(kind, error),
    }
}

/// The text, or its beginning and its end: the one says what failed, the other why.
fn bounded(text: String) -> String {
    if text.len() <= TEXT_LIMIT_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(TEXT_LIMIT_BYTES / 2);
    let tail = text.ceil_char_boundary(text.len() - TEXT_LIMIT_BYTES / 2 + "…".len());
    format!("{}…{}", &text[..head], &text[tail..])
}

/// What this build does not do.
pub(crate) fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not implemented yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_where_the_kubelet_looks_for_it() {
        let error = std::io::Error::other("no route");
        let status = of_pull(ErrorKind::Unavailable, Some("RegistryUnavailable"), &error);
        assert_eq!((status.code(), status.message()), (Code::Unknown, "RegistryUnavailable: no route"));
        let status = of_pull(ErrorKind::NotFound, None, &error);
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no route"));
    }

    #[test]
    fn a_long_text_keeps_both_ends() {
        assert_eq!(bounded("short".to_owned()), "short");
        let text = bounded(format!("what{}why", "ü".repeat(TEXT_LIMIT_BYTES)));
        assert!(text.len() <= TEXT_LIMIT_BYTES && text.len() > TEXT_LIMIT_BYTES - 8, "{}", text.len());
        assert!(text.starts_with("whatü") && text.ends_with("üwhy"), "{text}");
    }
}
