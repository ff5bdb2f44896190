//! Why a container could not be made: the stage, and what the kernel said of which thing.

use nix::errno::Errno;
use wharf_types::failure::named;
use wharf_types::{ErrorKind, Failure};

use crate::birth;

/// A failed stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stage that depends on the kernel alone.
    #[error("{stage} failed")]
    Stage {
        /// What was being done.
        stage: &'static str,
        /// What the kernel said.
        #[source]
        source: wharf_sys::Error,
    },
    /// A mount of the plan.
    #[error("mount of {what} at {target} failed")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where in the container.
        target: String,
        /// What the kernel said.
        #[source]
        source: wharf_sys::Error,
    },
    /// A path that the request names on the host.
    #[error("host path {path} cannot be used")]
    HostPath {
        /// The path.
        path: String,
        /// What the kernel said.
        #[source]
        source: wharf_sys::Error,
    },
    /// A path inside the container.
    #[error("{what} {path} in the container cannot be used")]
    ContainerPath {
        /// What the path is for.
        what: &'static str,
        /// The path.
        path: String,
        /// What the kernel said.
        #[source]
        source: wharf_sys::Error,
    },
    /// The user or group cannot be resolved.
    #[error("{what} {name:?} {problem}")]
    Identity {
        /// `user` or `group`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The plan cannot be understood.
    #[error("the plan has a bad part: {problem}")]
    Plan {
        /// What is wrong with it.
        problem: String,
    },
    /// The program could not be executed.
    #[error("exec of {program:?} failed: {reason}")]
    Exec {
        /// The first argument.
        program: String,
        /// What the kernel said, for people.
        reason: &'static str,
    },
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            // The container that was to be entered is about to end.
            Self::Stage { source, .. } if source.errno == Errno::ESRCH => ErrorKind::FailedPrecondition,
            // So is the first process of the PID namespace.
            Self::Stage { stage: birth::STAGE, source } if source.errno == Errno::ENOMEM => {
                ErrorKind::FailedPrecondition
            }
            Self::Stage { source, .. } | Self::Mount { source, .. } => source.errno.kind(),
            Self::HostPath { source, .. } | Self::ContainerPath { source, .. } => named(source.errno),
            Self::Identity { .. } | Self::Plan { .. } => ErrorKind::InvalidArgument,
            Self::Exec { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

impl Error {
    /// The whole chain as one line.
    #[must_use]
    pub fn line(&self) -> String {
        wharf_types::chain(self)
    }
}

/// Names the stage of a system call's failure, which names the call and its arguments itself.
pub(crate) trait Stage<T> {
    fn stage(self, stage: &'static str) -> Result<T, Error>;
}

impl<T> Stage<T> for wharf_sys::Result<T> {
    fn stage(self, stage: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Stage { stage, source })
    }
}
