//! The settings of NRI plugins.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_nri::{Rejected, Settings, Validation};

/// Plugins that watch, adjust and update containers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub(crate) struct Nri {
    /// Whether there are any.
    pub(crate) enabled: bool,
    /// The socket to which plugins connect.
    pub(crate) socket: PathBuf,
    /// Whether they may; else there are only those of the directory.
    pub(crate) external_connections: bool,
    /// The directory of plugins that are started with wharfd.
    pub(crate) plugin_dir: PathBuf,
    /// The directory of their configurations.
    pub(crate) plugin_config_dir: PathBuf,
    /// How long a plugin may take to register and to take over what exists, in seconds.
    pub(crate) registration_timeout_s: u64,
    /// How long a plugin may take for a request, in seconds.
    pub(crate) request_timeout_s: u64,
    pub(crate) validator: Validator,
}

/// What plugins may not adjust, and which of them there must be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub(crate) struct Validator {
    pub(crate) enabled: bool,
    pub(crate) reject_oci_hooks: bool,
    pub(crate) reject_runtime_default_seccomp: bool,
    pub(crate) reject_unconfined_seccomp: bool,
    pub(crate) reject_custom_seccomp: bool,
    pub(crate) reject_namespaces: bool,
    pub(crate) reject_sysctls: bool,
    /// Names of plugins without which no container is created.
    pub(crate) required_plugins: Vec<String>,
    /// An annotation of pods that may do without them.
    pub(crate) tolerate_missing_plugins_annotation: String,
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/var/run/nri/nri.sock".into(),
            external_connections: true,
            plugin_dir: "/opt/nri/plugins".into(),
            plugin_config_dir: "/etc/nri/conf.d".into(),
            registration_timeout_s: 5,
            request_timeout_s: 2,
            validator: Validator::default(),
        }
    }
}

impl Nri {
    /// Finds at startup what would otherwise fail with the first plugin.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let paths = [
            ("socket", &self.socket),
            ("plugin_dir", &self.plugin_dir),
            ("plugin_config_dir", &self.plugin_config_dir),
        ];
        for (key, path) in paths {
            anyhow::ensure!(path.is_absolute(), "nri.{key}: {path:?} must begin with a slash");
        }
        let times = [
            ("registration_timeout_s", self.registration_timeout_s),
            ("request_timeout_s", self.request_timeout_s),
        ];
        for (key, time) in times {
            anyhow::ensure!((1..=600).contains(&time), "nri.{key}: {time} is not between 1 and 600");
        }
        Ok(())
    }

    /// The settings, if there are plugins.
    pub(crate) fn settings(&self) -> Option<Settings> {
        self.enabled.then(|| Settings {
            socket: self.socket.clone(),
            external: self.external_connections,
            plugin_dir: self.plugin_dir.clone(),
            plugin_config_dir: self.plugin_config_dir.clone(),
            registration_timeout: Duration::from_secs(self.registration_timeout_s),
            request_timeout: Duration::from_secs(self.request_timeout_s),
            validation: self.validator.validation(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

impl Validator {
    fn validation(&self) -> Validation {
        let all = [
            (self.reject_oci_hooks, Rejected::Hooks),
            (self.reject_runtime_default_seccomp, Rejected::RuntimeDefaultSeccomp),
            (self.reject_unconfined_seccomp, Rejected::UnconfinedSeccomp),
            (self.reject_custom_seccomp, Rejected::CustomSeccomp),
            (self.reject_namespaces, Rejected::Namespaces),
            (self.reject_sysctls, Rejected::Sysctls),
        ];
        Validation {
            is_on: self.enabled,
            reject: all.into_iter().filter(|(is_set, _)| *is_set).map(|(_, rejected)| rejected).collect(),
            required_plugins: self.required_plugins.clone(),
            tolerate_missing_annotation: self.tolerate_missing_plugins_annotation.clone(),
        }
    }
}
