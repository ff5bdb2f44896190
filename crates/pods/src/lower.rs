//! From a request to a plan: every choice about a container is taken here.

use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_cri_api::v1::{ContainerConfig, LinuxContainerSecurityContext, NamespaceMode};
use wharf_isolation::{CgroupPlan, MountPlan, Namespaces, PidNamespace, Plan, Rootfs};
use wharf_planner::defaults::{self, Privilege};
use wharf_planner::seccomp;
use wharf_state::Layout;
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::{ContainerId, ContainerPath, HostPath, MASKED_PATHS, READONLY_PATHS};

use crate::error::{Error, Stage};
use crate::images::ImageView;
use crate::pod::Pod;
use crate::{files, mounts, records};

mod devices;
mod process;
mod volumes;

pub(crate) use devices::rules as device_rules;
pub(crate) use process::capabilities;
pub(crate) use volumes::volumes;

/// What lowering needs beside the request.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) pod: &'a Pod,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) image: &'a ImageView,
    /// The daemon's own bounding set: nothing can be given beyond it.
    pub(crate) bounding: u64,
}

impl Context<'_> {
    pub(crate) fn security(&self) -> LinuxContainerSecurityContext {
        let linux = self.config.linux.as_ref();
        linux.and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }
}

/// What a container has on disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) rootfs: Rootfs,
    /// The image's volumes, each with its directory.
    pub(crate) volumes: Vec<(ContainerPath, HostPath)>,
}

/// Makes the plan of a container whose cgroup and snapshot exist.
pub(crate) fn plan(
    context: &Context<'_>,
    id: &ContainerId,
    cgroup: &Cgroup,
    disk: Disk,
    filter: Option<&seccomp::Program>,
) -> Result<Plan, Error> {
    let security = context.security();
    let privilege = if security.privileged { Privilege::Privileged } else { Privilege::Ordinary };
    let (masked_paths, readonly_paths) = protected_paths(&security)?;
    let mut own: Vec<MountPlan> = disk.volumes.iter().map(volumes::plan).collect();
    own.extend(pods_mounts(context)?);
    let mounts = mounts::merge(usual_mounts(privilege, cgroup)?, own, asked_mounts(context, privilege)?);
    Ok(Plan {
        container: id.clone(),
        rootfs: disk.rootfs,
        namespaces: namespaces(context, &security)?,
        cgroup: cgroup_plan(cgroup)?,
        mounts,
        devices: devices::nodes(context, privilege)?,
        masked_paths,
        readonly_paths,
        process: process::process(context, &security, filter)?,
        stdio: process::stdio(context)?,
    })
}

/// The masked and the read-only paths: as the request says, and the usual ones where it says nothing. The kubelet sends
/// lists; it sends none for `procMount: Unmasked`, but to pods with a user namespace alone.
fn protected_paths(
    security: &LinuxContainerSecurityContext,
) -> Result<(Vec<ContainerPath>, Vec<ContainerPath>), Error> {
    let (masked, readonly) = (&security.masked_paths, &security.readonly_paths);
    if security.privileged {
        return Ok((Vec::new(), Vec::new()));
    }
    if masked.is_empty() && readonly.is_empty() {
        return Ok((paths("masked_paths", &MASKED_PATHS)?, paths("readonly_paths", &READONLY_PATHS)?));
    }
    Ok((paths("masked_paths", masked)?, paths("readonly_paths", readonly)?))
}

fn paths(field: &'static str, paths: &[impl AsRef<str>]) -> Result<Vec<ContainerPath>, Error> {
    let path = |path: &_| ContainerPath::new(AsRef::as_ref(path));
    paths.iter().map(|text| path(text).map_err(|error| Error::invalid(field, error))).collect()
}

fn host(path: &std::path::Path) -> Result<HostPath, Error> {
    HostPath::new(&path.to_string_lossy()).stage("naming a path")
}

fn namespaces(context: &Context<'_>, security: &LinuxContainerSecurityContext) -> Result<Namespaces, Error> {
    let pod = context.pod;
    let pods = pod.namespaces();
    let own = security.namespace_options.clone().unwrap_or_else(|| pods.clone());
    let pin = |mode: NamespaceMode, kind| match mode {
        NamespaceMode::Node => Ok(None),
        _ => host(&context.layout.namespace(&pod.id, kind)).map(Some),
    };
    let pid = match own.pid() {
        NamespaceMode::Pod => PidNamespace::Pod,
        NamespaceMode::Container => PidNamespace::Container,
        NamespaceMode::Node => PidNamespace::Host,
        NamespaceMode::Target => {
            PidNamespace::Target(own.target_id.parse().map_err(|error| Error::invalid("target_id", error))?)
        }
    };
    Ok(Namespaces {
        net: pin(pods.network(), "net")?,
        ipc: pin(pods.ipc(), "ipc")?,
        // A pod on the host's network has the host's name.
        uts: pin(pods.network(), "uts")?,
        pid,
        cgroup: !security.privileged,
    })
}

