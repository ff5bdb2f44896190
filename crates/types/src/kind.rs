//! The classes of errors: as few as a client can act on.
//!
//! A class says what the caller can do, not what happened: that is in the message. The code that fails chooses it,
//! because nobody above knows whose fault it is.

/// The class of an error. The error of every crate is a [`Failure`](crate::Failure) and so has one; `cri/src/status.rs`
/// turns it into a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object that the request names does not exist.
    NotFound,
    /// The request can never work as it stands.
    InvalidArgument,
    /// An object of that name already exists, and is a different one.
    AlreadyExists,
    /// The object is in the wrong state for this call; another call must come first.
    FailedPrecondition,
    /// A limit was reached: space, count or size.
    ResourceExhausted,
    /// The other side refused our credentials, or we have none.
    PermissionDenied,
    /// Something outside wharf (a registry, a plugin) does not respond now; a retry may work.
    Unavailable,
    /// A deadline passed.
    DeadlineExceeded,
    /// Wharf or this kernel does not support it.
    Unimplemented,
    /// What was stored or received is damaged.
    DataLoss,
    /// The kernel returned an error, or wharf has a bug.
    Internal,
}

/// What an error is about, where a client must be told more than the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Subject {
    /// Nothing of which clients know.
    #[default]
    Other,
    /// An image that is mounted as a volume.
    ImageVolume,
}
