//! What is remembered of pods and containers on disk: the request as it came, and the little that cannot be derived.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use prost::Message;
use wharf_cgroup::CgroupPath;
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_state::record::{self, Durability, Format, Staged};
use wharf_state::records::{self, Content, ContentError};
use wharf_wire::v1::Identity;

use crate::error::{Error, Stage};

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

impl Content for PodRecord {
    const FORMAT: Format = Format { kind: "pod", version: 1 };

    fn encode(&self) -> Result<Vec<u8>, ContentError> {
        Ok(self.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        Ok(Message::decode(bytes)?)
    }
}

/// How far a pod or a container has come: what it cannot be asked itself once its supervisor is gone.
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
    /// Made once its first process was there, and said who it is.
    #[prost(enumeration = "Phase", tag = "12")]
    pub(crate) phase: i32,
}

impl Content for ContainerRecord {
    const FORMAT: Format = Format { kind: "container", version: 1 };

    fn encode(&self) -> Result<Vec<u8>, ContentError> {
        Ok(self.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        Ok(Message::decode(bytes)?)
    }
}

impl ContainerRecord {
    /// Takes note of who the first process is.
    pub(crate) fn identify(&mut self, identity: Identity) {
        self.phase = Phase::Made.into();
        self.uid = identity.uid;
        self.gid = identity.gid;
        self.groups = identity.groups;
    }

    /// Whether the container was made whole.
    pub(crate) fn is_made(&self) -> bool {
        // Records of older builds tell it by the groups alone.
        self.phase() != Phase::Making || !self.groups.is_empty()
    }
}

/// Keeps what a container is made of, for people and tools: a file and not part of the record, which is in memory and read
/// for each list; and in the state directory, since it has the environment, in which people put secrets.
pub(crate) fn save_spec(path: &Path, text: &[u8]) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text)).stage("keeping the container's runtime spec")
}

/// Why there is no record to go by.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It is not what was saved.
    Damaged(Error),
    /// It may be whole: a newer release wrote it in a way that says nothing to this one, or the disk refuses for now.
    LeftAlone(Error),
}

impl Unreadable {
    fn new(stage: &'static str, error: record::Error) -> Self {
        let unreadable = if error.is_damage() { Self::Damaged } else { Self::LeftAlone };
        unreadable(Error::at(stage, error))
    }
}

pub(crate) fn save_pod(path: &Path, record: &PodRecord) -> Result<(), Error> {
    records::save(path, record, Durability::Volatile).stage("recording the pod")
}

/// Loads a pod's record; one of a newer release with what this one understands, which must be enough to list the pod and to
/// take it away. Who does not see its pod makes it a second time.
pub(crate) fn load_pod(path: &Path) -> Result<PodRecord, Unreadable> {
    let stage = "reading the pod's record";
    records::load(path).map_err(|error| Unreadable::new(stage, error)).or_else(|unreadable| {
        let newer: Option<PodRecord> = load_newer(path);
        let listable = |record: &PodRecord| {
            let is_made = matches!(Phase::try_from(record.phase), Ok(Phase::Made | Phase::Stopped));
            is_made && record.config.metadata.as_ref().is_some_and(|metadata| !metadata.name.is_empty())
        };
        newer.filter(listable).ok_or(unreadable)
    })
}

pub(crate) fn save_container(path: &Path, record: &ContainerRecord) -> Result<(), Error> {
    records::save(path, record, Durability::Volatile).stage("recording the container")
}

/// Saves a container's record in place of that of this release; a newer one's is left as it is.
pub(crate) fn update_container(path: &Path, record: &ContainerRecord) -> Result<(), Error> {
    check_container(path)?;
    save_container(path, record)
}

fn check_container(path: &Path) -> Result<(), Error> {
    record::check_replaceable(path, ContainerRecord::FORMAT).stage("recording the container")
}

/// Loads a container's record; one of a newer release as [`load_pod`] does.
pub(crate) fn load_container(path: &Path) -> Result<ContainerRecord, Unreadable> {
    let stage = "reading the container's record";
    records::load(path).map_err(|error| Unreadable::new(stage, error)).or_else(|unreadable| {
        let newer: Option<ContainerRecord> = load_newer(path);
        let listable = |record: &ContainerRecord| {
            record.is_made() && record.config.metadata.is_some() && CgroupPath::new(&record.cgroup).is_ok()
        };
        newer.filter(listable).ok_or(unreadable)
    })
}

/// Writes a container's record beside its place: what it tells of can then be done, and the record be put into its place.
pub(crate) fn stage_container(path: &Path, record: &ContainerRecord) -> Result<Staged, Error> {
    check_container(path)?;
    records::stage(path, record, Durability::Volatile).stage("recording the container")
}

fn load_newer<R: Content>(path: &Path) -> Option<R> {
    let content = record::load_newer(path, R::FORMAT).ok()?;
    let record = R::decode(&content).ok()?;
    tracing::warn!(path = %path.display(), "a newer release wrote this record; it is left as it is");
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{ContainerMetadata, PodSandboxMetadata};
    use wharf_types::{ErrorKind, Failure as _};

    fn pod(phase: i32) -> PodRecord {
        let metadata = Some(PodSandboxMetadata { name: "web".to_owned(), ..Default::default() });
        let config = PodSandboxConfig { metadata, ..Default::default() };
        PodRecord { config, handler: String::new(), created_at_ns: 7, phase }
    }

    fn newer(path: &Path, format: Format, content: &[u8]) {
        let format = Format { version: format.version + 1, ..format };
        record::save(path, format, content, Durability::Volatile).unwrap();
    }

    #[test]
    fn a_newer_pod_is_listed_if_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let with_more = [pod(Phase::Made.into()).encode_to_vec(), b"\xa2\x06\x03new".to_vec()].concat();
        newer(&path, PodRecord::FORMAT, &with_more);
        assert_eq!(load_pod(&path).unwrap(), pod(Phase::Made.into()));
        let unknown_phase = pod(9).encode_to_vec();
        let in_the_making = pod(Phase::Making.into()).encode_to_vec();
        for content in [&b"\xff"[..], b"", &unknown_phase, &in_the_making] {
            newer(&path, PodRecord::FORMAT, content);
            assert!(matches!(load_pod(&path), Err(Unreadable::LeftAlone(_))), "{content:?}");
        }
    }

    #[test]
    fn a_newer_container_is_listed_and_its_record_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let mut record = ContainerRecord { cgroup: "/wharf/c".to_owned(), ..Default::default() };
        newer(&path, ContainerRecord::FORMAT, &record.encode_to_vec());
        assert!(matches!(load_container(&path), Err(Unreadable::LeftAlone(_))), "nobody was told of it");
        record.config.metadata = Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 });
        record.identify(Identity::default());
        newer(&path, ContainerRecord::FORMAT, &record.encode_to_vec());
        assert_eq!(load_container(&path).unwrap(), record);
        let before = std::fs::read(&path).unwrap();
        let error = update_container(&path, &record).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unimplemented);
        assert!(stage_container(&path, &record).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
