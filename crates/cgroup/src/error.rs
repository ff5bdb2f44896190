//! The errors of this crate.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use wharf_types::{ErrorKind, Failure};

use crate::detect::Controller;
use crate::path::{CgroupPath, PathError};
use crate::systemd::bus::BusError;

/// A failed operation on a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a v1 controller nor cgroup2 is mounted.
    #[error("no cgroup hierarchy is mounted; mount cgroup2 at /sys/fs/cgroup")]
    NoHierarchy,
    /// The cgroup is in no hierarchy that could kill and list its processes.
    #[error("cgroup {path} does not exist")]
    NotFound {
        /// The cgroup.
        path: CgroupPath,
    },
    /// systemd is to make the cgroups, and does not run.
    #[error("systemd does not run here: set cgroup_driver to \"cgroupfs\"")]
    NoSystemd,
    /// systemd did not do what it was asked.
    #[error("cannot {action} the unit {unit}")]
    Systemd {
        /// What was being done: make, limit, stop.
        action: &'static str,
        /// The unit.
        unit: String,
        /// Why.
        #[source]
        source: BusError,
    },
    /// The process that a scope begins with could not be started.
    #[error("cannot start the holder of a scope")]
    Holder {
        /// The failed call.
        #[source]
        source: wharf_sys::Error,
    },
    /// A path became too long.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file or directory could not be read, opened, made or removed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was being done: read, open, create, remove, walk through.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a value.
    #[error("cannot write {value:?} to {file:?}")]
    Write {
        /// The file.
        file: PathBuf,
        /// The value.
        value: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A kernel file has content that this crate does not understand.
    #[error("{file:?} contains {text:?}, which cannot be parsed")]
    Parse {
        /// The file.
        file: PathBuf,
        /// The offending part.
        text: String,
    },
    /// Something did not happen within its deadline.
    #[error("cgroup {path:?} was not {awaited} after {waited_ms} ms")]
    Late {
        /// The cgroup's directory.
        path: PathBuf,
        /// The state that was waited for: empty, removed, frozen, thawed.
        awaited: &'static str,
        /// How long the wait was.
        waited_ms: u128,
    },
    /// A limit that no node can meet.
    #[error("limit {limit} is invalid: {reason}")]
    InvalidLimit {
        /// The limit and its value.
        limit: String,
        /// Why.
        reason: &'static str,
    },
    /// A limit that this node cannot meet.
    #[error("limit {limit} needs the controller {controller}, which this node lacks")]
    NoController {
        /// The limit.
        limit: String,
        /// What is missing.
        controller: Controller,
    },
    /// A file of cgroup v2 that this node does not have.
    #[error(
        "unified {file:?} needs the controller {controller} in cgroup v2, where this node lacks it: leave it out"
    )]
    NotUnified {
        /// The file.
        file: String,
        /// What is missing.
        controller: Controller,
    },
    /// A process could not be killed.
    #[error("cannot kill process {pid}")]
    Kill {
        /// The process.
        pid: i32,
        /// The failed call.
        #[source]
        source: wharf_sys::Error,
    },
    /// A process's `oom_score_adj` could not be set.
    #[error("cannot set the oom_score_adj of process {pid}")]
    OomScore {
        /// The process.
        pid: i32,
        /// The failed call.
        #[source]
        source: wharf_sys::Error,
    },
    /// The device program could not be loaded or attached.
    #[error("cannot set the device filter of {path:?}")]
    DeviceFilter {
        /// The cgroup's directory.
        path: PathBuf,
        /// The failed call.
        #[source]
        source: wharf_sys::Error,
    },
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoHierarchy | Self::NoSystemd | Self::NoController { .. } | Self::NotUnified { .. } => {
                ErrorKind::Unimplemented
            }
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::InvalidLimit { .. } => ErrorKind::InvalidArgument,
            Self::OomScore { source, .. } if source.errno == Errno::EINVAL => ErrorKind::InvalidArgument,
            Self::Late { .. } => ErrorKind::DeadlineExceeded,
            Self::Parse { .. } => ErrorKind::Internal,
            Self::Systemd { source, .. } => source.kind(),
            Self::Path(error) => error.kind(),
            Self::Kill { source, .. }
            | Self::DeviceFilter { source, .. }
            | Self::OomScore { source, .. }
            | Self::Holder { source } => source.kind(),
            Self::Io { source, .. } => kind_of(source),
            // A value that the kernel finds out of range came from the request.
            Self::Write { source, .. } => match errno(source) {
                Some(Errno::EINVAL | Errno::ERANGE) => ErrorKind::InvalidArgument,
                // The file or the whole cgroup does not exist; the caller named neither.
                Some(Errno::ENOENT | Errno::ENODEV) => ErrorKind::FailedPrecondition,
                _ => kind_of(source),
            },
        }
    }
}

impl Error {
    /// Adds the action and the path to an I/O error.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

impl From<wharf_sys::Error> for Error {
    /// Of a walk through cgroups.
    fn from(error: wharf_sys::Error) -> Self {
        Self::Io { action: "walk through", path: error.arguments.into(), source: error.errno.into() }
    }
}

fn kind_of(source: &io::Error) -> ErrorKind {
    match errno(source) {
        Some(Errno::ENOENT | Errno::ENODEV) => ErrorKind::NotFound,
        Some(Errno::EBUSY) => ErrorKind::FailedPrecondition,
        _ => Failure::kind(source),
    }
}

/// The errno of an I/O error, if it came from the kernel.
pub(crate) fn errno(source: &io::Error) -> Option<Errno> {
    source.raw_os_error().map(Errno::from_raw)
}
