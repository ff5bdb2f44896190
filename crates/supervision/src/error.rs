//! The errors between the daemon and a supervisor.

use std::time::Duration;

use wharf_types::{ErrorKind, Failure, Subject};
use wharf_wire::v1;

/// Why a supervisor did not do what was requested.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// It has exited.
    #[error("the pod's supervisor is gone")]
    Gone,
    /// It has exited before it said anything.
    #[error("the pod's supervisor ended before its first response: {last_line}")]
    Stillborn {
        /// The last line of its log.
        last_line: String,
    },
    /// The connection is being made.
    #[error("the pod's supervisor has not responded yet: try again")]
    NotConnected,
    /// It did not respond; it may be stopped, or may be waiting for a disk.
    #[error("the pod's supervisor did not respond within {patience:?}")]
    Silent {
        /// How long the wait was.
        patience: Duration,
    },
    /// A container with volumes to fill was not created in time.
    #[error(
        "the container was not created within {patience:?}, in which the content of {volumes} of the image's volumes \
         is copied: a higher CPU limit makes that faster, and a mount in a volume's place spares it"
    )]
    Copying {
        /// How many volumes are filled.
        volumes: usize,
        /// How long the wait was.
        patience: Duration,
    },
    /// It does not accept requests as fast as they come.
    #[error("{limit} requests wait for the pod's supervisor: try again later")]
    Busy {
        /// How many may wait.
        limit: usize,
    },
    /// It violated the protocol, which is a bug in wharf.
    #[error("the pod's supervisor did not respond with {expected}")]
    Protocol {
        /// The expected reply.
        expected: &'static str,
    },
    /// It tried and failed.
    #[error("{message}")]
    Refused {
        /// The class, as the supervisor reported it.
        kind: ErrorKind,
        /// What it is about, as the supervisor reported it.
        subject: Subject,
        /// Its whole chain of causes.
        message: String,
    },
    /// It is of the release that made the pod, and lacks a feature.
    #[error("the pod's supervisor is of an older release and cannot do {what}: recreate the pod")]
    Older {
        /// The missing feature.
        what: &'static str,
    },
    /// It was killed and does not exit.
    #[error("the pod's supervisor has not exited {patience:?} after SIGKILL: it may be waiting for a disk")]
    Undead {
        /// How long the wait was.
        patience: Duration,
    },
    /// The request cannot be sent.
    #[error(transparent)]
    Wire(#[from] wharf_wire::Error),
}

impl Failure for SupervisorError {
    fn kind(&self) -> ErrorKind {
        match self {
            // Not DeadlineExceeded, which is the caller's own: a probe whose command did not begin has not failed.
            Self::Gone
            | Self::Stillborn { .. }
            | Self::NotConnected
            | Self::Silent { .. }
            | Self::Copying { .. } => ErrorKind::Unavailable,
            Self::Busy { .. } => ErrorKind::ResourceExhausted,
            Self::Protocol { .. } => ErrorKind::Internal,
            Self::Refused { kind, .. } => *kind,
            Self::Older { .. } => ErrorKind::FailedPrecondition,
            Self::Undead { .. } => ErrorKind::DeadlineExceeded,
            Self::Wire(error) => error.kind(),
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Refused { subject, .. } => *subject,
            _ => Subject::Other,
        }
    }
}

impl From<v1::Failure> for SupervisorError {
    fn from(failure: v1::Failure) -> Self {
        Self::Refused {
            kind: failure.kind().into(),
            subject: failure.subject().into(),
            message: failure.message,
        }
    }
}

/// What ends a command or an attached client early.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Its deadline has passed.
    #[error("the command did not end within {timeout:?} and was killed")]
    Overdue {
        /// How long it had.
        timeout: Duration,
    },
    /// Too many run at a time.
    #[error("{count} commands are running {place}: wait until one has ended")]
    Turns {
        /// How many run.
        count: usize,
        /// Where: in a container, or on the node.
        place: String,
    },
    /// The client does not read.
    #[error("the client was more than {limit_bytes} bytes behind the container's output")]
    Behind {
        /// How much it may be behind.
        limit_bytes: i32,
    },
}

impl Failure for ExecError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Overdue { .. } => ErrorKind::DeadlineExceeded,
            Self::Turns { .. } | Self::Behind { .. } => ErrorKind::ResourceExhausted,
        }
    }
}
