//! The plan on the wire: conversions in both directions, written by hand.
//!
//! A supervisor may be of another release than the daemon, so what is missing here has the meaning that it had before
//! there was such a field, and a value that this release does not know is an error. What arrives is checked as if it
//! came from a stranger: types with one constructor are made anew.

use wharf_sys::capabilities::Capabilities;
use wharf_sys::mount::{Attributes, Propagation};
use wharf_sys::scheduling::Scheduling;
use wharf_types::{ContainerPath, HostPath, IdMaps, IdRange, OwnerId, ProfileName, Reserve, SelinuxLabel};
use wharf_wire::v1;

use crate::error::Error;
use crate::plan::{
    CgroupPlan, DeviceNode, Ids, Input, Limit, LogFile, LogLimits, MountPlan, Namespaces, Outline,
    PidNamespace, Plan, Process, Rootfs, Runtime, Sandbox, Source, Stdio, Traits, User, UserNamespace,
};

impl From<&Plan> for v1::Plan {
    fn from(plan: &Plan) -> Self {
        let texts = |paths: &[ContainerPath]| paths.iter().map(|path| path.as_str().to_owned()).collect();
        Self {
            container: plan.container.to_string(),
            rootfs: Some(v1::Rootfs {
                lowers: host_texts(&plan.rootfs.lowers),
                upper: plan.rootfs.upper.to_string(),
                work: plan.rootfs.work.to_string(),
                read_only: plan.rootfs.read_only,
                shared: plan.rootfs.propagation == Propagation::Shared,
            }),
            namespaces: Some(namespaces_out(&plan.namespaces)),
            cgroup: Some(cgroup_out(&plan.cgroup)),
            mounts: plan.mounts.iter().map(mount_out).collect(),
            devices: plan.devices.iter().map(device_out).collect(),
            masked_paths: texts(&plan.masked_paths),
            readonly_paths: texts(&plan.readonly_paths),
            process: Some(process_out(&plan.process)),
            stdio: Some(v1::Stdio {
                log_directory: plan
                    .stdio
                    .log
                    .as_ref()
                    .map_or_else(String::new, |log| log.directory.to_string()),
                log_name: plan.stdio.log.as_ref().map_or_else(String::new, |log| log.name.clone()),
                log_line_bytes: plan.stdio.log.as_ref().map_or(0, |log| log.limits.line_bytes),
                log_file_bytes: plan.stdio.log.as_ref().map_or(0, |log| log.limits.file_bytes),
                stdin: plan.stdio.input != Input::Empty,
                terminal: plan.stdio.terminal,
                stdin_once: plan.stdio.input == Input::Once,
            }),
            reserve: Some(v1::Reserve { bytes: plan.reserve.bytes, inodes: plan.reserve.inodes }),
            runtime: plan.runtime.as_ref().map(runtime_out),
            runtime_spec: plan.runtime_spec.clone(),
            mount_label: label_out(plan.mount_label.as_ref()),
        }
    }
}

