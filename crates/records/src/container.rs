//! A container's record, and the file with the runtime spec beside it.
//!
//! The request is recorded as it came, with the limits of later updates. What can be derived from it is not; what
//! cannot, such as the layers or the user that a name turned out to be, is beside it.

use std::collections::BTreeSet;
use std::fs::{OpenOptions, remove_dir};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use prost::Message;
use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_cri_api::v1::ContainerConfig;
use wharf_state::Layout;
use wharf_state::record::{self, Durability, Format, Staged};
use wharf_state::records::{self, Content, ContentError, ids};
use wharf_types::{ContainerId, Exit, PodId, Stage as _, StageError, chain};
use wharf_wire::v1::Identity;

use crate::{Phase, Unreadable, load};

const RECORDING: &str = "recording the container";
/// The explanation of an end that nobody saw.
pub const UNSEEN: &str = "its supervisor died or did not respond, so how it ended was not seen";
/// The explanation of a failed start without another one.
pub const UNSTARTED: &str = "the call that started it gave up before its program was executed";

/// The path that is told for the log of a container without one. Nothing can ever be there. The kubelet removes what
/// matches a removed container's path and a star: with an empty path, that is everything in its working directory.
pub const NO_LOG: &str = "/dev/null/no-log";

/// The recorded facts about a container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerRecord {
    /// The request as it came; its limits change with updates.
    #[prost(message, required, tag = "1")]
    pub config: ContainerConfig,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "2")]
    pub created_at_ns: i64,
    /// The image's id.
    #[prost(string, tag = "3")]
    pub image_id: String,
    /// The image, by digest if that is known.
    #[prost(string, tag = "4")]
    pub image_ref: String,
    /// The signal that asks the program to exit, by name or number; empty for SIGTERM.
    #[prost(string, tag = "5")]
    pub stop_signal: String,
    /// Its cgroup.
    #[prost(string, tag = "6")]
    pub cgroup: String,
    /// The user of its first process.
    #[prost(uint32, tag = "7")]
    pub uid: u32,
    /// The group of its first process.
    #[prost(uint32, tag = "8")]
    pub gid: u32,
    /// The supplementary groups of its first process.
    #[prost(uint32, repeated, tag = "9")]
    pub groups: Vec<u32>,
    /// Why the program could not be executed.
    #[prost(string, tag = "10")]
    pub message: String,
    /// The directories of the layers of its image and of those that it mounts; the container may outlive them.
    #[prost(string, repeated, tag = "11")]
    pub layers: Vec<String>,
    /// `Made` once all is set that needs its first process: identity, hooks, device rules, delegation.
    #[prost(enumeration = "Phase", tag = "12")]
    pub phase: i32,
    /// For each mount of the request, the id of the image that is mounted; empty for any other mount.
    #[prost(string, repeated, tag = "13")]
    pub mounted_images: Vec<String>,
    /// The hooks of its runtime spec and what they are told of it, as JSON; empty if it has none.
    #[prost(string, tag = "14")]
    pub hooks: String,
    /// Whether its processes are in a cgroup below its cgroup.
    #[prost(bool, tag = "15")]
    pub is_enclosed: bool,
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
    /// Notes the identity of the first process.
    pub fn identify(&mut self, identity: Identity) {
        self.phase = Phase::Made.into();
        self.uid = identity.uid;
        self.gid = identity.gid;
        self.groups = identity.groups;
    }

    /// Its cgroup as it is used, of which the path alone does not tell where the processes are.
    #[must_use]
    pub fn of_cgroup(&self, cgroup: Cgroup) -> Cgroup {
        if self.is_enclosed { cgroup.enclosed() } else { cgroup }
    }

    /// Whether the container was completely made.
    #[must_use]
    pub fn is_made(&self) -> bool {
        // In records of older builds only the groups show it.
        self.phase() != Phase::Making || !self.groups.is_empty()
    }

    /// Why the container ended like this, if the exit itself does not say it.
    #[must_use]
    pub fn explanation(&self, exit: Exit) -> String {
        match exit {
            _ if !self.message.is_empty() => self.message.clone(),
            Exit::Lost => UNSEEN.to_owned(),
            Exit::NotStarted => UNSTARTED.to_owned(),
            Exit::Code(_) | Exit::Signal { .. } => String::new(),
        }
    }

    /// The path of its log in the pod's directory of logs, or [`NO_LOG`] if either has no name.
    #[must_use]
    pub fn log_path(&self, directory: &str) -> String {
        let name = &self.config.log_path;
        if directory.is_empty() || name.is_empty() {
            return NO_LOG.to_owned();
        }
        format!("{}/{name}", directory.trim_end_matches('/'))
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
    /// Those of [`ContainerRecord::save`]; Unimplemented if a newer release wrote the old record.
    pub fn update(&self, path: &Path) -> Result<(), StageError> {
        record::check_replaceable(path, Self::FORMAT).stage(RECORDING)?;
        self.save(path)
    }

    /// Writes it beside its place, so that what it records can be done before it is put in place.
    ///
    /// # Errors
    /// Those of [`ContainerRecord::update`].
    pub fn stage(&self, path: &Path) -> Result<Staged, StageError> {
        record::check_replaceable(path, Self::FORMAT).stage(RECORDING)?;
        records::stage(path, self, Durability::Volatile).stage(RECORDING)
    }

    /// Loads one.
    ///
    /// # Errors
    /// See [`Unreadable`].
    pub fn load(path: &Path) -> Result<Self, Unreadable> {
        load(path, "reading the container's record", |newer: &Self| {
            newer.is_made() && newer.config.metadata.is_some() && CgroupPath::new(&newer.cgroup).is_ok()
        })
    }

    /// Loads that of a container that is to be removed. Of one that cannot be used, only the hooks are known: `hooks`
    /// looks for them elsewhere, and is told why.
    ///
    /// # Errors
    /// Those of `hooks`.
    pub fn load_to_remove(
        path: &Path,
        hooks: impl FnOnce(&StageError) -> Result<String, StageError>,
    ) -> Result<Self, StageError> {
        match Self::load(path) {
            Ok(record) => Ok(record),
            Err(Unreadable::Damaged(error) | Unreadable::LeftAlone(error)) => {
                Ok(Self { hooks: hooks(&error)?, ..Self::default() })
            }
        }
    }
}

