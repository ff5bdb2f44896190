//! The crate's error, and the class of each case for clients.

use nix::errno::Errno;
use wharf_types::{ErrorKind, Failure};

use crate::{BuiltinError, CniError, LeaseError, NetlinkError, NetnsError, StoreError, SubnetError};

/// Why the network could not do what was requested.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built-in network's error.
    #[error(transparent)]
    Builtin(#[from] BuiltinError),
    /// The error of CNI.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// This is a cluster's node, so the built-in network is not used, and there is no CNI configuration (yet).
    #[error(
        "{missing}, and the built-in network is not used on a cluster's node ({sign}): install the cluster's network, or set \
         network.builtin = \"on\" in wharf's configuration"
    )]
    Yields {
        /// What is missing.
        missing: String,
        /// What shows that this is a cluster's node.
        sign: String,
    },
    /// A pod's namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel returned an error.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The state cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A range of addresses is malformed.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Builtin(error) => builtin(error),
            Self::Cni(error) => cni(error),
            Self::Yields { .. } => ErrorKind::FailedPrecondition,
            Self::Netns(error) => error.kind(),
            Self::Netlink(error) => error.errno.kind(),
            Self::Store(error) => error.kind(),
            Self::Subnet(_) => ErrorKind::InvalidArgument,
        }
    }
}

impl Error {
    /// The reason, in one word, for the CRI's condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Yields { .. } => "NoCniConfig",
            Self::Cni(error) => error.reason(),
            _ => "NetworkFailed",
        }
    }
}

fn builtin(error: &BuiltinError) -> ErrorKind {
    match error {
        BuiltinError::NotABridge { .. }
        | BuiltinError::NoIpv6 { .. }
        | BuiltinError::NotOfCluster { .. }
        | BuiltinError::Overlap { .. } => ErrorKind::FailedPrecondition,
        BuiltinError::Lease(LeaseError::Exhausted { .. }) => ErrorKind::ResourceExhausted,
        BuiltinError::Lease(LeaseError::PortTaken { .. }) => ErrorKind::FailedPrecondition,
        BuiltinError::Lease(
            LeaseError::PortTwice { .. } | LeaseError::PortFamily { .. } | LeaseError::PortLoopback { .. },
        ) => ErrorKind::InvalidArgument,
        BuiltinError::Netns(error) => error.kind(),
        BuiltinError::Netlink(error) => error.errno.kind(),
        BuiltinError::Sysctl(error) => Failure::kind(&error.source),
        BuiltinError::Lease(LeaseError::Store { source: error }) | BuiltinError::Store(error) => error.kind(),
    }
}

fn cni(error: &CniError) -> ErrorKind {
    match error {
        CniError::None { .. } | CniError::Config { .. } | CniError::Missing { .. } => {
            ErrorKind::FailedPrecondition
        }
        CniError::Directory { source, .. } => match Failure::kind(source) {
            // Someone must repair the directory.
            ErrorKind::Internal => ErrorKind::FailedPrecondition,
            kind => kind,
        },
        CniError::Argument { .. } | CniError::Bandwidth { .. } => ErrorKind::InvalidArgument,
        CniError::Deadline { .. } => ErrorKind::DeadlineExceeded,
        CniError::Plugin { .. } | CniError::Exit { .. } => ErrorKind::Unavailable,
        CniError::Output { .. } | CniError::TooLong { .. } => ErrorKind::DataLoss,
        CniError::Netns(error) => error.kind(),
        CniError::Run { source, .. } => Failure::kind(source),
        CniError::Store(error) => error.kind(),
        CniError::Netlink(error) => error.errno.kind(),
    }
}

impl Failure for NetnsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { source: Errno::ENOENT, .. } | Self::NotPinned { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Thread { .. } => ErrorKind::ResourceExhausted,
            Self::Open { source, .. } | Self::Pin { source, .. } => source.kind(),
            // It is a bug in wharf, whatever it is.
            Self::Enter { source: Errno::EINVAL } | Self::Lost => ErrorKind::Internal,
            Self::Enter { source } => source.kind(),
        }
    }
}