fn host_texts(paths: &[HostPath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

fn optional_text(path: Option<&HostPath>) -> String {
    path.map_or_else(String::new, ToString::to_string)
}

fn namespaces_out(namespaces: &Namespaces) -> v1::Namespaces {
    let (pid, target) = match &namespaces.pid {
        PidNamespace::Container => (v1::namespaces::Pid::Container, String::new()),
        PidNamespace::Pod => (v1::namespaces::Pid::Pod, String::new()),
        PidNamespace::Host => (v1::namespaces::Pid::Host, String::new()),
        PidNamespace::Target(container) => (v1::namespaces::Pid::Target, container.to_string()),
    };
    v1::Namespaces {
        net: optional_text(namespaces.net.as_ref()),
        ipc: optional_text(namespaces.ipc.as_ref()),
        uts: optional_text(namespaces.uts.as_ref()),
        pid: pid.into(),
        pid_target: target,
        cgroup: namespaces.cgroup,
        user: optional_text(namespaces.user.as_ref().map(|user| &user.path)),
        users: namespaces.user.as_ref().map(|user| range_out(user.ids.users)),
        groups: namespaces.user.as_ref().map(|user| range_out(user.ids.groups)),
    }
}

fn range_out(range: IdRange) -> v1::IdRange {
    v1::IdRange { first: range.first(), count: range.count() }
}

fn mount_out(mount: &MountPlan) -> v1::Mount {
    let bound = |path: &HostPath| (path.to_string(), String::new(), Vec::new());
    let (source, filesystem, options) = match &mount.source {
        Source::Tree(path) | Source::Single(path) | Source::Volume(path) | Source::OfPod(path) => bound(path),
        Source::Filesystem { kind, options } => {
            let option =
                |(key, value): &(String, String)| v1::Option { key: key.clone(), value: value.clone() };
            (String::new(), kind.clone(), options.iter().map(option).collect())
        }
        Source::Image { .. } => (String::new(), String::new(), Vec::new()),
    };
    let (layers, sub_path) = match &mount.source {
        Source::Image { layers, sub_path } => (host_texts(layers), sub_path.to_string()),
        _ => (Vec::new(), String::new()),
    };
    let propagation = match mount.propagation {
        Propagation::Private => v1::mount::Propagation::Private,
        Propagation::Slave => v1::mount::Propagation::Slave,
        Propagation::Shared => v1::mount::Propagation::Shared,
    };
    v1::Mount {
        target: mount.target.to_string(),
        source,
        filesystem,
        options,
        attributes: mount.attributes.bits(),
        recursive_read_only: mount.recursive_read_only,
        propagation: propagation.into(),
        // Supervisors of an earlier release bind the pod's files by path.
        single: matches!(mount.source, Source::Single(_) | Source::OfPod(_)),
        volume: matches!(mount.source, Source::Volume(_)),
        of_pod: matches!(mount.source, Source::OfPod(_)),
        layers,
        sub_path,
        mapped: mount.ids == Ids::Containers,
    }
}

fn device_out(node: &DeviceNode) -> v1::Device {
    v1::Device {
        path: node.path.to_string(),
        r#type: node.kind,
        major: node.major,
        minor: node.minor,
        mode: node.mode,
        uid: node.uid.number(),
        gid: node.gid.number(),
    }
}

fn process_out(process: &Process) -> v1::Process {
    let caps = &process.capabilities;
    v1::Process {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.to_string(),
        user: Some(v1::User {
            user: process.user.user.clone(),
            group: process.user.group.clone(),
            additional_groups: process.user.additional_groups.iter().map(|id| id.number()).collect(),
            strict: process.user.strict,
        }),
        capabilities: Some(v1::Capabilities {
            bounding: caps.bounding,
            effective: caps.effective,
            permitted: caps.permitted,
            inheritable: caps.inheritable,
            ambient: caps.ambient,
        }),
        no_new_privileges: process.no_new_privileges,
        limits: process
            .limits
            .iter()
            .map(|limit| v1::Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard })
            .collect(),
        oom_score_adj: process.oom_score_adj,
        traits: Some(traits_out(&process.traits)),
        apparmor_profile: process.apparmor.as_ref().map_or_else(String::new, ToString::to_string),
        selinux_label: label_out(process.selinux.as_ref()),
        seccomp: process.seccomp.clone(),
        seccomp_flags: process.seccomp_flags,
    }
}

fn label_out(label: Option<&SelinuxLabel>) -> String {
    label.map_or_else(String::new, ToString::to_string)
}

fn traits_out(traits: &Traits) -> v1::Traits {
    v1::Traits {
        umask: traits.umask,
        scheduling: traits.scheduling.map(|Scheduling { policy, nice, priority }| v1::Scheduling {
            policy,
            nice,
            priority,
        }),
        io_priority: traits.io_priority.map(|(class, level)| v1::IoPriority { class, level }),
        personality: traits.personality,
    }
}

fn runtime_out(runtime: &Runtime) -> v1::Runtime {
    v1::Runtime {
        program: runtime.program.to_string(),
        options: runtime.options.clone(),
        state_directory: runtime.state_directory.to_string(),
        bundle_directory: runtime.bundle_directory.to_string(),
        process: runtime.process.clone(),
        sandbox: runtime.sandbox.as_ref().map(|Sandbox { id, spec, cgroup }| v1::Sandbox {
            id: id.clone(),
            spec: spec.clone(),
            cgroup: Some(cgroup_out(cgroup)),
        }),
    }
}

fn cgroup_out(cgroup: &CgroupPlan) -> v1::Cgroup {
    v1::Cgroup {
        directory: optional_text(cgroup.directory.as_ref()),
        entries: host_texts(&cgroup.entries),
        kill_directory: cgroup.kill_directory.to_string(),
        oom_file: optional_text(cgroup.oom_file.as_ref()),
    }
}

impl Plan {
    /// Decodes a plan.
    ///
    /// # Errors
    /// [`Error::Plan`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let plan = wharf_wire::decode::<v1::Plan>(bytes).map_err(|error| wharf_types::chain(&error));
        plan.and_then(Self::try_from).map_err(|problem| Error::Plan { problem })
    }
}

