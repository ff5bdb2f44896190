//! The places of a container's files and directories, derived from names alone, whether or not they exist.

use std::path::{Path, PathBuf};

use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_host::{ImageView, earlier};
use wharf_isolation::CgroupPlan;
use wharf_planner::{CgroupPlaces, Layers, Pins, Places};
use wharf_state::Layout;
use wharf_supervision::Held;
use wharf_types::{ContainerId, HostPath, PodId};
use wharf_wire::v1;

use crate::engine::Parts;
use crate::error::{Error, Stage};
use crate::pod::Pod;

/// The places for a container of an image, with its cgroup's path.
pub(crate) fn of(
    parts: &Parts,
    (pod, id): (&Pod, &ContainerId),
    (image, cgroup): (&ImageView, &CgroupPath),
    held: &Held,
) -> Result<Places, Error> {
    let snapshot = parts.snapshots.at(id);
    let namespace = |kind, of| host(&namespace(&parts.layout, (pod.id(), held), (kind, of)));
    let files = held.path(v1::Held::Files);
    let files = files.unwrap_or_else(|| earlier::files(&parts.layout, pod.id()));
    Ok(Places {
        layers: Layers {
            lowers: image.layers.clone(),
            upper: host(&snapshot.upper)?,
            work: host(&snapshot.work)?,
        },
        volumes: host(&parts.snapshots.volumes(id))?,
        pod_files: host(&files)?,
        namespaces: Pins {
            net: namespace("net", v1::Held::Network)?,
            ipc: namespace("ipc", v1::Held::Ipc)?,
            uts: namespace("uts", v1::Held::Uts)?,
            user: namespace("user", v1::Held::User)?,
        },
        cgroup: cgroup_places(&parts.cgroups.at(cgroup))?,
    })
}

/// Where people and tools find a pod's namespace: among its supervisor's descriptors, or where an earlier release
/// pinned it.
pub(crate) fn namespace(
    layout: &Layout,
    (pod, held): (&PodId, &Held),
    (kind, of): (&str, v1::Held),
) -> PathBuf {
    held.path(of).unwrap_or_else(|| layout.namespace(pod, kind))
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
