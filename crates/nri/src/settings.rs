//! The settings of NRI: where plugins come from, how long they may take, and what they may adjust.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of plugins.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The socket to which plugins connect.
    pub socket: PathBuf,
    /// Whether they may connect there.
    pub external: bool,
    /// The directory of the plugins that are started with the daemon.
    pub plugin_dir: PathBuf,
    /// The directory of their configurations.
    pub plugin_config_dir: PathBuf,
    /// How long a plugin may take to register, and then to synchronise.
    pub registration_timeout: Duration,
    /// How long a plugin may take to respond to a request.
    pub request_timeout: Duration,
    /// What plugins may not adjust, and which plugins are required.
    pub validation: Validation,
    /// The version of the runtime, as plugins are told.
    pub version: String,
}

/// The rules that the runtime itself has for what plugins adjust.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validation {
    /// Whether they apply. If so, each container is checked, even while no plugin is connected.
    pub is_on: bool,
    /// The adjustments that are rejected.
    pub reject: Vec<Rejected>,
    /// The names of plugins without which no container is created.
    pub required_plugins: Vec<String>,
    /// The annotation of pods that are exempt from the required plugins; empty for none.
    pub tolerate_missing_annotation: String,
}

/// An adjustment that can be rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// Of OCI hooks.
    Hooks,
    /// Of the seccomp policy of a container with the runtime's default profile.
    RuntimeDefaultSeccomp,
    /// Of the seccomp policy of an unconfined container.
    UnconfinedSeccomp,
    /// Of the seccomp policy of a container with a profile of the node.
    CustomSeccomp,
    /// Of namespaces.
    Namespaces,
    /// Of sysctls.
    Sysctls,
}