impl Outline {
    /// Decodes the part of a plan that the supervisor keeps.
    ///
    /// # Errors
    /// [`Error::Plan`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let outline = wharf_wire::decode::<v1::Outline>(bytes).map_err(|error| wharf_types::chain(&error));
        outline.and_then(Self::try_from).map_err(|problem| Error::Plan { problem })
    }
}

impl TryFrom<v1::Plan> for Plan {
    /// What could not be parsed.
    type Error = String;

    fn try_from(plan: v1::Plan) -> Result<Self, String> {
        let v1::Plan { container, namespaces, cgroup, process, stdio, runtime, mount_label, .. } = plan;
        let outline = v1::Outline { container, namespaces, cgroup, process, stdio, runtime, mount_label };
        let outline = Outline::try_from(outline)?;
        let Outline { container, namespaces, cgroup, process, stdio, runtime, mount_label } = outline;
        let rootfs = plan.rootfs.ok_or("no rootfs")?;
        // A daemon of an earlier release sends none.
        let reserve = plan.reserve.unwrap_or_default();
        Ok(Self {
            container,
            rootfs: Rootfs {
                lowers: hosts(&rootfs.lowers)?,
                upper: host(&rootfs.upper)?,
                work: host(&rootfs.work)?,
                read_only: rootfs.read_only,
                propagation: if rootfs.shared { Propagation::Shared } else { Propagation::Private },
            },
            namespaces,
            cgroup,
            mounts: plan.mounts.into_iter().map(mount_in).collect::<Result<_, _>>()?,
            devices: plan.devices.into_iter().map(device_in).collect::<Result<_, _>>()?,
            masked_paths: plan.masked_paths.iter().map(|path| inner(path)).collect::<Result<_, _>>()?,
            readonly_paths: plan.readonly_paths.iter().map(|path| inner(path)).collect::<Result<_, _>>()?,
            process,
            stdio,
            reserve: Reserve { bytes: reserve.bytes, inodes: reserve.inodes },
            runtime,
            runtime_spec: plan.runtime_spec,
            mount_label,
        })
    }
}

impl TryFrom<v1::Outline> for Outline {
    /// What could not be understood.
    type Error = String;

    fn try_from(outline: v1::Outline) -> Result<Self, String> {
        Ok(Self {
            container: outline.container.parse().map_err(show)?,
            namespaces: namespaces_in(&outline.namespaces.ok_or("no namespaces")?)?,
            cgroup: cgroup_in(outline.cgroup)?,
            process: process_in(outline.process.ok_or("no process")?)?,
            stdio: stdio_in(outline.stdio.ok_or("no stdio")?)?,
            runtime: outline.runtime.map(runtime_in).transpose()?,
            mount_label: label_in(&outline.mount_label)?,
        })
    }
}

