//! The errors of CNI.

use std::path::PathBuf;

use crate::{NetlinkError, NetnsError, StoreError};

/// Why CNI could not attach or detach a pod.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no configuration, and the built-in network must not be used.
    #[error("there is no CNI configuration in {}", path.display())]
    None {
        /// The directory.
        path: PathBuf,
    },
    /// There are configurations but none is valid; this is the first.
    #[error("the CNI configuration {} is not valid: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory of configurations or a file in it cannot be read.
    #[error("cannot read the CNI configuration {}", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A pod's name, namespace or uid cannot be passed to plugins.
    #[error("{value:?} cannot be an argument of a CNI plugin: it contains ; or = or a control character")]
    Argument {
        /// The text.
        value: String,
    },
    /// The value of a bandwidth annotation is not a bandwidth.
    #[error("the annotation {annotation} is {value:?}: give bits per second from 1k to 1P, such as 10M")]
    Bandwidth {
        /// Its name.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// The program of a plugin does not exist.
    #[error(
        "the CNI plugin {plugin} was not found in {dirs:?}: install it there, or set network.cni_bin_dirs"
    )]
    Missing {
        /// The plugin's type.
        plugin: String,
        /// The directories that were searched.
        dirs: Vec<PathBuf>,
    },
    /// The program could not be run.
    #[error("cannot run the CNI plugin {plugin} for {command}")]
    Run {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL`, `STATUS` or `GC`.
        command: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The plugin did not finish in time and was killed.
    #[error("the CNI plugin {plugin} did not finish {command} in time and was killed")]
    Deadline {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL`, `STATUS` or `GC`.
        command: &'static str,
    },
    /// The plugin wrote more than 1 MiB and was killed.
    #[error("the CNI plugin {plugin} wrote more than 1 MiB of output during {command} and was killed")]
    TooLong {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL`, `STATUS` or `GC`.
        command: &'static str,
    },
    /// The plugin reported an error.
    #[error("the CNI plugin {plugin} failed during {command}: {message} (code {code}){details}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL`, `STATUS` or `GC`.
        command: &'static str,
        /// The plugin's error code.
        code: u64,
        /// Its message.
        message: String,
        /// `: ` and its details; may be empty.
        details: String,
    },
    /// The plugin failed without saying why.
    #[error("the CNI plugin {plugin} failed during {command} with {status}: {stderr}")]
    Exit {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL`, `STATUS` or `GC`.
        command: &'static str,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The beginning of its stderr.
        stderr: String,
    },
    /// The plugin succeeded, but its result cannot be used.
    #[error("the CNI plugin {plugin} returned no usable result: {reason}")]
    Output {
        /// The plugin's type.
        plugin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A record could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The pod's loopback could not be brought up.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl CniError {
    /// The reason, in one word, for the CRI's condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::None { .. } => "NoCniConfig",
            Self::Config { .. } | Self::Directory { .. } => "InvalidCniConfig",
            Self::Missing { .. } => "CniPluginMissing",
            _ => "CniPluginNotReady",
        }
    }
}