/// Saves the runtime spec of a container, for people and tools. It is a file and not part of the record, which is kept
/// in memory and read for each list. It is in the state directory because it contains the environment, in which people
/// put secrets.
///
/// # Errors
/// The disk's error.
pub fn save_spec(path: &Path, text: &[u8]) -> Result<(), StageError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text)).stage("keeping the container's runtime spec")
}

/// Removes all that is kept of a container. A new daemon finds everything from its record, and as long as that exists,
/// it must find how the container ended. So the exit record goes last; what a crash leaves of it is removed by
/// [`recorded_containers`].
///
/// # Errors
/// The disk's error.
pub fn remove_container(layout: &Layout, pod: &PodId, id: &ContainerId) -> Result<(), StageError> {
    let files =
        [layout.container_spec(pod, id), layout.container_record(pod, id), layout.exit_record(pod, id)];
    let removed = files.iter().try_for_each(|file| record::remove(file));
    removed.stage("removing the container's records")
}

/// Removes the exit record of a container that its supervisor has forgotten. As long as the container has a record, the
/// exit stays: it goes with the rest, in [`remove_container`].
///
/// # Errors
/// The disk's error.
pub fn remove_left_exit(layout: &Layout, pod: &PodId, id: &ContainerId) -> Result<(), StageError> {
    const STAGE: &str = "removing an exit record";
    if layout.container_record(pod, id).try_exists().stage(STAGE)? {
        return Ok(());
    }
    record::remove(&layout.exit_record(pod, id)).stage(STAGE)
}

/// The containers of a pod that have a record. The exit record of any other is removed.
///
/// # Errors
/// The disk's error: the containers cannot be listed.
pub fn recorded_containers(layout: &Layout, pod: &PodId) -> Result<Vec<ContainerId>, StageError> {
    const STAGE: &str = "listing the pod's containers";
    let exits: Vec<ContainerId> = ids(&Layout::exits(&layout.pod(pod))).stage(STAGE)?;
    let recorded: BTreeSet<ContainerId> =
        ids(&layout.container_records(pod)).stage(STAGE)?.into_iter().collect();
    for id in exits.into_iter().filter(|id| !recorded.contains(id)) {
        if let Err(error) = record::remove(&layout.exit_record(pod, &id)) {
            tracing::warn!(
                container = id.short(),
                error = chain(&error),
                "a removed container's exit record stays"
            );
        }
    }
    Ok(recorded.into_iter().collect())
}

/// The containers that keep a pod from being removed: those that have a record. Without one, the directory of records
/// is gone afterwards, unless it has another file, such as a spec or a half-written record: that goes with the pod's
/// directory.
///
/// # Errors
/// The disk's error: the containers cannot be listed.
pub fn last_containers(layout: &Layout, pod: &PodId) -> Result<Vec<ContainerId>, StageError> {
    match remove_dir(layout.container_records(pod)) {
        Err(error) if error.kind() != ErrorKind::NotFound => recorded_containers(layout, pod),
        _ => Ok(Vec::new()),
    }
}

