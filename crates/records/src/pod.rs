//! A pod's record.
//!
//! It says what the pod is and how far its making has come. Whether it still lives is not in it: its supervisor's
//! process shows that.

use std::path::Path;

use prost::Message;
use wharf_cri_api::v1::{LinuxContainerResources, PodSandboxConfig};
use wharf_state::record::{self, Durability, Format};
use wharf_state::records::{self, Content, ContentError};
use wharf_types::{Stage as _, StageError};

use crate::{Phase, PodFacts, Unreadable, load};

const RECORDING: &str = "recording the pod";

/// The recorded facts about a pod.
#[derive(Clone, PartialEq, Message)]
pub struct PodRecord {
    /// The request as it came; what it says of the pod's own cgroup changes with updates.
    #[prost(message, required, tag = "1")]
    pub config: PodSandboxConfig,
    /// The runtime handler in its request.
    #[prost(string, tag = "2")]
    pub handler: String,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub created_at_ns: i64,
    /// A [`Phase`].
    #[prost(enumeration = "Phase", tag = "4")]
    pub phase: i32,
    /// Its level of SELinux, which is empty if the policy has none; not set if it was made without labels.
    #[prost(string, optional, tag = "5")]
    pub selinux_level: Option<String>,
}

impl Content for PodRecord {
    const FORMAT: Format = Format { kind: "pod", version: 1 };

    fn encode(&self) -> Result<Vec<u8>, ContentError> {
        Ok(self.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        Ok(Message::decode(bytes)?)
    }
}

impl PodRecord {
    /// What is recorded of a pod.
    #[must_use]
    pub fn of(pod: &PodFacts, phase: Phase) -> Self {
        Self {
            config: PodSandboxConfig::clone(&pod.config),
            handler: pod.handler.clone(),
            created_at_ns: pod.created_at_ns,
            phase: phase.into(),
            selinux_level: pod.selinux_level.clone(),
        }
    }

    /// What is recorded of a pod that was made, after an update of overhead and resources.
    #[must_use]
    pub fn updated(pod: &PodFacts, resources: [Option<LinuxContainerResources>; 2]) -> Self {
        Self { config: wharf_planner::update_pod(&pod.config, resources), ..Self::of(pod, Phase::Made) }
    }

    /// Saves it.
    ///
    /// # Errors
    /// The disk's error.
    pub fn save(&self, path: &Path) -> Result<(), StageError> {
        records::save(path, self, Durability::Volatile).stage(RECORDING)
    }

    /// Saves it in place of a record of this release; one of a newer release is left as it is.
    ///
    /// # Errors
    /// Those of [`PodRecord::save`]; Unimplemented if a newer release wrote the old record.
    pub fn update(&self, path: &Path) -> Result<(), StageError> {
        record::check_replaceable(path, Self::FORMAT).stage(RECORDING)?;
        self.save(path)
    }

    /// Loads one.
    ///
    /// # Errors
    /// See [`Unreadable`].
    pub fn load(path: &Path) -> Result<Self, Unreadable> {
        load(path, "reading the pod's record", |newer: &Self| {
            let is_made = matches!(Phase::try_from(newer.phase), Ok(Phase::Made | Phase::Stopped));
            is_made && newer.config.metadata.as_ref().is_some_and(|metadata| !metadata.name.is_empty())
        })
    }
}
