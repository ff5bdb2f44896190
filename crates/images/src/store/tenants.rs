//! Containers of which nobody need ask the kernel what they have mounted.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use wharf_types::lock;

use super::{Shared, Store};

/// The length of a container's id, which is hexadecimal.
const ID_LENGTH: usize = 64;

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

    /// Whether a process is in the cgroup of one of them. No container can leave its own.
    pub(super) fn have(&self, process: &Path) -> bool {
        let cgroups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let tenants = lock::lock(&self.0);
        let mut words = cgroups.split(|letter: char| !letter.is_ascii_hexdigit());
        words.any(|word| word.len() == ID_LENGTH && tenants.contains(word))
    }
}