fn runtime_in(runtime: v1::Runtime) -> Result<Runtime, String> {
    Ok(Runtime {
        program: host(&runtime.program)?,
        options: runtime.options,
        state_directory: host(&runtime.state_directory)?,
        bundle_directory: host(&runtime.bundle_directory)?,
        process: runtime.process,
        sandbox: runtime.sandbox.map(sandbox_in).transpose()?,
    })
}

fn sandbox_in(sandbox: v1::Sandbox) -> Result<Sandbox, String> {
    // It is a word of a command line.
    if sandbox.id.is_empty() || sandbox.id.starts_with('-') {
        return Err(format!("{:?} names no sandbox", sandbox.id));
    }
    Ok(Sandbox { id: sandbox.id, spec: sandbox.spec, cgroup: cgroup_in(sandbox.cgroup)? })
}

fn cgroup_in(cgroup: Option<v1::Cgroup>) -> Result<CgroupPlan, String> {
    let cgroup = cgroup.ok_or("no cgroup")?;
    Ok(CgroupPlan {
        directory: optional(&cgroup.directory)?,
        entries: hosts(&cgroup.entries)?,
        kill_directory: host(&cgroup.kill_directory)?,
        oom_file: optional(&cgroup.oom_file)?,
    })
}

fn stdio_in(stdio: v1::Stdio) -> Result<Stdio, String> {
    let usual = LogLimits::default();
    let line_bytes = if stdio.log_line_bytes == 0 { usual.line_bytes } else { stdio.log_line_bytes };
    let limits = LogLimits { line_bytes, file_bytes: stdio.log_file_bytes };
    let log = match stdio.log_name {
        name if name.is_empty() => None,
        name => Some(LogFile { directory: host(&stdio.log_directory)?, name, limits }),
    };
    let input = match (stdio.stdin, stdio.stdin_once) {
        (false, _) => Input::Empty,
        (true, false) => Input::Kept,
        (true, true) => Input::Once,
    };
    Ok(Stdio { log, input, terminal: stdio.terminal })
}

