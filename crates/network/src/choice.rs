//! The node's network: the built-in one, or that of CNI plugins.
//!
//! A node has one network, and a pod is never put on the other because this one is out of order for a moment: the pod
//! would be outside the cluster's policies, and might have an address that another pod has. So once something has shown
//! that the node belongs to a cluster, that counts for good.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use wharf_state::record::Durability;
use wharf_state::records::Records;

use crate::cni::{Cni, CniError, NetworkConfig};
use crate::error::Error;
use crate::store::{self, Json, StoreError};
use crate::subnet::SubnetError;

const POD_CIDR: &str = "pod-cidr";
const CNI_SEEN: &str = "cni-seen";

/// Whether pods use the built-in network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// On a machine that shows no sign of belonging to a cluster; on any other, pods wait for a CNI configuration.
    Auto,
    /// Always; CNI configurations are ignored.
    On,
    /// Never: pods wait for a CNI configuration.
    Off,
}

impl Builtin {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// The network for the next pod.
#[derive(Debug)]
pub(crate) enum Choice {
    Builtin,
    Cni(Arc<NetworkConfig>),
}

/// A sign that a machine is a cluster's node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// There was a CNI configuration in this directory.
    Cni(PathBuf),
    /// A kubelet sent this range for the node's pods.
    PodCidr(String),
    /// This file of a kubelet exists.
    Kubelet(PathBuf),
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cni(directory) => write!(f, "a CNI configuration was seen in {}", directory.display()),
            Self::PodCidr(cidr) => write!(f, "a kubelet sent the pod CIDR {cidr}"),
            Self::Kubelet(path) => write!(f, "a kubelet has {}", path.display()),
        }
    }
}

/// Something that is remembered about the node, as a text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Setting(String);

impl store::Kind for Setting {
    const NAME: &'static str = "setting";
}

/// Chooses by the configuration and by the signs, of which it remembers those that may disappear.
#[derive(Debug)]
pub(crate) struct Chooser {
    builtin: Builtin,
    kubelet_files: Vec<PathBuf>,
    settings: Records<Json<Setting>>,
    cni_seen: AtomicBool,
}

impl Chooser {
    pub(crate) fn open(
        builtin: Builtin,
        kubelet_files: Vec<PathBuf>,
        dir: PathBuf,
    ) -> Result<Self, StoreError> {
        let cni_seen = AtomicBool::new(false);
        let chooser = Self { builtin, kubelet_files, settings: store::open(dir)?, cni_seen };
        chooser.cni_seen.store(chooser.remembered(CNI_SEEN).is_some(), Relaxed);
        Ok(chooser)
    }

    /// The network for the next pod.
    ///
    /// # Errors
    /// [`Error::Cni`] if it is CNI's and its configuration is missing or damaged; [`Error::Yields`] if the
    /// configuration is missing and this is a cluster's node; [`Error::Store`] if a sign cannot be remembered.
    pub(crate) fn choose(&self, cni: &Cni) -> Result<Choice, Error> {
        if self.builtin == Builtin::On {
            return Ok(Choice::Builtin);
        }
        let found = cni.current();
        if matches!(found, Ok(Some(_)) | Err(CniError::Config { .. })) || cni.has_pods() {
            self.remember_cni(cni.directory())?;
        }
        if let Some(network) = found? {
            return Ok(Choice::Cni(network));
        }
        let missing = cni.none();
        match (self.builtin, self.sign()) {
            (Builtin::Off, _) => Err(missing.into()),
            (_, Some(sign)) => Err(Error::Yields { missing: missing.to_string(), sign: sign.to_string() }),
            (_, None) => Ok(Choice::Builtin),
        }
    }

    /// Whether CNI configurations are ignored.
    pub(crate) fn ignores_cni(&self) -> bool {
        self.builtin == Builtin::On
    }

    /// The last range that a kubelet sent, even if it was to an earlier process.
    pub(crate) fn pod_cidr(&self) -> Option<String> {
        self.remembered(POD_CIDR)
    }

    pub(crate) fn remember_pod_cidr(&self, cidrs: &str) -> Result<(), StoreError> {
        self.remember(POD_CIDR, cidrs.to_owned())
    }

    /// Moves a range that cannot be parsed to the quarantine.
    pub(crate) fn forget_pod_cidr(&self, cause: SubnetError) {
        store::report(POD_CIDR, &self.settings.reject(POD_CIDR, Box::new(cause)));
    }

    fn remember_cni(&self, directory: &Path) -> Result<(), StoreError> {
        if !self.cni_seen.load(Relaxed) {
            self.remember(CNI_SEEN, directory.display().to_string())?;
            self.cni_seen.store(true, Relaxed);
        }
        Ok(())
    }

    fn sign(&self) -> Option<Sign> {
        if let Some(directory) = self.remembered(CNI_SEEN) {
            return Some(Sign::Cni(directory.into()));
        }
        let kubelet = || self.kubelet_files.iter().find(|path| path.exists()).cloned().map(Sign::Kubelet);
        self.pod_cidr().map(Sign::PodCidr).or_else(kubelet)
    }

    fn remember(&self, name: &str, text: String) -> Result<(), StoreError> {
        Ok(self.settings.save(name, &Json(Setting(text)), Durability::Durable)?)
    }

    fn remembered(&self, name: &str) -> Option<String> {
        match self.settings.load(name) {
            Ok(setting) => setting.map(|Json(Setting(text))| text),
            Err(error) => {
                store::report(name, &error);
                None
            }
        }
    }
}
