//! Containers of which nobody need ask the kernel what they have mounted.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
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

/// Whether a task that is not exiting, of which the kernel shows these cgroups, is certainly in no container. Anybody
/// who was given a cgroup may call those below it by the id of a container, but a container's is in one of root's.
pub(super) fn is_in_none(cgroups: &str, is_roots: impl Fn(&str, &Path) -> bool) -> bool {
    !cgroups.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let named = |cgroup: &&Path| {
            let name = cgroup.file_name().and_then(OsStr::to_str).unwrap_or_default();
            ContainerId::all_in(name).next().is_some()
        };
        let named = Path::new(path).ancestors().filter(named);
        named.filter_map(Path::parent).any(|parent| is_roots(controllers, parent))
    })
}

/// Whether root owns a cgroup, or its owner is not known here. One that cannot be looked at by its path, because its
/// name is not UTF-8, is as its parent: nobody makes one of root's below their own.
pub(super) fn is_roots(controllers: &str, cgroup: &Path) -> bool {
    is_roots_among(&kernel_text("/proc/self/mountinfo").unwrap_or_default(), controllers, cgroup)
}

/// The same with a table of mounts.
fn is_roots_among(table: &str, controllers: &str, cgroup: &Path) -> bool {
    let mount = table.lines().find_map(|line| hierarchy(line, controllers));
    let owner = mount.and_then(|mount| {
        let mut upward =
            cgroup.ancestors().map(|cgroup| mount.join(cgroup.strip_prefix("/").unwrap_or(cgroup)));
        upward.find_map(|cgroup| Some(fs::symlink_metadata(cgroup).ok()?.uid()))
    });
    owner.is_none_or(|owner| owner == 0)
}

/// Where the hierarchy with these controllers is mounted, if a line of a table of mounts says it. v2 has none.
fn hierarchy(line: &str, controllers: &str) -> Option<PathBuf> {
    let (mount, of) = line.split_once(" - ")?;
    let mut of = of.split(' ');
    let (kind, mut options) = (of.next()?, of.nth(1)?.split(','));
    let is_it = match kind {
        "cgroup2" => controllers.is_empty(),
        "cgroup" => options.any(|option| controllers.split(',').any(|controller| controller == option)),
        _ => false,
    };
    let point = mount.split(' ').nth(4).filter(|_| is_it)?;
    Some(wharf_sys::mount::unescaped(point.as_bytes()))
}

/// The cgroups of a task. `None` if the kernel does not tell: those before about 6.15 tell nothing if one of the paths
/// is longer than PATH_MAX. Such a task may be in any container. Its parents say nothing about it, because a
/// container's first process may be in such a cgroup, too. On v2, no container of wharf's can nest its cgroups so deep
/// (`cgroup::delegate`). On v1, one can, and no layer is removed as long as it has more mounts than can be read.
pub(super) fn cgroups(task: &Path) -> Option<String> {
    kernel_text(task.join("cgroup")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_found_by_its_controllers() {
        let rows = [
            (
                "30 1 0:9 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
                "cpu,cpuacct",
                "/sys/fs/cgroup/cpu",
            ),
            ("31 1 0:9 / /a\\040b rw - cgroup cgroup rw,xattr,name=systemd", "name=systemd", "/a b"),
            (
                "32 1 0:9 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw",
                "",
                "/sys/fs/cgroup/unified",
            ),
        ];
        for (line, controllers, mount) in rows {
            assert_eq!(hierarchy(line, controllers), Some(mount.into()));
            assert_eq!(hierarchy(line, "pids"), None);
        }
    }

    #[test]
    fn a_cgroup_is_its_owners_and_one_that_cannot_be_found_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("users/own")).unwrap();
        let table = format!("30 1 0:9 / {} rw - cgroup2 cgroup2 rw", dir.path().display());
        let is_roots = |cgroup| is_roots_among(&table, "", Path::new(cgroup));
        assert!(is_roots("/users/own/missing"));
        std::os::unix::fs::chown(dir.path().join("users/own"), Some(1000), None).unwrap();
        assert!(!is_roots("/users/own") && !is_roots("/users/own/missing"));
        assert!(is_roots("/users") && is_roots("/missing"));
        assert!(is_roots_among(&table, "pids", Path::new("/users/own")), "nobody knows whose it is");
    }
}
