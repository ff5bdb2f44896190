//! What is remembered of pods and containers on disk: the request as it came, and the little that cannot be derived.

use std::path::Path;

use prost::Message;
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_state::record::{self, Durability, Format, Staged};
use wharf_wire::v1::Identity;

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
    /// As older builds had it of a pod that was stopped; now it is told by its supervisor, which is gone.
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
    /// The directories of the image's layers, which the container may outlive.
    #[prost(string, repeated, tag = "11")]
    pub(crate) layers: Vec<String>,
    /// Whether its first process was there, and said who it is.
    #[prost(bool, tag = "12")]
    pub(crate) made: bool,
}

impl ContainerRecord {
    /// Takes note of who the first process is.
    pub(crate) fn identify(&mut self, identity: Identity) {
        self.made = true;
        self.uid = identity.uid;
        self.gid = identity.gid;
        self.groups = identity.groups;
    }

    /// Whether the container was made whole.
    pub(crate) fn is_made(&self) -> bool {
        // Records of older builds tell it by the groups alone.
        self.made || !self.groups.is_empty()
    }
}

/// Why there is no record to go by.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It is not what was saved.
    Damaged(Error),
    /// It may be whole: a newer release wrote it, or the disk refuses for now.
    LeftAlone(Error),
}

impl Unreadable {
    fn new(stage: &'static str, error: record::Error) -> Self {
        let unreadable = if error.is_damage() { Self::Damaged } else { Self::LeftAlone };
        unreadable(Error::at(stage, error))
    }
}

pub(crate) fn save_pod(path: &Path, record: &PodRecord) -> Result<(), Error> {
    record::save(path, POD, &record.encode_to_vec(), Durability::Volatile).stage("recording the pod")
}

pub(crate) fn load_pod(path: &Path) -> Result<PodRecord, Unreadable> {
    load(path, POD, "reading the pod's record")
}

pub(crate) fn save_container(path: &Path, record: &ContainerRecord) -> Result<(), Error> {
    record::save(path, CONTAINER, &record.encode_to_vec(), Durability::Volatile)
        .stage("recording the container")
}

pub(crate) fn load_container(path: &Path) -> Result<ContainerRecord, Unreadable> {
    load(path, CONTAINER, "reading the container's record")
}

/// Writes a container's record beside its place: what it tells of can then be done, and the record be put into its place.
pub(crate) fn stage_container(path: &Path, record: &ContainerRecord) -> Result<Staged, Error> {
    record::stage(path, CONTAINER, &record.encode_to_vec(), Durability::Volatile)
        .stage("recording the container")
}

fn load<R: Message + Default>(path: &Path, format: Format, stage: &'static str) -> Result<R, Unreadable> {
    let read = || record::load(path, format);
    // A disk that refused once may not do so again.
    let content = read().or_else(|_first| read()).map_err(|error| Unreadable::new(stage, error))?;
    R::decode(&*content).map_err(|error| Unreadable::Damaged(Error::fault(stage, error)))
}
