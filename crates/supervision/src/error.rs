//! What can go wrong between the daemon and a supervisor.

use std::time::Duration;

use wharf_types::{ErrorKind, Failure};
use wharf_wire::v1;

/// Why a supervisor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// It has ended.
    #[error("the pod's supervisor is gone")]
    Gone,
    /// The connection is being made.
    #[error("it has not answered yet: try again")]
    NotConnected,
    /// It may be stopped, or wait for a disk.
    #[error("the pod's supervisor did not answer within {patience:?}")]
    Silent {
        /// How long it was waited for.
        patience: Duration,
    },
    /// It does not take requests as fast as they come.
    #[error("{limit} requests wait for the pod's supervisor: try again later")]
    Busy {
        /// How many may.
        limit: usize,
    },
    /// It does not do what was agreed on: a fault of ours.
    #[error("the pod's supervisor answered with something else than {expected}")]
    Protocol {
        /// What the request is answered with.
        expected: &'static str,
    },
    /// It tried, and failed.
    #[error("{message}")]
    Refused {
        /// The class, as the supervisor judged it.
        kind: ErrorKind,
        /// The whole chain of causes there.
        message: String,
    },
    /// It is of the release that made the pod.
    #[error("the pod's supervisor is of an older release and cannot do {what}: make the pod anew")]
    Older {
        /// What it would have to do.
        what: &'static str,
    },
    /// Killed, it does not end.
    #[error("its process is still there {patience:?} after SIGKILL: does it wait for a disk?")]
    Undead {
        /// How long it was waited for.
        patience: Duration,
    },
    /// The connection does not carry the request.
    #[error(transparent)]
    Wire(#[from] wharf_wire::Error),
}

impl Failure for SupervisorError {
    fn kind(&self) -> ErrorKind {
        match self {
            // Not the deadline of whoever asked: a probe's command that did not begin has not failed.
            Self::Gone | Self::NotConnected | Self::Silent { .. } => ErrorKind::Unavailable,
            Self::Busy { .. } => ErrorKind::ResourceExhausted,
            Self::Protocol { .. } => ErrorKind::Internal,
            Self::Refused { kind, .. } => *kind,
            Self::Older { .. } => ErrorKind::FailedPrecondition,
            Self::Undead { .. } => ErrorKind::DeadlineExceeded,
            Self::Wire(error) => error.kind(),
        }
    }
}

impl From<v1::Failure> for SupervisorError {
    fn from(failure: v1::Failure) -> Self {
        Self::Refused { kind: failure.kind().into(), message: failure.message }
    }
}