/// Loads what [`save_spec`] has saved; `None` if it was never saved, as by older builds.
///
/// # Errors
/// The disk's error.
pub fn load_spec(path: &Path) -> Result<Option<Vec<u8>>, StageError> {
    match record::read_file(path) {
        Err(error) if error.is_missing() => Ok(None),
        read => read.map(Some).stage("reading the container's runtime spec"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_that_cannot_be_read_is_not_one_that_was_never_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec");
        assert_eq!(load_spec(&path).unwrap(), None);
        save_spec(&path, b"{}").unwrap();
        assert_eq!(load_spec(&path).unwrap().unwrap(), b"{}");
        assert!(load_spec(dir.path()).is_err());
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let refused = load_spec(&dir.path().join("socket")).unwrap_err();
        assert!(wharf_types::chain(&refused).contains("not a regular file"), "{refused}");
    }

    /// A pod in a state directory of its own.
    fn pod(state: &Path) -> (Layout, PodId) {
        let layout = Layout::new(state.to_owned(), state.join("root"));
        let pod = PodId::from_random([1; 32]);
        let directories = Layout::directories(&layout.pod(&pod));
        directories.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
        (layout, pod)
    }

    #[test]
    fn a_container_that_cannot_be_removed_has_ended_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, pod) = pod(dir.path());
        let id = ContainerId::from_random([2; 32]);
        let exit = layout.exit_record(&pod, &id);
        std::fs::write(&exit, "").unwrap();
        let records = layout.container_records(&pod);
        std::fs::remove_dir(&records).unwrap();
        std::fs::write(&records, "not a directory").unwrap();
        remove_container(&layout, &pod, &id).unwrap_err();
        assert!(exit.exists());
        std::fs::remove_file(&records).unwrap();
        remove_container(&layout, &pod, &id).unwrap();
        assert!(!exit.exists());
    }

    #[test]
    fn a_pod_has_its_last_container_until_that_has_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, pod) = pod(dir.path());
        let id = ContainerId::from_random([2; 32]);
        std::fs::write(layout.container_record(&pod, &id), "").unwrap();
        std::fs::write(layout.container_spec(&pod, &id), "").unwrap();
        assert_eq!(last_containers(&layout, &pod).unwrap(), std::slice::from_ref(&id));
        remove_container(&layout, &pod, &id).unwrap();
        for _again in 0..2 {
            assert!(last_containers(&layout, &pod).unwrap().is_empty());
            assert!(!layout.container_records(&pod).exists());
        }
        std::fs::write(layout.container_records(&pod), "not a directory").unwrap();
        last_containers(&layout, &pod).unwrap_err();
    }

    /// Its supervisor may have forgotten it while its hooks for the end, which may take minutes, are executed.
    #[test]
    fn an_exit_stays_as_long_as_its_container_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, pod) = pod(dir.path());
        let id = ContainerId::from_random([2; 32]);
        let exit = layout.exit_record(&pod, &id);
        for file in [&exit, &layout.container_record(&pod, &id)] {
            std::fs::write(file, "").unwrap();
        }
        remove_left_exit(&layout, &pod, &id).unwrap();
        assert!(exit.exists());
        std::fs::remove_file(layout.container_record(&pod, &id)).unwrap();
        for _again in 0..2 {
            remove_left_exit(&layout, &pod, &id).unwrap();
            assert!(!exit.exists());
        }
    }

    #[test]
    fn an_exit_without_its_container_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, pod) = pod(dir.path());
        let [runs, ended, removed] = [2, 3, 4].map(|byte| ContainerId::from_random([byte; 32]));
        for id in [&runs, &ended] {
            std::fs::write(layout.container_record(&pod, id), "").unwrap();
            std::fs::write(layout.container_spec(&pod, id), "").unwrap();
        }
        for id in [&ended, &removed] {
            std::fs::write(layout.exit_record(&pod, id), "").unwrap();
        }
        for _ in 0..2 {
            assert_eq!(recorded_containers(&layout, &pod).unwrap(), [runs.clone(), ended.clone()]);
            let exits = ids::<ContainerId>(&Layout::exits(&layout.pod(&pod))).unwrap();
            assert_eq!(exits, std::slice::from_ref(&ended));
        }
        let unknown = PodId::from_random([5; 32]);
        assert_eq!(recorded_containers(&layout, &unknown).unwrap(), []);
    }

    #[test]
    fn only_an_end_that_does_not_explain_itself_is_explained() {
        let mut record = ContainerRecord::default();
        assert_eq!(record.explanation(Exit::Code(1)), "");
        assert_eq!(record.explanation(Exit::Lost), UNSEEN);
        assert_eq!(record.explanation(Exit::NotStarted), UNSTARTED);
        record.message = "no such file".to_owned();
        assert_eq!(record.explanation(Exit::NotStarted), "no such file");
    }
}
