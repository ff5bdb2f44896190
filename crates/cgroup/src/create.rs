//! Making a cgroup and its missing ancestors in one hierarchy.

use std::fs;
use std::io;
use std::path::Path;

use crate::detect::{Controller, Hierarchy, Kind};
use crate::error::Error;
use crate::files;
use crate::path::CgroupPath;

/// Makes a cgroup from the top down, because each level inherits from the one above.
pub(crate) fn create(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
    let mut parent = hierarchy.mount.clone();
    for step in path.steps(&hierarchy.mount) {
        if hierarchy.kind == Kind::Unified {
            pass_controllers_on(&parent)?;
        }
        make(&step)?;
        if hierarchy.kind == Kind::V1 && hierarchy.controllers.contains(&Controller::Cpuset) {
            inherit_cpuset(&parent, &step)?;
        }
        parent = step;
    }
    Ok(())
}

/// Makes one directory, or leaves the existing one as it is.
pub(crate) fn make(directory: &Path) -> Result<(), Error> {
    match fs::create_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Io { action: "create", path: directory.into(), source })
        }
        _ => Ok(()),
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

/// A new v1 cpuset has no CPUs and no memory nodes, and accepts no process before it has both.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
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
        make(&directory.path().join("a")).unwrap();
        make(&directory.path().join("a")).unwrap();
        assert!(make(&directory.path().join("b/c")).is_err());
    }
}
