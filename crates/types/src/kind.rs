//! What went wrong, in the few classes a client can act on.

/// The class of an error. Every crate's error is a [`Failure`](crate::Failure), which has one; `cri/src/status.rs` turns it
/// into a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// The request can never work as it stands.
    InvalidArgument,
    /// The object exists already, and is another one.
    AlreadyExists,
    /// The object is in the wrong state for the call; another call must come first.
    FailedPrecondition,
    /// A bound was reached: space, count or size.
    ResourceExhausted,
    /// The other side refused our credentials, or lacks them.
    PermissionDenied,
    /// Something outside (a registry, a plugin) does not answer now; a retry may work.
    Unavailable,
    /// A deadline passed.
    DeadlineExceeded,
    /// Wharf or this kernel does not have the feature.
    Unimplemented,
    /// What was stored or received is damaged.
    DataLoss,
    /// The kernel refused, or wharf has a fault.
    Internal,
}
