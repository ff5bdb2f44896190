//! Every path of wharf on this machine.

use std::path::{Path, PathBuf};

use wharf_types::{ContainerId, PodId};

/// The two directories of one wharfd: state that ends with the machine's uptime, and data that outlives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    state: PathBuf,
    root: PathBuf,
}

impl Layout {
    /// Names the directories, `/run/wharf` and `/var/lib/wharf` by default; both absolute.
    #[must_use]
    pub fn new(state: PathBuf, root: PathBuf) -> Self {
        Self { state, root }
    }

    /// The directory of what ends with the machine's uptime.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of what outlives it: images, snapshots, leases.
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

    /// The pod's record; the daemon is its one writer.
    #[must_use]
    pub fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("record")
    }

    /// The directory of the records of a pod's containers.
    #[must_use]
    pub fn container_records(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("containers")
    }

    /// A container's record; the daemon is its one writer.
    #[must_use]
    pub fn container_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container_records(pod).join(container.as_str())
    }

    /// What a container was made of, for people and tools; the daemon is its one writer.
    #[must_use]
    pub fn container_spec(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container_records(pod).join(format!("{container}.json"))
    }

    /// A container's exit record; the supervisor is its one writer.
    #[must_use]
    pub fn exit_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        Self::exits(&self.pod(pod)).join(container.as_str())
    }

    /// A pod's pinned namespace of a kind: `net`, `ipc`, `uts`.
    #[must_use]
    pub fn namespace(&self, pod: &PodId, kind: &str) -> PathBuf {
        self.pod(pod).join("ns").join(kind)
    }

    /// The pod's file system in memory.
    #[must_use]
    pub fn pod_memory(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("memory")
    }

    /// Where older builds mounted the pod's shared memory, with the files of its containers beside it.
    #[must_use]
    pub fn older_pod_memory(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("shm")
    }

    /// Where records that could not be understood are put.
    #[must_use]
    pub fn quarantine(&self) -> PathBuf {
        self.state.join("quarantine")
    }

    /// Network leases and results of plugins.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    /// Writable layers of containers.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// What a pod's directory begins with: itself first, and a directory for each of its files of a kind.
    #[must_use]
    pub fn directories(pod_directory: &Path) -> [PathBuf; 4] {
        ["", "ns", "exits", "containers"].map(|name| pod_directory.join(name))
    }

    /// The supervisor's socket in a pod's directory. Daemons of every release look for it by this name.
    #[must_use]
    pub fn supervisor_socket(pod_directory: &Path) -> PathBuf {
        pod_directory.join("shim.sock")
    }

    /// The supervisor's log in a pod's directory, for what it can tell to nobody else.
    #[must_use]
    pub fn supervisor_log(pod_directory: &Path) -> PathBuf {
        pod_directory.join("shim.log")
    }

    /// The directory of exit records in a pod's directory; the supervisor is their one writer.
    #[must_use]
    pub fn exits(pod_directory: &Path) -> PathBuf {
        pod_directory.join("exits")
    }
}
