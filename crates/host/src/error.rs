//! Why something could not be made on this host.

use wharf_planner::Refusal;
use wharf_types::{ErrorKind, Failure, StageError};

/// The failure, which shows whose fault it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request can never work as it stands.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such image or profile.
    #[error("{what} {name:?} not found")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Its name in the request.
        name: String,
    },
    /// A stage of the work failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Stage(error) => error.kind(),
        }
    }
}
