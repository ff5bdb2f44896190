//! Making a cgroup and its missing ancestors in one hierarchy.
//!
//! Ancestors may be others' (the kubelet's, systemd's): what exists is used as it is, and the only thing changed in it
//! is what its children inherit. Nothing here sets a limit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wharf_types::{ErrorKind, Failure as _};

use crate::detect::{Controller, Hierarchy, Kind};
use crate::error::Error;
use crate::files;
use crate::path::CgroupPath;

/// Makes a cgroup, and its ancestors as far as they are missing.
pub(crate) fn create(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
    let mut steps = path.steps(&hierarchy.mount);
    steps.insert(0, hierarchy.mount.clone());
    make_last(hierarchy, &steps).map(drop)
}

/// Makes the last of these directories, each of which is in the one before it; the first is the hierarchy's root.
/// Usually only the last one is missing. Where its parent is missing too, or lacks what children inherit, that is made
/// first, and so on upwards.
fn make_last(hierarchy: &Hierarchy, steps: &[PathBuf]) -> Result<Made, Error> {
    let [above @ .., cgroup] = steps else { return Ok(Made::Before) };
    let Some(parent) = above.last() else { return Ok(Made::Before) };
    if has_all(hierarchy, parent)? {
        match make_in(hierarchy, parent, cgroup) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            made => return made,
        }
    }
    if make_last(hierarchy, above)? == Made::Anew {
        pass_cpuset_on(hierarchy, parent)?;
    }
    make_in(hierarchy, parent, cgroup)
}

/// Whether a cgroup is there and has all that its children are to inherit.
fn has_all(hierarchy: &Hierarchy, cgroup: &Path) -> Result<bool, Error> {
    if hierarchy.kind == Kind::Unified {
        let names = files::read_if_there(&cgroup.join("cgroup.controllers"))?.unwrap_or_default();
        let has =
            |controller: &Controller| names.split_whitespace().any(|name| name == controller.to_string());
        return Ok(hierarchy.controllers.iter().all(has));
    }
    if has_cpuset(hierarchy) {
        for name in CPUSET {
            if files::read_if_there(&cgroup.join(name))?.is_none_or(|value| value.trim().is_empty()) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Makes a cgroup whose parent is there.
fn make_in(hierarchy: &Hierarchy, parent: &Path, cgroup: &Path) -> Result<Made, Error> {
    if hierarchy.kind == Kind::Unified {
        pass_controllers_on(parent)?;
    }
    let made = make(cgroup)?;
    if has_cpuset(hierarchy) {
        inherit_cpuset(parent, cgroup)?;
    }
    Ok(made)
}

/// Has the kernel give new v1 cpusets in a cgroup what this one has.
fn pass_cpuset_on(hierarchy: &Hierarchy, cgroup: &Path) -> Result<(), Error> {
    if has_cpuset(hierarchy) { files::write(&cgroup.join("cgroup.clone_children"), "1") } else { Ok(()) }
}

fn has_cpuset(hierarchy: &Hierarchy) -> bool {
    hierarchy.kind == Kind::V1 && hierarchy.controllers.contains(&Controller::Cpuset)
}

/// Whether a directory was made, or was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Anew,
    Before,
}

/// Makes one directory; an existing one is fine.
pub(crate) fn make(directory: &Path) -> Result<Made, Error> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(Made::Anew),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(Made::Before),
        Err(source) => Err(Error::Io { action: "create", path: directory.into(), source }),
    }
}

/// Enables every controller of a cgroup for its children. One that cannot be enabled (the cgroup has processes of its
/// own, or a realtime task is in the way) is skipped: a limit that needs it will report that.
fn pass_controllers_on(parent: &Path) -> Result<(), Error> {
    let missing = missing_controllers(
        &files::read(&parent.join("cgroup.controllers"))?,
        &files::read(&parent.join("cgroup.subtree_control"))?,
    );
    let file = parent.join("cgroup.subtree_control");
    for controller in missing {
        if let Err(error) = files::write(&file, &controller) {
            tracing::debug!(?error, "controller not passed on");
        }
    }
    Ok(())
}

fn missing_controllers(available: &str, enabled: &str) -> Vec<String> {
    let enabled: Vec<_> = enabled.split_whitespace().collect();
    let missing = available.split_whitespace().filter(|name| !enabled.contains(name));
    missing.map(|name| format!("+{name}")).collect()
}

const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// A new v1 cpuset takes no process until it has CPUs and memory nodes. In a cgroup that passes its own on it has them
/// from the start. Elsewhere they are written, for which the kernel goes through every cpuset on the machine.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<(), Error> {
    for name in CPUSET {
        if files::read(&child.join(name))?.trim().is_empty() {
            files::write(&child.join(name), files::read(&parent.join(name))?.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_controllers_are_enabled() {
        assert_eq!(missing_controllers("cpuset cpu io memory\n", "cpu memory\n"), ["+cpuset", "+io"]);
        assert!(missing_controllers("", "").is_empty());
    }

    #[test]
    fn a_directory_without_a_parent_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(make(&directory.path().join("a")).unwrap(), Made::Anew);
        assert_eq!(make(&directory.path().join("a")).unwrap(), Made::Before);
        assert!(make(&directory.path().join("b/c")).is_err());
    }
}
