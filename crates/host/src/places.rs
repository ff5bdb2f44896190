//! The places of a container's files and directories, derived from names alone, whether or not they exist.
//!
//! So a container can be described and planned before anything of it is made.

use std::path::Path;

use wharf_cgroup::Cgroup;
use wharf_isolation::CgroupPlan;
use wharf_planner::{CgroupPlaces, Layers, Pins, Places};
use wharf_snapshots::Snapshots;
use wharf_types::{ContainerId, HostPath, Reserve, Stage as _, StageError};

use crate::images::ImageView;

/// A container whose places are wanted, and what they follow from.
#[derive(Debug)]
pub struct ContainerPlaces<'a> {
    /// The writable layers of all containers.
    pub snapshots: &'a Snapshots,
    /// The container.
    pub container: &'a ContainerId,
    /// The image that it runs.
    pub image: &'a ImageView,
    /// Its cgroup, which need not exist.
    pub cgroup: &'a Cgroup,
    /// What must stay free on the disk of the writable layers.
    pub reserve: Reserve,
    /// Where the pod's files are.
    pub pod_files: &'a Path,
    /// Where the pod's namespaces are.
    pub namespaces: Pins,
}

impl ContainerPlaces<'_> {
    /// The container's places.
    ///
    /// # Errors
    /// A path is not one that a plan can have, such as one that is not UTF-8.
    pub fn places(self) -> Result<Places, StageError> {
        let snapshot = self.snapshots.at(self.container);
        Ok(Places {
            layers: Layers {
                lowers: self.image.layers.clone(),
                upper: host_path(&snapshot.upper)?,
                work: host_path(&snapshot.work)?,
            },
            volumes: host_path(&self.snapshots.volumes(self.container))?,
            reserve: self.reserve,
            pod_files: host_path(self.pod_files)?,
            namespaces: self.namespaces,
            cgroup: cgroup_places(self.cgroup)?,
        })
    }
}

/// The places of a cgroup's processes and limits.
pub(crate) fn cgroup_places(cgroup: &Cgroup) -> Result<CgroupPlaces, StageError> {
    let entry = cgroup.entry();
    let v1 = cgroup.v1_directories().into_iter();
    Ok(CgroupPlaces {
        path: cgroup.path().to_string(),
        plan: CgroupPlan {
            directory: entry.directory.as_deref().map(host_path).transpose()?,
            entries: entry.tasks.iter().map(|path| host_path(path)).collect::<Result<_, _>>()?,
            kill_directory: host_path(&cgroup.kill_directory())?,
            oom_file: cgroup.oom_file().as_deref().map(host_path).transpose()?,
        },
        v1: v1
            .map(|(name, directory)| Ok((name, host_path(&directory)?)))
            .collect::<Result<_, StageError>>()?,
        unified: cgroup.unified_mount().map(host_path).transpose()?,
        delegation: cgroup.can_be_delegated().into(),
    })
}

/// A path of this host, in the form of plans.
///
/// # Errors
/// It is not absolute and clean.
pub fn host_path(path: &Path) -> Result<HostPath, StageError> {
    HostPath::new(&path.to_string_lossy()).stage("naming a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_plan_is_absolute() {
        assert_eq!(host_path(Path::new("/run/x")).unwrap().as_path(), Path::new("/run/x"));
        assert!(host_path(Path::new("run/x")).is_err());
    }
}
