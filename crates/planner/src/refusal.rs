//! Why a container cannot be described or planned. The cause is text, so that refusals can be compared, and shared by
//! the callers that joined one request.

use wharf_types::{ErrorKind, Failure, Subject};

use crate::request::Unread;

/// A request that can never be fulfilled as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field of the request is invalid, or needs something that this build does not support.
    #[error("{field}: {problem}")]
    Field {
        /// The field, as the CRI names it.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that a field names could not be read, and the request is not at fault.
    #[error("{field}: {problem}")]
    Host {
        /// The class of the failure.
        kind: ErrorKind,
        /// The field, as the CRI names it.
        field: &'static str,
        /// What could not be read, and why.
        problem: String,
    },
    /// An image cannot be mounted as the request says.
    #[error("image volume {target}: {problem}")]
    ImageVolume {
        /// The class of the failure.
        kind: ErrorKind,
        /// Where in the container.
        target: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that this machine adds to the container, a device or a hook, cannot be added.
    #[error("{what}: {problem}")]
    Addition {
        /// The class of the failure.
        kind: ErrorKind,
        /// What, by its name.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The plan cannot express something in the description. No request leads here: this is for code that changes
    /// descriptions on the way.
    #[error("the container's runtime spec: {field}: {problem}")]
    Spec {
        /// The field, as the OCI names it.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Failure for Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Field { .. } => ErrorKind::InvalidArgument,
            Self::Host { kind, .. } | Self::ImageVolume { kind, .. } | Self::Addition { kind, .. } => *kind,
            Self::Spec { .. } => ErrorKind::Internal,
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::ImageVolume { .. } => Subject::ImageVolume,
            Self::Field { .. } | Self::Host { .. } | Self::Addition { .. } | Self::Spec { .. } => {
                Subject::Other
            }
        }
    }
}

impl Refusal {
    pub(crate) fn field(field: &'static str, problem: impl ToString) -> Self {
        Self::Field { field, problem: problem.to_string() }
    }

    /// The refusal if something that a field names could not be read.
    pub fn unread(field: &'static str, Unread { kind, problem }: Unread) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::Field { field, problem },
            kind => Self::Host { kind, field, problem },
        }
    }

    pub(crate) fn addition(what: impl ToString, problem: impl ToString) -> Self {
        let (kind, what) = (ErrorKind::FailedPrecondition, what.to_string());
        Self::Addition { kind, what, problem: problem.to_string() }
    }

    /// What is wrong, for a refusal that says in its own words of what.
    pub(crate) fn problem(self) -> String {
        match self {
            Self::Spec { field, problem } => format!("{field}: {problem}"),
            Self::Field { problem, .. }
            | Self::Host { problem, .. }
            | Self::ImageVolume { problem, .. }
            | Self::Addition { problem, .. } => problem,
        }
    }

    pub(crate) fn spec(field: &'static str, problem: impl ToString) -> Self {
        Self::Spec { field, problem: problem.to_string() }
    }
}
