//! The error of the crate, and the class of each for clients.

use wharf_types::ErrorKind;

use crate::{BridgeError, CniError, LeaseError, NetlinkError, NetnsError, StoreError, SubnetError};

/// The network could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// By the built-in bridge.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// By CNI plugins.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// This is a cluster's node, so the built-in bridge is not used, and there is no CNI configuration (yet).
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
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The state cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A range of addresses is malformed.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
}

impl Error {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bridge(error) => bridge(error),
            Self::Cni(error) => cni(error),
            Self::Yields { .. } => ErrorKind::FailedPrecondition,
            Self::Netns(error) => netns(error),
            Self::Netlink(_) | Self::Store(_) => ErrorKind::Internal,
            Self::Subnet(_) => ErrorKind::InvalidArgument,
        }
    }

    /// One word for why no pod can be attached, as conditions of the CRI have it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Yields { .. } => "NoCniConfig",
            Self::Cni(error) => error.reason(),
            _ => "NetworkFailed",
        }
    }
}

fn bridge(error: &BridgeError) -> ErrorKind {
    match error {
        BridgeError::NotABridge { .. } | BridgeError::NoIpv6 { .. } | BridgeError::Overlap { .. } => {
            ErrorKind::FailedPrecondition
        }
        BridgeError::Lease(LeaseError::Exhausted { .. }) => ErrorKind::ResourceExhausted,
        BridgeError::Lease(LeaseError::PortTaken { .. }) => ErrorKind::FailedPrecondition,
        BridgeError::Lease(LeaseError::PortTwice { .. } | LeaseError::PortFamily { .. }) => {
            ErrorKind::InvalidArgument
        }
        BridgeError::Netns(error) => netns(error),
        BridgeError::Lease(LeaseError::Store { .. })
        | BridgeError::Store(_)
        | BridgeError::Netlink(_)
        | BridgeError::Sysctl(_) => ErrorKind::Internal,
    }
}

fn cni(error: &CniError) -> ErrorKind {
    match error {
        CniError::None { .. }
        | CniError::Config { .. }
        | CniError::Directory { .. }
        | CniError::Missing { .. } => ErrorKind::FailedPrecondition,
        CniError::Argument { .. } | CniError::Bandwidth { .. } => ErrorKind::InvalidArgument,
        CniError::Deadline { .. } => ErrorKind::DeadlineExceeded,
        CniError::Plugin { .. } | CniError::Exit { .. } => ErrorKind::Unavailable,
        CniError::Output { .. } | CniError::TooLong { .. } => ErrorKind::DataLoss,
        CniError::Netns(error) => netns(error),
        CniError::Run { .. } | CniError::Store(_) | CniError::Netlink(_) => ErrorKind::Internal,
    }
}

fn netns(error: &NetnsError) -> ErrorKind {
    match error {
        NetnsError::Open { .. } | NetnsError::NotPinned { .. } => ErrorKind::FailedPrecondition,
        NetnsError::Thread { .. } => ErrorKind::ResourceExhausted,
        NetnsError::Enter { .. } | NetnsError::Lost => ErrorKind::Internal,
    }
}
