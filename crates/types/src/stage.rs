//! What was being done when something failed.

use std::sync::Arc;

use crate::{ErrorKind, Failure};

/// A step that failed. Clones are the same failure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{stage}")]
pub struct StageError {
    /// What was being done.
    pub stage: &'static str,
    /// Why it failed.
    #[source]
    pub cause: Arc<dyn Failure>,
}

impl StageError {
    /// The failure of a stage.
    pub fn at(stage: &'static str, cause: impl Failure) -> Self {
        Self { stage, cause: Arc::new(cause) }
    }
}

impl Failure for StageError {
    fn kind(&self) -> ErrorKind {
        match self.cause.kind() {
            // What a request names was found before the work began. To a kubelet NotFound means that it is gone.
            ErrorKind::NotFound => ErrorKind::Internal,
            kind => kind,
        }
    }
}

/// Names the stage of a failure.
pub trait Stage<T> {
    /// The same result; a failure of it is that of the stage.
    ///
    /// # Errors
    /// The failure is kept as the cause.
    fn stage(self, stage: &'static str) -> Result<T, StageError>;
}

impl<T, F: Failure> Stage<T> for Result<T, F> {
    fn stage(self, stage: &'static str) -> Result<T, StageError> {
        self.map_err(|cause| StageError::at(stage, cause))
    }
}
