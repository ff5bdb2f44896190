//! Looking for the cgroups of containers whose pods are not known any more: requests name the parents of cgroups, so
//! they may be anywhere.

use std::collections::BTreeSet;

use wharf_sys::deep;

use crate::detect::Cgroups;
use crate::error::Error;
use crate::path::CgroupPath;
use crate::placement::Placement;
use crate::systemd::units::Scope;

/// How deep containers are looked for. Those of a node that is itself a container are some levels down; what nests
/// cgroups without end is a container.
const LEVELS: usize = 16;
/// The longest path below which they are looked for: the kernel takes no longer one than 4096 bytes, with the mount's.
const PATH_LIMIT_BYTES: usize = 3000;

impl Cgroups {
    /// The cgroups of containers whose ids are meant, in any hierarchy, and not below another one that is found. One
    /// that is in a scope is found there.
    ///
    /// # Errors
    /// [`Error::Io`] if cgroups cannot be listed.
    pub fn find(&self, is_meant: &dyn Fn(&str) -> bool) -> Result<BTreeSet<CgroupPath>, Error> {
        let mut found = BTreeSet::new();
        for hierarchy in self.hierarchies() {
            let mut left = vec![(0, String::new())];
            while let Some((level, above)) = left.pop() {
                let directory = hierarchy.mount.join(above.trim_start_matches('/'));
                let Some(directory) = deep::open(None, &directory)? else { continue };
                // What is no text was not made by any runtime.
                for name in deep::below(&directory)?.iter().filter_map(|name| name.to_str()) {
                    let path = format!("{above}/{name}");
                    if is_meant(Placement::id_in(name)) {
                        found.extend(of_container(&path));
                    } else if level < LEVELS && path.len() < PATH_LIMIT_BYTES {
                        left.push((level + 1, path));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The container's own cgroup, by the path of the directory with its id.
fn of_container(path: &str) -> Option<CgroupPath> {
    let path = CgroupPath::new(path).ok()?;
    let payload = path.parent().and_then(|slice| Scope::payload(&slice, path.name()).ok());
    Some(payload.filter(|payload| Scope::around(payload).is_some()).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{Controller, Hierarchy, Kind};

    /// As another container may do it.
    fn nest(top: &std::path::Path) {
        use std::os::fd::AsFd as _;
        let name = "d".repeat(255);
        let mut at = deep::open(None, top).unwrap().unwrap();
        for _ in 0..LEVELS + 4 {
            nix::sys::stat::mkdirat(&at, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
            at = deep::open(Some(at.as_fd()), name.as_ref()).unwrap().unwrap();
        }
    }

    #[test]
    fn containers_are_found_wherever_they_are() {
        let [unified, freezer] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let make =
            |root: &tempfile::TempDir, path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        make(&unified, "kubepods/burstable/pod1/aa/container");
        make(&unified, "kubepods/burstable/pod1/bb");
        make(&unified, "kubepods.slice/kubepods-pod2.slice/wharf-cc.scope/holder");
        make(&unified, "wharf-cc.scope");
        make(&freezer, "left/aa");
        nest(unified.path());
        let at = |kind, root: &tempfile::TempDir, controllers| {
            Hierarchy::open(kind, root.path().to_owned(), controllers).unwrap()
        };
        let hierarchies =
            vec![at(Kind::Unified, &unified, vec![]), at(Kind::V1, &freezer, vec![Controller::Freezer])];
        let cgroups = Cgroups::of(hierarchies).unwrap();
        let found = |ids: &[&str]| {
            let found = cgroups.find(&|id| ids.contains(&id)).unwrap();
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found(&["aa"]), ["/kubepods/burstable/pod1/aa", "/left/aa"]);
        let in_slice = "/kubepods.slice/kubepods-pod2.slice/wharf-cc.scope/payload";
        let below = "/kubepods/burstable/pod1/aa/container";
        assert_eq!(found(&["cc", "container"]), [in_slice, below, "/wharf-cc.scope"]);
        assert_eq!(found(&["dd"]), [""; 0]);
    }
}
