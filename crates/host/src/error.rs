//! Why something could not be made on this host.

use wharf_planner::Refusal;
use wharf_types::StageError;

/// The failure, which shows whose fault it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request can never work as it stands.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A stage of the work failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}
