//! Why a call on a pod or container failed.

use wharf_types::{ErrorKind, chain};

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no such pod or container.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// `pod sandbox`, `container`, `image`.
        what: &'static str,
        /// The id as given.
        id: String,
    },
    /// The request cannot work as it stands.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Something is in the wrong state.
    #[error("{what} {id} is {state}")]
    State {
        /// `pod sandbox` or `container`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        state: &'static str,
    },
    /// A stage failed.
    #[error("{stage}: {message}")]
    Stage {
        /// What was being done.
        stage: &'static str,
        /// The whole chain of causes.
        message: String,
        /// What kind of failure it is.
        kind: ErrorKind,
    },
}

impl Error {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::State { .. } => ErrorKind::FailedPrecondition,
            Self::Stage { kind, .. } => *kind,
        }
    }

    pub(crate) fn invalid(field: &'static str, problem: impl ToString) -> Self {
        Self::Invalid { field, problem: problem.to_string() }
    }

    /// A call was under way when the pod's supervisor ended.
    pub(crate) fn supervisor_gone(stage: &'static str) -> Self {
        Self::Stage {
            stage,
            message: "the pod's supervisor is gone".to_owned(),
            kind: ErrorKind::Unavailable,
        }
    }

    /// A supervisor does not do what was agreed on.
    pub(crate) fn other_answer() -> Self {
        Self::Stage {
            stage: "asking the supervisor",
            message: "it gave an answer to another question".to_owned(),
            kind: ErrorKind::Internal,
        }
    }

    pub(crate) fn internal(stage: &'static str, error: impl std::error::Error) -> Self {
        Self::of_kind(ErrorKind::Internal, stage, &error)
    }

    /// The failure of a stage that knows its kind.
    pub(crate) fn of_kind(kind: ErrorKind, stage: &'static str, error: &dyn std::error::Error) -> Self {
        Self::Stage { stage, message: chain(error), kind }
    }
}

/// What was found, or `None`: to stop or remove what is not there is success.
pub(crate) fn known<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Err(Error::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Names the stage of a failure that is nobody's fault but the machine's.
pub(crate) trait Stage<T> {
    fn stage(self, stage: &'static str) -> Result<T, Error>;
}

impl<T, E: std::error::Error> Stage<T> for Result<T, E> {
    fn stage(self, stage: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::internal(stage, error))
    }
}

/// Runs blocking work on the runtime's bounded pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => Err(Error::internal("a blocking step", panicked)),
    }
}
