//! Why a container could not be made: the stage, the object and the kernel's error.
//!
//! Each variant knows the class of its error, because the same errno may be the request's fault at a path of the image,
//! and the machine's anywhere else. An error crosses to the supervisor as its class and one line of text (`report.rs`);
//! what one process has reported to another is a variant, too.

use nix::errno::Errno;
use wharf_types::failure::named;
use wharf_types::{ErrorKind, Failure, Subject};

use crate::birth;

/// A failed stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stage that depends only on the kernel.
    #[error("{stage} failed")]
    Stage {
        /// The stage.
        stage: &'static str,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// A mount of the plan.
    #[error("mounting {what} at {target} failed")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where in the container.
        target: String,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// A mount of the plan that failed because of its place, which is the image's or behind one of its links.
    #[error("mounting {what} at {target} failed")]
    MountPoint {
        /// What was to be mounted.
        what: String,
        /// Where in the container.
        target: String,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// A path that the request names on the host.
    #[error("host path {path} cannot be used")]
    HostPath {
        /// The path.
        path: String,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// An image that is to be mounted.
    #[error("image volume {target}: its layers cannot be mounted")]
    ImageVolume {
        /// Where in the container.
        target: String,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// The part of an image that is to be mounted.
    #[error("image volume {target}: sub path {path:?} of the image cannot be used")]
    SubPath {
        /// Where in the container.
        target: String,
        /// The path in the image.
        path: String,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// The ids of the files at a path of the host cannot be mapped.
    #[error(
        "host path {path}: its file system ({filesystem}) does not support id-mapped mounts: leave out uidMappings and gidMappings, or use another volume"
    )]
    NotMappable {
        /// The path.
        path: String,
        /// The type of its file system.
        filesystem: String,
    },
    /// A path inside the container.
    #[error("{what} {path} in the container cannot be used")]
    ContainerPath {
        /// What the path is for.
        what: &'static str,
        /// The path.
        path: String,
        /// The kernel's error.
        #[source]
        source: wharf_sys::Error,
    },
    /// The user or group cannot be resolved.
    #[error("{what} {name:?} {problem}")]
    Identity {
        /// `user` or `group`.
        what: &'static str,
        /// The name or number in the request.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel does not have the AppArmor profile.
    #[error("AppArmor profile {name:?} is not loaded on this node: load it with apparmor_parser")]
    NoProfile {
        /// The profile.
        name: String,
    },
    /// The plan cannot be decoded.
    #[error("the container's plan is malformed: {problem}")]
    Plan {
        /// What is wrong with it.
        problem: String,
    },
    /// A process that did a part of it failed.
    #[error("{message}")]
    Reported {
        /// The class of its error, and what that is about.
        class: (ErrorKind, Subject),
        /// What it says.
        message: String,
    },
    /// The program could not be executed.
    #[error("exec of {program:?} failed: {reason}")]
    Exec {
        /// The first argument.
        program: String,
        /// The kernel's error, in words for people.
        reason: &'static str,
    },
    /// The filter refuses a call on the way to the program, where that has to be under the filter.
    #[error(
        "the container's seccomp profile forbids a call that is needed to start a program safely beside a container with \
         CAP_SYS_PTRACE: allow capset, prctl, clone, sendmsg, setsid, ioctl, close_range, execve, write and exit_group, \
         or drop that capability"
    )]
    Unsealed,
    /// Another runtime could not do what it was asked for.
    #[error("{runtime} {command}: {message}")]
    Runtime {
        /// Its program.
        runtime: String,
        /// What it was asked for.
        command: &'static str,
        /// What it says.
        message: String,
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
            Self::Stage { source, .. } | Self::Mount { source, .. } | Self::ImageVolume { source, .. } => {
                source.errno.kind()
            }
            Self::HostPath { source, .. }
            | Self::MountPoint { source, .. }
            | Self::ContainerPath { source, .. }
            | Self::SubPath { source, .. } => named(source.errno),
            Self::Reported { class, .. } => class.0,
            Self::Identity { .. } | Self::NotMappable { .. } => ErrorKind::InvalidArgument,
            // The daemon made the plan.
            Self::Plan { .. } => ErrorKind::Internal,
            Self::Exec { .. } | Self::NoProfile { .. } | Self::Runtime { .. } | Self::Unsealed => {
                ErrorKind::FailedPrecondition
            }
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::ImageVolume { .. } | Self::SubPath { .. } => Subject::ImageVolume,
            Self::Reported { class, .. } => class.1,
            _ => Subject::Other,
        }
    }
}

impl Error {
    /// The error with all its causes on one line.
    #[must_use]
    pub fn line(&self) -> String {
        wharf_types::chain(self)
    }
}

/// Adds the stage to a system call's error, which itself names the call and its arguments.
pub trait Stage<T> {
    /// Adds it.
    ///
    /// # Errors
    /// The same, with the stage.
    fn stage(self, stage: &'static str) -> Result<T, Error>;
}

impl<T> Stage<T> for wharf_sys::Result<T> {
    fn stage(self, stage: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Stage { stage, source })
    }
}
