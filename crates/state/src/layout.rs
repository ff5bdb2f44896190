//! Every path that wharf uses for itself on this machine. Nothing here touches the disk.
//!
//! Names on disk are an interface between releases: a daemon finds what another one made by these names alone.

use std::path::{Path, PathBuf};

use wharf_types::{ContainerId, PodId};

/// The two directories of one wharfd: state, which ends with the machine's uptime, and data, which outlives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    state: PathBuf,
    root: PathBuf,
}

impl Layout {
    /// Takes the two directories, `/run/wharf` and `/var/lib/wharf` by default. Both must be absolute.
    #[must_use]
    pub fn new(state: PathBuf, root: PathBuf) -> Self {
        Self { state, root }
    }

    /// The directory for what ends with the machine's uptime.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The directory for what outlives it: images, snapshots, results of CNI plugins.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of all pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// One pod's directory.
    #[must_use]
    pub fn pod(&self, pod: &PodId) -> PathBuf {
        self.pods().join(pod.as_str())
    }

    /// The pod's record. Only the daemon writes it.
    #[must_use]
    pub fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("record")
    }

    /// The directory for the records of a pod's containers.
    #[must_use]
    pub fn container_records(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("containers")
    }

    /// A container's record. Only the daemon writes it.
    #[must_use]
    pub fn container_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container_records(pod).join(container.as_str())
    }

    /// The OCI runtime spec of a container, for people and tools. Only the daemon writes it.
    #[must_use]
    pub fn container_spec(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container_records(pod).join(format!("{container}.json"))
    }

    /// The bundle of a container with hooks: a directory with its runtime spec, which hooks read, and one for its root
    /// file system. Once its hooks for the end have been executed, a directory beside it has its name and `.ended`.
    /// Only the daemon writes it.
    #[must_use]
    pub fn bundle(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod(pod).join("bundles").join(container.as_str())
    }

    /// A directory of the pod's runtime, if that is another one: `state` is the runtime's own, and over `bundle`
    /// bundles are mounted where only the runtime sees them.
    #[must_use]
    pub fn runtime(&self, pod: &PodId, name: &str) -> PathBuf {
        self.pod(pod).join("runtime").join(name)
    }

    /// A container's exit record. Only the supervisor writes it.
    #[must_use]
    pub fn exit_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        Self::exits(&self.pod(pod)).join(container.as_str())
    }

    /// The file at which a namespace of the pod is pinned: `net` for CNI plugins; `ipc` and `uts` only by earlier
    /// releases.
    #[must_use]
    pub fn namespace(&self, pod: &PodId, kind: &str) -> PathBuf {
        self.pod(pod).join("ns").join(kind)
    }

    /// Where an earlier release mounted the pod's tmpfs.
    #[must_use]
    pub fn pod_memory(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("memory")
    }

    /// Where still earlier releases mounted the pod's shared memory, with the containers' files beside it.
    #[must_use]
    pub fn older_pod_memory(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("shm")
    }

    /// The directory for records that could not be read as such.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        self.state.join("quarantine")
    }

    /// The directory for the leases of pods' addresses. They describe links, which end with the machine's uptime too.
    #[must_use]
    pub fn leases(&self) -> PathBuf {
        self.state.join("leases")
    }

    /// The directory for results of CNI plugins, and for what is remembered of the node's network.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    /// The directory for the writable layers of containers.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The directories that a new pod needs: its own first, then one for each kind of file in it.
    #[must_use]
    pub fn directories(pod_directory: &Path) -> [PathBuf; 4] {
        ["", "ns", "exits", "containers"].map(|name| pod_directory.join(name))
    }

    /// The supervisor's socket in a pod's directory. The name never changes: daemons of every release look for it.
    #[must_use]
    pub fn supervisor_socket(pod_directory: &Path) -> PathBuf {
        pod_directory.join("shim.sock")
    }

    /// The supervisor's log in a pod's directory, for what it can tell nobody else.
    #[must_use]
    pub fn supervisor_log(pod_directory: &Path) -> PathBuf {
        pod_directory.join("shim.log")
    }

    /// The directory for exit records in a pod's directory. Only the supervisor writes them.
    #[must_use]
    pub fn exits(pod_directory: &Path) -> PathBuf {
        pod_directory.join("exits")
    }
}
