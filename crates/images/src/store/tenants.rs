//! Containers of which nobody need ask the kernel what they have mounted.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use wharf_sys::fs::kernel_text;
use wharf_types::{ContainerId, lock};

use super::{Shared, Store};

/// The ids of all of them.
#[derive(Debug, Default)]
pub(super) struct Tenants(Mutex<HashSet<String>>);

/// A container whose layers are all leased. It begins after the leases and is dropped before them, so that there is no
/// moment at which neither they nor the kernel's tables keep the layers.
///
/// What a container mounts in namespaces of its own can be so much that nobody reads it to its end. Without this, one
/// such container would keep all layers of the node.
#[derive(Debug)]
pub struct Tenancy {
    shared: Arc<Shared>,
    container: String,
}

impl Store {
    /// Says that all layers that a container has mounted are leased, as long as the result lives.
    #[must_use]
    pub fn tenancy(&self, container: &str) -> Tenancy {
        let shared = Arc::clone(&self.shared);
        shared.tenants.begin(container);
        Tenancy { shared, container: container.to_owned() }
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        lock::lock(&self.shared.tenants.0).remove(&self.container);
    }
}

impl Tenants {
    pub(super) fn begin(&self, container: &str) {
        lock::lock(&self.0).insert(container.to_owned());
    }

    /// Whether a process or a task is in the cgroup of one of them. No container can leave its own, and one that calls
    /// another cgroup by the id of a container deceives nobody but itself.
    pub(super) fn have(&self, task: &Path) -> bool {
        let Some(cgroups) = cgroups(task) else { return false };
        let tenants = lock::lock(&self.0);
        ContainerId::all_in(&cgroups).any(|id| tenants.contains(id))
    }
}

/// Whether a task that is not exiting is certainly in no container.
pub(super) fn is_in_none(task: &Path) -> bool {
    cgroups(task).is_some_and(|cgroups| ContainerId::all_in(&cgroups).next().is_none())
}

/// The cgroups of a task. `None` if the kernel does not tell: those before about 6.15 tell nothing if one of the paths
/// is longer than PATH_MAX. Such a task may be in any container. Its parents say nothing about it, because a
/// container's first process may be in such a cgroup, too. On v2, no container of wharf's can nest its cgroups so deep
/// (`cgroup::delegate`). On v1, one can, and no layer is removed as long as it has more mounts than can be read.
fn cgroups(task: &Path) -> Option<String> {
    kernel_text(task.join("cgroup")).ok()
}