fn cgroup_plan(cgroup: &Cgroup) -> Result<CgroupPlan, Error> {
    let entry = cgroup.entry();
    let entries: Vec<HostPath> = entry.tasks.iter().map(|path| host(path)).collect::<Result<_, _>>()?;
    Ok(CgroupPlan {
        directory: entry.directory.as_deref().map(host).transpose()?,
        entries,
        kill_directory: host(&cgroup.kill_directory())?,
        oom_file: cgroup.oom_file().as_deref().map(host).transpose()?,
    })
}

fn usual_mounts(privilege: Privilege, cgroup: &Cgroup) -> Result<Vec<MountPlan>, Error> {
    const STAGE: &str = "planning the container's mounts";
    let mut usual = defaults::mounts(privilege).stage(STAGE)?;
    let (v1, unified) = (v1_directories(cgroup)?, unified_mount(cgroup)?);
    usual.extend(defaults::cgroup_mounts(privilege, &v1, unified).stage(STAGE)?);
    Ok(usual)
}

fn asked_mounts(context: &Context<'_>, privilege: Privilege) -> Result<Vec<MountPlan>, Error> {
    let asked: Vec<MountPlan> = context.config.mounts.iter().map(mounts::plan).collect::<Result<_, _>>()?;
    let shared = asked.iter().any(|mount| mount.propagation == Propagation::Shared);
    if shared && privilege != Privilege::Privileged {
        return Err(Error::invalid("mounts", "bidirectional propagation is for privileged containers"));
    }
    Ok(asked)
}

/// What the pod's containers have in common: shared memory, and the files of their name and their names' servers.
fn pods_mounts(context: &Context<'_>) -> Result<Vec<MountPlan>, Error> {
    const STAGE: &str = "planning the container's mounts";
    let directory = files::directory(context.layout, &context.pod.id);
    let shm = match context.pod.namespaces().ipc() {
        NamespaceMode::Node => HostPath::new("/dev/shm").stage(STAGE)?,
        _ => host(&directory.join(files::SHM))?,
    };
    let mut mounts = vec![defaults::bind("/dev/shm", shm, defaults::SAFE).stage(STAGE)?];
    let read_only = if context.security().readonly_rootfs { Attributes::READ_ONLY } else { Attributes::NONE };
    for name in files::NAMES {
        let source = host(&directory.join(name))?;
        mounts.push(defaults::bind(&format!("/etc/{name}"), source, read_only).stage(STAGE)?);
    }
    Ok(mounts)
}

/// The container's directory in each v1 hierarchy, by the name of its mount; none on v2.
fn v1_directories(cgroup: &Cgroup) -> Result<Vec<(String, HostPath)>, Error> {
    let entry = cgroup.entry();
    let suffix = format!("{}/tasks", cgroup.path());
    let mut directories = Vec::new();
    for tasks in &entry.tasks {
        let text = tasks.to_string_lossy();
        let Some(mount) = text.strip_suffix(&suffix) else { continue };
        let name = mount.rsplit('/').next().unwrap_or_default().to_owned();
        let directory = tasks.parent().unwrap_or(tasks);
        directories.push((name, host(directory)?));
    }
    Ok(directories)
}

/// Where the unified hierarchy is mounted, if the container's cgroup is in it.
fn unified_mount(cgroup: &Cgroup) -> Result<Option<HostPath>, Error> {
    let Some(directory) = cgroup.entry().directory else { return Ok(None) };
    let mount = directory.to_string_lossy().strip_suffix(&cgroup.path().to_string()).map(str::to_owned);
    mount.map(|mount| host(std::path::Path::new(&mount))).transpose()
}

/// The stop signal: the request's, else the image's, else SIGTERM.
pub(crate) fn stop_signal(context: &Context<'_>) -> String {
    let asked = crate::stop::from_cri(context.config.stop_signal());
    asked
        .or_else(|| crate::stop::canonical(context.image.stop_signal()))
        .unwrap_or_else(|| "SIGTERM".to_owned())
}

/// What is remembered of the container.
pub(crate) fn record(
    context: &Context<'_>,
    cgroup: &CgroupPath,
    created_at_ns: i64,
) -> records::ContainerRecord {
    records::ContainerRecord {
        config: context.config.clone(),
        created_at_ns,
        image_id: context.image.id.clone(),
        image_ref: context.image.reference.clone(),
        stop_signal: stop_signal(context),
        cgroup: cgroup.to_string(),
        ..records::ContainerRecord::default()
    }
}
