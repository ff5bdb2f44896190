//! From a description to the plan, which leaves no choice: it has only numbers, names and paths.
//!
//! It does not know the request: whatever a step on the description has changed is planned like the rest, or refused by
//! name. The plan is what the supervisor gets.

use std::path::Path;

use oci_spec::runtime::{Linux, Process, Spec};
use wharf_isolation::{Plan, Rootfs, Stdio};
use wharf_sys::mount::Propagation;
use wharf_types::{ContainerPath, HostPath};

use crate::description::Description;
use crate::seccomp::Filters;
use crate::{Refusal, devices, hooks, mounts, namespaces, process, selinux, traits, unsupported};

/// Makes the plan for a description.
///
/// # Errors
/// [`Refusal`] for what a plan cannot express. Nothing from [`describe`](crate::describe) is refused, except what is
/// too long for the kernel: a seccomp profile, or a program's arguments and environment.
pub fn plan(description: &Description, filters: &Filters) -> Result<Plan, Refusal> {
    let (spec, extra) = (&description.spec, &description.extra);
    unsupported::refuse(spec)?;
    hooks::check(spec)?;
    let (linux, process) = parts(spec)?;
    if linux.cgroups_path().as_deref() != Some(Path::new(&extra.cgroup.path)) {
        return Err(Refusal::spec("linux.cgroupsPath", "the cgroup cannot be changed"));
    }
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let filter = linux.seccomp().as_ref().map(|profile| filters.program(profile)).transpose()?;
    let paths = |field, paths: &Option<Vec<String>>| {
        let paths = paths.as_deref().unwrap_or_default().iter();
        paths.map(|path| container_path(field, Path::new(path))).collect::<Result<Vec<_>, _>>()
    };
    let namespaces = namespaces::plan(linux, &extra.pid)?;
    let ids = namespaces.user.as_ref().map(|user| user.ids);
    Ok(Plan {
        container: extra.container.clone(),
        rootfs: Rootfs {
            lowers: extra.layers.lowers.clone(),
            upper: extra.layers.upper.clone(),
            work: extra.layers.work.clone(),
            read_only,
            propagation: root_propagation(linux)?,
        },
        mounts: mounts::plan(spec.mounts().as_deref().unwrap_or_default(), &namespaces, extra)?,
        namespaces,
        cgroup: extra.cgroup.plan.clone(),
        devices: devices::plan(linux.devices().as_deref().unwrap_or_default(), ids)?,
        mount_label: selinux::of_spec("linux.mountLabel", linux.mount_label().as_ref())?,
        masked_paths: paths("masked_paths", linux.masked_paths())?,
        readonly_paths: paths("readonly_paths", linux.readonly_paths())?,
        process: process::plan(process, extra, traits::plan(spec, process)?, filter.as_deref())?,
        stdio: Stdio {
            log: extra.log.clone(),
            input: extra.input,
            terminal: process.terminal().unwrap_or(false),
        },
        reserve: extra.reserve,
        runtime: None,
        runtime_spec: Vec::new(),
    })
}

/// Nothing reaches the root from elsewhere, because it is a new mount: as a slave it would be private.
fn root_propagation(linux: &Linux) -> Result<Propagation, Refusal> {
    match linux.rootfs_propagation().as_deref().unwrap_or("private") {
        "" | "private" | "rprivate" | "slave" | "rslave" => Ok(Propagation::Private),
        "shared" | "rshared" => Ok(Propagation::Shared),
        other => {
            let problem = format!("{other:?} is not one of private, slave and shared");
            Err(Refusal::spec("linux.rootfsPropagation", problem))
        }
    }
}

pub(crate) fn parts(spec: &Spec) -> Result<(&Linux, &Process), Refusal> {
    let linux = spec.linux().as_ref().ok_or_else(|| Refusal::spec("linux", "it is missing"))?;
    let process = spec.process().as_ref().ok_or_else(|| Refusal::spec("process", "it is missing"))?;
    Ok((linux, process))
}

/// A path in the container. It comes from the request unchanged, so a malformed one is the request's fault.
pub(crate) fn container_path(field: &'static str, path: &Path) -> Result<ContainerPath, Refusal> {
    let text = path.to_str().ok_or_else(|| Refusal::field(field, format!("{path:?} is not UTF-8")))?;
    ContainerPath::new(text).map_err(|error| Refusal::field(field, error))
}

/// A path of the host, which the caller provided as such.
pub(crate) fn host_path(field: &'static str, path: &Path) -> Result<HostPath, Refusal> {
    let text = path.to_str().ok_or_else(|| Refusal::spec(field, format!("{path:?} is not UTF-8")))?;
    HostPath::new(text).map_err(|error| Refusal::spec(field, error))
}
