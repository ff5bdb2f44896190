//! What other runtimes leave in hierarchies that are not used here, such as systemd's: they make a container's cgroup
//! in every hierarchy that is mounted.

use std::fs;
use std::io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
use std::path::{Path, PathBuf};

use crate::detect::Cgroups;
use crate::error::Error;
use crate::files;
use crate::path::CgroupPath;

impl Cgroups {
    /// Removes a container's cgroup from the hierarchies that are not used here, and its pod's if that is empty then. A
    /// cgroup that has processes stays.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove_elsewhere(&self, path: &CgroupPath) -> Result<(), Error> {
        let mounts = files::read(Path::new("/proc/self/mountinfo"))?;
        let is_used = |mount: &PathBuf| self.hierarchies().iter().any(|hierarchy| hierarchy.mount == *mount);
        let others = v1_mounts(&mounts).filter(|mount| !is_used(mount));
        let removed = others.map(|mount| remove(&path.inside().under(&mount), &mount));
        removed.collect()
    }
}

/// Removes the cgroup inside a container's, then that, then the pod's, but not the root of the hierarchy.
fn remove(inside: &Path, root: &Path) -> Result<(), Error> {
    for directory in inside.ancestors().take(3).take_while(|directory| *directory != root) {
        match fs::remove_dir(directory) {
            Err(error) if matches!(error.kind(), ResourceBusy | DirectoryNotEmpty) => return Ok(()),
            Err(error) if error.kind() != NotFound => return Err(Error::io("rmdir", directory)(error)),
            _ => {}
        }
    }
    Ok(())
}

/// The mount points of v1 hierarchies in a mountinfo.
fn v1_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let v1 = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mount = place.split(' ').nth(4).filter(|mount| !mount.contains('\\'))?;
        kind.starts_with("cgroup ").then(|| PathBuf::from(mount))
    });
    v1.collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_v1_is_elsewhere() {
        let line = |mount: &str, kind: &str| format!("24 30 0:22 / {mount} rw shared:4 - {kind} {kind} rw\n");
        let all =
            [line("/cg/systemd", "cgroup"), line("/cg/unified", "cgroup2"), line("/tmp", "tmpfs")].concat();
        assert_eq!(v1_mounts(&all).collect::<Vec<_>>(), [PathBuf::from("/cg/systemd")]);
    }

    #[test]
    fn what_is_empty_goes_up_to_the_pod() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("kubepods/pod/one/container")).unwrap();
        fs::create_dir_all(at("kubepods/pod/two")).unwrap();
        remove(&at("kubepods/pod/one/container"), root.path()).unwrap();
        assert!(!at("kubepods/pod/one").exists() && at("kubepods/pod/two").exists());
        remove(&at("kubepods/pod/two/container"), root.path()).unwrap();
        assert!(!at("kubepods/pod").exists() && at("kubepods").exists());
        remove(&at("one/container"), root.path()).unwrap();
        assert!(root.path().exists());
    }
}
