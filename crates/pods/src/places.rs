//! Where what belongs to a container is, or will be made: known by names alone.

use std::path::Path;

use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_host::files;
use wharf_isolation::CgroupPlan;
use wharf_planner::{CgroupPlaces, Layers, Pins, Places};
use wharf_types::{ContainerId, HostPath};

use crate::engine::Parts;
use crate::error::{Error, Stage};
use crate::images::ImageView;
use crate::pod::Pod;

/// The places of a container of an image whose cgroup will be at a path.
pub(crate) fn of(
    parts: &Parts,
    (pod, id): (&Pod, &ContainerId),
    (image, cgroup): (&ImageView, &CgroupPath),
) -> Result<Places, Error> {
    let snapshot = parts.snapshots.at(id);
    let pin = |kind| host(&parts.layout.namespace(pod.id(), kind));
    Ok(Places {
        layers: Layers {
            lowers: image.layers.clone(),
            upper: host(&snapshot.upper)?,
            work: host(&snapshot.work)?,
        },
        volumes: host(&parts.snapshots.volumes(id))?,
        pod_files: host(&files::directory(&parts.layout, pod.id()))?,
        namespaces: Pins { net: pin("net")?, ipc: pin("ipc")?, uts: pin("uts")? },
        cgroup: cgroup_places(&parts.cgroups.at(cgroup))?,
    })
}

fn cgroup_places(cgroup: &Cgroup) -> Result<CgroupPlaces, Error> {
    let entry = cgroup.entry();
    let v1 = cgroup.v1_directories().into_iter();
    Ok(CgroupPlaces {
        path: cgroup.path().to_string(),
        plan: CgroupPlan {
            directory: entry.directory.as_deref().map(host).transpose()?,
            entries: entry.tasks.iter().map(|path| host(path)).collect::<Result<_, _>>()?,
            kill_directory: host(&cgroup.kill_directory())?,
            oom_file: cgroup.oom_file().as_deref().map(host).transpose()?,
        },
        v1: v1.map(|(name, directory)| Ok((name, host(&directory)?))).collect::<Result<_, Error>>()?,
        unified: cgroup.unified_mount().map(host).transpose()?,
    })
}

fn host(path: &Path) -> Result<HostPath, Error> {
    HostPath::new(&path.to_string_lossy()).stage("naming a path")
}
