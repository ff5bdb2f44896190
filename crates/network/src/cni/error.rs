//! What can go wrong with CNI.

use std::path::PathBuf;

use crate::{NetlinkError, NetnsError, StoreError};

/// CNI could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no configuration, and the built-in bridge is not to be used.
    #[error("there is no CNI configuration in {}", path.display())]
    None {
        /// The directory.
        path: PathBuf,
    },
    /// There are configurations, none of them valid; this is the first.
    #[error("the CNI configuration {} is not valid: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory of configurations cannot be read.
    #[error("read the CNI configurations in {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A pod's name, namespace or uid cannot be given to plugins.
    #[error("{value:?} cannot be an argument of a CNI plugin: it contains ; or = or a control character")]
    Argument {
        /// The text.
        value: String,
    },
    /// An annotation of bandwidth is no such.
    #[error("the annotation {annotation} is {value:?}: give bits per second from 1k to 1P, such as 10M")]
    Bandwidth {
        /// Its name.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// The program of a plugin is not there.
    #[error(
        "the CNI plugin {plugin} was not found in {dirs:?}: install it there, or set network.cni_bin_dirs"
    )]
    Missing {
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The program could not be run.
    #[error("run the CNI plugin {plugin} for {command}")]
    Run {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL` or `STATUS`.
        command: &'static str,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The plugin did not end in time and was killed.
    #[error("the CNI plugin {plugin} did not finish {command} in time and was killed")]
    Deadline {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL` or `STATUS`.
        command: &'static str,
    },
    /// The plugin wrote more than 1 MiB and was killed.
    #[error("the CNI plugin {plugin} wrote more than 1 MiB of output during {command} and was killed")]
    TooLong {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL` or `STATUS`.
        command: &'static str,
    },
    /// The plugin reported an error.
    #[error("the CNI plugin {plugin} failed during {command}: {message} (code {code}){details}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL` or `STATUS`.
        command: &'static str,
        /// The plugin's code.
        code: u64,
        /// Its message.
        message: String,
        /// `: ` and its details, or nothing.
        details: String,
    },
    /// The plugin failed without saying why.
    #[error("the CNI plugin {plugin} failed during {command} with {status}: {stderr}")]
    Exit {
        /// The plugin's type.
        plugin: String,
        /// `ADD`, `DEL` or `STATUS`.
        command: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The beginning of what it wrote to stderr.
        stderr: String,
    },
    /// The plugin ended well, but its result cannot be used.
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
    /// One word for why no pod can be attached, as conditions of the CRI have it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::None { .. } => "NoCniConfig",
            Self::Config { .. } | Self::Directory { .. } => "InvalidCniConfig",
            Self::Missing { .. } => "CniPluginMissing",
            _ => "CniPluginNotReady",
        }
    }
}
