//! Why a call on a pod or container failed. A cause keeps its type; its class is decided where it arose.
//!
//! This is not a gRPC status: `cri` makes that from the class and the chain of causes. Calls that joined share one
//! error, so it can be cloned.

use wharf_planner::Refusal;
use wharf_types::{ErrorKind, Failure, StageError, Subject, Traced, chain};

/// A failed call. Clones are the same failure, one for each caller that joined the call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The pod or container does not exist.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// `pod sandbox`, `container`, `image`.
        what: &'static str,
        /// The id as given.
        id: String,
    },
    /// The request can never work as it stands.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// An image cannot be mounted. The kubelet looks for this word at the beginning of the message.
    #[error("ImageVolumeMountFailed: {problem}")]
    ImageVolume {
        /// The class of the failure.
        kind: ErrorKind,
        /// Which mount, and why.
        problem: String,
    },
    /// The object is in the wrong state.
    #[error("{what} {id} is {state}")]
    State {
        /// `pod sandbox` or `container`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        state: &'static str,
    },
    /// A stage of the work failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::ImageVolume { kind, .. } => *kind,
            Self::State { .. } => ErrorKind::FailedPrecondition,
            Self::Stage(error) => error.kind(),
        }
    }
}

impl Error {
    pub(crate) fn invalid(field: &'static str, problem: impl ToString) -> Self {
        Self::Invalid { field, problem: problem.to_string() }
    }

    /// The failure of a stage.
    pub(crate) fn at(stage: &'static str, cause: impl Failure) -> Self {
        Self::Stage(StageError::at(stage, cause))
    }

    /// A failure without a known class is a bug in wharf.
    pub(crate) fn fault(stage: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::at(stage, Fault(Box::new(error)))
    }

    /// The failure of a container's first process to make the container.
    pub(crate) fn of_creation(error: StageError) -> Self {
        match error.subject() {
            Subject::ImageVolume => Self::ImageVolume { kind: error.kind(), problem: chain(&error.cause) },
            Subject::Other => Self::Stage(error),
        }
    }

    /// The cause without the stage, for code that already says what it was doing.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Stage(error) => chain(&error.cause),
            other => other.to_string(),
        }
    }
}

/// A pod cannot be changed yet: because of the containers with these ids, or, without any, of another change.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: try again; if that goes on, wharf doctor shows whether a disk or a directory does not respond", why(.0)
)]
pub(crate) struct StillChanging(pub(crate) String);

fn why(containers: &str) -> String {
    match containers {
        "" => "another call, or the undoing of a container with its hooks, still changes it".to_owned(),
        ids => format!("containers still being made, or undone with their hooks: {ids}"),
    }
}

impl Failure for StillChanging {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Fault(Box<dyn std::error::Error + Send + Sync>);

impl Failure for Fault {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Field { field, problem } => Self::Invalid { field, problem },
            Refusal::ImageVolume { .. } => {
                Self::ImageVolume { kind: refusal.kind(), problem: refusal.to_string() }
            }
            Refusal::Addition { .. } | Refusal::Host { .. } | Refusal::Spec { .. } => {
                Self::at("planning the container", refusal)
            }
        }
    }
}

/// A task that panicked.
impl From<tokio::task::JoinError> for Error {
    fn from(panicked: tokio::task::JoinError) -> Self {
        Self::fault("the call's task", panicked)
    }
}

impl From<wharf_host::Error> for Error {
    fn from(error: wharf_host::Error) -> Self {
        match error {
            wharf_host::Error::Refused(refusal) => refusal.into(),
            wharf_host::Error::Missing { what, name } => Self::NotFound { what, id: name },
            wharf_host::Error::Stage(stage) => stage.into(),
        }
    }
}

/// The found object, or `None`: stopping or removing something that does not exist is success.
pub(crate) fn known<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Err(Error::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Adds the stage to a failure.
pub(crate) trait Stage<T> {
    fn stage(self, stage: &'static str) -> Result<T, Error>;
}

impl<T, F: Failure> Stage<T> for Result<T, F> {
    fn stage(self, stage: &'static str) -> Result<T, Error> {
        self.map_err(|cause| Error::at(stage, cause))
    }
}

/// Runs blocking work on the runtime's bounded pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(Traced::here().carry(work)).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use nix::errno::Errno;

    /// The errno in the form in which each lower crate passes it to a stage here.
    fn causes(errno: Errno) -> Vec<Arc<dyn Failure>> {
        let io = || std::io::Error::from(errno);
        let call = || wharf_sys::Error::new("open", "/x", errno);
        let path = || std::path::PathBuf::from("/x");
        vec![
            Arc::new(errno),
            Arc::new(io()),
            Arc::new(call()),
            Arc::new(wharf_state::record::Error::Io { operation: "writing", path: path(), source: io() }),
            Arc::new(wharf_cgroup::Error::Io { action: "create", path: path(), source: io() }),
            Arc::new(wharf_cgroup::Error::Write { file: path(), value: "1".to_owned(), source: io() }),
            Arc::new(wharf_snapshots::SnapshotError {
                what: "prepare",
                name: "x".to_owned(),
                source: call(),
            }),
            Arc::new(wharf_images::StoreError::System { what: "sweep", source: call() }),
            Arc::new(wharf_network::Error::Store(wharf_network::StoreError::Input {
                operation: "write",
                path: path(),
                source: io(),
            })),
            Arc::new(wharf_network::Error::Netlink(wharf_network::NetlinkError {
                operation: "add a link".to_owned(),
                errno,
            })),
        ]
    }

    #[test]
    fn at_each_stage_a_machine_that_ran_short_is_told_from_one_that_refuses() {
        let table = [
            (Errno::ENOSPC, ErrorKind::ResourceExhausted),
            (Errno::EDQUOT, ErrorKind::ResourceExhausted),
            (Errno::ENOMEM, ErrorKind::ResourceExhausted),
            (Errno::EMFILE, ErrorKind::ResourceExhausted),
            (Errno::ENFILE, ErrorKind::ResourceExhausted),
            (Errno::EACCES, ErrorKind::Internal),
            (Errno::EROFS, ErrorKind::Internal),
            (Errno::EIO, ErrorKind::Internal),
        ];
        for (errno, kind) in table {
            for cause in causes(errno) {
                let error = Error::from(StageError { stage: "making it", cause });
                assert_eq!(error.kind(), kind, "{error:?}");
                let text = chain(&error);
                assert!(text.starts_with("making it: "), "{text}");
                assert!(error.why().len() + "making it: ".len() == text.len(), "{text}");
            }
        }
    }

    #[test]
    fn what_the_work_misses_is_not_what_the_request_names() {
        for cause in causes(Errno::ENOENT) {
            let kind = Error::from(StageError { stage: "making it", cause }).kind();
            assert!(matches!(kind, ErrorKind::Internal | ErrorKind::FailedPrecondition), "{kind:?}");
        }
    }

    #[test]
    fn a_fault_of_ours_is_internal_whatever_it_says() {
        let error = Error::fault("reading it", "x".parse::<u8>().unwrap_err());
        assert_eq!(
            (error.kind(), error.why()),
            (ErrorKind::Internal, "invalid digit found in string".into())
        );
    }
}
