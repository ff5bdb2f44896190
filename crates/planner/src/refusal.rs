//! Why a container cannot be described or planned.

use wharf_types::{ErrorKind, Failure};

/// A request that cannot be done as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field of the request makes no sense, or asks for what this build does not do.
    #[error("{field}: {problem}")]
    Field {
        /// The field, as the CRI names it.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A mount is an image.
    #[error("images as volumes are not supported yet")]
    ImageVolume,
    /// The description has something that the plan has no word for. No request leads here: it is for what changes
    /// descriptions on their way.
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
            Self::ImageVolume => ErrorKind::Unimplemented,
            Self::Spec { .. } => ErrorKind::Internal,
        }
    }
}

impl Refusal {
    pub(crate) fn field(field: &'static str, problem: impl ToString) -> Self {
        Self::Field { field, problem: problem.to_string() }
    }

    pub(crate) fn spec(field: &'static str, problem: impl ToString) -> Self {
        Self::Spec { field, problem: problem.to_string() }
    }
}
