//! What is remembered of pods and containers on disk: the request as it came, and the little that cannot be derived.

use prost::Message;
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_state::record::{self, Durability, Format};

use crate::error::{Error, Stage};

const POD: Format = Format { kind: "pod", version: 1 };
const CONTAINER: Format = Format { kind: "container", version: 1 };

/// A pod's record.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodRecord {
    #[prost(message, required, tag = "1")]
    pub(crate) config: PodSandboxConfig,
    #[prost(string, tag = "2")]
    pub(crate) handler: String,
    #[prost(int64, tag = "3")]
    pub(crate) created_at_ns: i64,
    #[prost(enumeration = "Phase", tag = "4")]
    pub(crate) phase: i32,
}

/// How far a pod has come: what it cannot be asked itself once its supervisor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
pub(crate) enum Phase {
    /// Nobody was told of it yet: after a crash it is taken back.
    Making = 0,
    /// Everything is set up.
    Made = 1,
    /// Everything but its containers' files was taken down.
    Stopped = 2,
}

/// A container's record.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(message, required, tag = "1")]
    pub(crate) config: ContainerConfig,
    #[prost(int64, tag = "2")]
    pub(crate) created_at_ns: i64,
    #[prost(string, tag = "3")]
    pub(crate) image_id: String,
    #[prost(string, tag = "4")]
    pub(crate) image_ref: String,
    #[prost(string, tag = "5")]
    pub(crate) stop_signal: String,
    #[prost(string, tag = "6")]
    pub(crate) cgroup: String,
    #[prost(uint32, tag = "7")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "8")]
    pub(crate) gid: u32,
    #[prost(uint32, repeated, tag = "9")]
    pub(crate) groups: Vec<u32>,
    /// Why the program could not be executed.
    #[prost(string, tag = "10")]
    pub(crate) message: String,
}

pub(crate) fn save_pod(path: &std::path::Path, record: &PodRecord) -> Result<(), Error> {
    record::save(path, POD, &record.encode_to_vec(), Durability::Volatile).stage("recording the pod")
}

pub(crate) fn load_pod(path: &std::path::Path) -> Result<PodRecord, Error> {
    let content = record::load(path, POD).stage("reading the pod's record")?;
    PodRecord::decode(&*content).stage("reading the pod's record")
}

pub(crate) fn save_container(path: &std::path::Path, record: &ContainerRecord) -> Result<(), Error> {
    record::save(path, CONTAINER, &record.encode_to_vec(), Durability::Volatile)
        .stage("recording the container")
}

pub(crate) fn load_container(path: &std::path::Path) -> Result<ContainerRecord, Error> {
    let content = record::load(path, CONTAINER).stage("reading the container's record")?;
    ContainerRecord::decode(&*content).stage("reading the container's record")
}
