//! Errors that say at which stage an operation failed.

use std::sync::Arc;

use crate::{ErrorKind, Failure, Subject};

/// A stage that failed. Clones share the cause.
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
    /// Makes the error of a stage.
    pub fn at(stage: &'static str, cause: impl Failure) -> Self {
        Self { stage, cause: Arc::new(cause) }
    }
}

impl Failure for StageError {
    fn kind(&self) -> ErrorKind {
        match self.cause.kind() {
            // What the request names was found before the work began, so the missing thing is another one. NotFound
            // would tell the kubelet that its object is gone.
            ErrorKind::NotFound => ErrorKind::Internal,
            kind => kind,
        }
    }

    fn subject(&self) -> Subject {
        self.cause.subject()
    }
}

/// Adds the stage to an error.
pub trait Stage<T> {
    /// Returns the same result; an error becomes that of the stage.
    ///
    /// # Errors
    /// [`StageError`], with the error as its cause.
    fn stage(self, stage: &'static str) -> Result<T, StageError>;
}

impl<T, F: Failure> Stage<T> for Result<T, F> {
    fn stage(self, stage: &'static str) -> Result<T, StageError> {
        self.map_err(|cause| StageError::at(stage, cause))
    }
}