fn show(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn host(text: &str) -> Result<HostPath, String> {
    HostPath::new(text).map_err(show)
}

fn hosts(texts: &[String]) -> Result<Vec<HostPath>, String> {
    texts.iter().map(|text| host(text)).collect()
}

fn optional(text: &str) -> Result<Option<HostPath>, String> {
    (!text.is_empty()).then(|| host(text)).transpose()
}

fn inner(text: &str) -> Result<ContainerPath, String> {
    ContainerPath::new(text).map_err(show)
}

fn namespaces_in(namespaces: &v1::Namespaces) -> Result<Namespaces, String> {
    let pid = match v1::namespaces::Pid::try_from(namespaces.pid).map_err(show)? {
        v1::namespaces::Pid::Container => PidNamespace::Container,
        v1::namespaces::Pid::Pod => PidNamespace::Pod,
        v1::namespaces::Pid::Host => PidNamespace::Host,
        v1::namespaces::Pid::Target => PidNamespace::Target(namespaces.pid_target.parse().map_err(show)?),
    };
    Ok(Namespaces {
        net: optional(&namespaces.net)?,
        ipc: optional(&namespaces.ipc)?,
        uts: optional(&namespaces.uts)?,
        user: user_in(namespaces)?,
        pid,
        cgroup: namespaces.cgroup,
    })
}

fn user_in(namespaces: &v1::Namespaces) -> Result<Option<UserNamespace>, String> {
    let Some(path) = optional(&namespaces.user)? else { return Ok(None) };
    let ids = IdMaps { users: range_in(namespaces.users)?, groups: range_in(namespaces.groups)? };
    Ok(Some(UserNamespace { path, ids }))
}

fn range_in(range: Option<v1::IdRange>) -> Result<IdRange, String> {
    let v1::IdRange { first, count } = range.ok_or("a user namespace without ids")?;
    IdRange::new(first, count).map_err(show)
}

fn mount_in(mount: v1::Mount) -> Result<MountPlan, String> {
    let source = if !mount.filesystem.is_empty() {
        let options = mount.options.into_iter().map(|option| (option.key, option.value)).collect();
        Source::Filesystem { kind: mount.filesystem, options }
    } else if !mount.layers.is_empty() {
        Source::Image { layers: hosts(&mount.layers)?, sub_path: inner(&mount.sub_path)? }
    } else if mount.of_pod {
        Source::OfPod(host(&mount.source)?)
    } else if mount.volume {
        Source::Volume(host(&mount.source)?)
    } else if mount.single {
        Source::Single(host(&mount.source)?)
    } else {
        Source::Tree(host(&mount.source)?)
    };
    let propagation = match v1::mount::Propagation::try_from(mount.propagation).map_err(show)? {
        v1::mount::Propagation::Private => Propagation::Private,
        v1::mount::Propagation::Slave => Propagation::Slave,
        v1::mount::Propagation::Shared => Propagation::Shared,
    };
    Ok(MountPlan {
        target: inner(&mount.target)?,
        source,
        attributes: Attributes::from_bits(mount.attributes),
        recursive_read_only: mount.recursive_read_only,
        propagation,
        ids: if mount.mapped { Ids::Containers } else { Ids::Hosts },
    })
}

fn device_in(node: v1::Device) -> Result<DeviceNode, String> {
    Ok(DeviceNode {
        path: inner(&node.path)?,
        kind: node.r#type,
        major: node.major,
        minor: node.minor,
        mode: node.mode,
        uid: owner_in(node.uid)?,
        gid: owner_in(node.gid)?,
    })
}

fn process_in(process: v1::Process) -> Result<Process, String> {
    let caps = process.capabilities.ok_or("no capabilities")?;
    let user = process.user.unwrap_or_default();
    if process.args.is_empty() {
        return Err("no program".to_owned());
    }
    Ok(Process {
        args: process.args,
        env: process.env,
        cwd: inner(&process.cwd)?,
        user: User {
            user: user.user,
            group: user.group,
            additional_groups: user.additional_groups.into_iter().map(owner_in).collect::<Result<_, _>>()?,
            strict: user.strict,
        },
        capabilities: Capabilities {
            bounding: caps.bounding,
            effective: caps.effective,
            permitted: caps.permitted,
            inheritable: caps.inheritable,
            ambient: caps.ambient,
        },
        no_new_privileges: process.no_new_privileges,
        limits: process
            .limits
            .into_iter()
            .map(|limit| Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard })
            .collect(),
        oom_score_adj: process.oom_score_adj,
        traits: process.traits.map(traits_in).unwrap_or_default(),
        apparmor: profile_in(&process.apparmor_profile)?,
        selinux: label_in(&process.selinux_label)?,
        seccomp: process.seccomp,
        seccomp_flags: process.seccomp_flags,
    })
}

fn owner_in(id: u32) -> Result<OwnerId, String> {
    OwnerId::try_from(id).map_err(show)
}

fn profile_in(name: &str) -> Result<Option<ProfileName>, String> {
    (!name.is_empty()).then(|| ProfileName::new(name)).transpose().map_err(show)
}

fn label_in(label: &str) -> Result<Option<SelinuxLabel>, String> {
    (!label.is_empty()).then(|| SelinuxLabel::new(label)).transpose().map_err(show)
}

fn traits_in(traits: v1::Traits) -> Traits {
    Traits {
        umask: traits.umask,
        scheduling: traits.scheduling.map(|v1::Scheduling { policy, nice, priority }| Scheduling {
            policy,
            nice,
            priority,
        }),
        io_priority: traits.io_priority.map(|v1::IoPriority { class, level }| (class, level)),
        personality: traits.personality,
    }
}

#[cfg(test)]
mod tests;
