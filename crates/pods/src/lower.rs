//! From a request to a plan: every choice about a container is taken here.

use wharf_cgroup::{Access, Cgroup, CgroupPath, DeviceRule, DeviceType, default_devices};
use wharf_cri_api::v1::{
    ContainerConfig, KeyValue, LinuxContainerSecurityContext, NamespaceMode, SupplementalGroupsPolicy,
};
use wharf_isolation::{
    CgroupPlan, DeviceNode, Input, LogFile, MountPlan, Namespaces, PidNamespace, Plan, Process, Rootfs,
    Stdio, User,
};
use wharf_planner::defaults::{self, Privilege};
use wharf_planner::{capabilities, seccomp};
use wharf_state::Layout;
use wharf_sys::mount::{Attributes, Propagation};
use wharf_sys::process::Capabilities;
use wharf_types::{ContainerId, ContainerPath, HostPath};

use crate::error::{Error, Stage};
use crate::images::ImageView;
use crate::pod::Pod;
use crate::{mounts, records};

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

    /// The capabilities the container gets.
    pub(crate) fn capabilities(&self) -> Result<Capabilities, Error> {
        let security = self.security();
        if security.privileged {
            let all = self.bounding;
            return Ok(Capabilities {
                bounding: all,
                effective: all,
                permitted: all,
                ..Capabilities::default()
            });
        }
        let asked = security.capabilities.unwrap_or_default();
        let bits = |names: &[String]| {
            capabilities::parse(names).map_err(|error| Error::invalid("capabilities", error))
        };
        let (add, drop) = (bits(&asked.add_capabilities)?, bits(&asked.drop_capabilities)?);
        let ambient = bits(&asked.add_ambient_capabilities)? & self.bounding;
        // ALL in the one list is the base that the names in the other are taken from.
        let base = if drop == capabilities::ALL { 0 } else { capabilities::default_set() };
        let drop = if drop == capabilities::ALL { 0 } else { drop };
        let set = ((base | add) & !drop | ambient) & self.bounding;
        Ok(Capabilities { bounding: set, effective: set, permitted: set, inheritable: ambient, ambient })
    }
}

/// Makes the plan of a container whose cgroup and snapshot exist.
pub(crate) fn plan(
    context: &Context<'_>,
    id: &ContainerId,
    cgroup: &Cgroup,
    rootfs: Rootfs,
    filter: Option<&seccomp::Program>,
) -> Result<Plan, Error> {
    let security = context.security();
    let privilege = if security.privileged { Privilege::Privileged } else { Privilege::Ordinary };
    let devices = device_nodes(context, privilege)?;
    Ok(Plan {
        container: id.clone(),
        rootfs,
        namespaces: namespaces(context, &security)?,
        cgroup: cgroup_plan(cgroup)?,
        mounts: all_mounts(context, privilege, cgroup)?,
        devices,
        masked_paths: paths("masked_paths", &security.masked_paths, privilege)?,
        readonly_paths: paths("readonly_paths", &security.readonly_paths, privilege)?,
        process: process(context, &security, filter)?,
        stdio: stdio(context)?,
    })
}

fn paths(field: &'static str, paths: &[String], privilege: Privilege) -> Result<Vec<ContainerPath>, Error> {
    if privilege == Privilege::Privileged {
        return Ok(Vec::new());
    }
    paths.iter().map(|path| ContainerPath::new(path).map_err(|error| Error::invalid(field, error))).collect()
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

fn all_mounts(context: &Context<'_>, privilege: Privilege, cgroup: &Cgroup) -> Result<Vec<MountPlan>, Error> {
    const STAGE: &str = "planning the container's mounts";
    let pod = context.pod;
    let shm = match pod.namespaces().ipc() {
        NamespaceMode::Node => HostPath::new("/dev/shm").stage(STAGE)?,
        _ => host(&context.layout.pod_file(&pod.id, "shm"))?,
    };
    let mut own = defaults::mounts(privilege, &shm).stage(STAGE)?;
    own.extend(defaults::cgroup_mounts(privilege, &v1_directories(cgroup)?).stage(STAGE)?);
    let read_only = if context.security().readonly_rootfs { Attributes::READ_ONLY } else { Attributes::NONE };
    for name in ["hostname", "hosts", "resolv.conf"] {
        let source = host(&context.layout.pod_file(&pod.id, name))?;
        own.push(defaults::bind(&format!("/etc/{name}"), source, read_only).stage(STAGE)?);
    }
    let asked: Vec<MountPlan> = context.config.mounts.iter().map(mounts::plan).collect::<Result<_, _>>()?;
    let shared = asked.iter().any(|mount| mount.propagation == Propagation::Shared);
    if shared && privilege != Privilege::Privileged {
        return Err(Error::invalid("mounts", "bidirectional propagation is for privileged containers"));
    }
    Ok(mounts::merge(own, asked))
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

fn device_nodes(context: &Context<'_>, privilege: Privilege) -> Result<Vec<DeviceNode>, Error> {
    let mut nodes = defaults::devices().stage("planning the container's devices")?;
    if privilege == Privilege::Privileged {
        nodes.extend(host_devices());
    }
    for device in &context.config.devices {
        nodes.extend(asked_devices(&device.host_path, &device.container_path)?);
    }
    Ok(nodes)
}

fn node(path: ContainerPath, of: &std::path::Path) -> Option<DeviceNode> {
    use std::os::unix::fs::MetadataExt;
    let stat = std::fs::metadata(of).ok()?;
    let kind = stat.mode() & 0o170_000;
    if kind != defaults::S_IFCHR && kind != defaults::S_IFBLK {
        return None;
    }
    let number = stat.rdev();
    let major = u32::try_from(nix::sys::stat::major(number)).ok()?;
    let minor = u32::try_from(nix::sys::stat::minor(number)).ok()?;
    Some(DeviceNode {
        path,
        kind,
        major,
        minor,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
    })
}

/// The host's devices at the top of `/dev` and one level below, without terminals.
fn host_devices() -> Vec<DeviceNode> {
    let mut found = Vec::new();
    let mut directories = vec![std::path::PathBuf::from("/dev")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let skip = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"];
            if skip.iter().any(|name| path == std::path::Path::new(name)) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && directories.len() < 64 => directories.push(path),
                Ok(kind) if !kind.is_dir() && !kind.is_symlink() => {
                    found.extend(
                        ContainerPath::new(&path.to_string_lossy()).ok().and_then(|name| node(name, &path)),
                    );
                }
                _ => {}
            }
        }
    }
    found
}

fn asked_devices(from: &str, to: &str) -> Result<Vec<DeviceNode>, Error> {
    let fail = |problem: String| Error::invalid("devices", format!("{from}: {problem}"));
    let target = ContainerPath::new(to).map_err(|error| fail(error.to_string()))?;
    let source = std::fs::canonicalize(from).map_err(|error| fail(error.to_string()))?;
    if source.is_dir() {
        let entries = std::fs::read_dir(&source).map_err(|error| fail(error.to_string()))?;
        let nodes = entries.flatten().filter_map(|entry| {
            let name =
                ContainerPath::new(&format!("{target}/{}", entry.file_name().to_string_lossy())).ok()?;
            node(name, &entry.path())
        });
        return Ok(nodes.collect());
    }
    node(target, &source).map(|node| vec![node]).ok_or_else(|| fail("is not a device".to_owned()))
}

/// Which devices the container's cgroup allows.
pub(crate) fn device_rules(context: &Context<'_>) -> Result<Vec<DeviceRule>, Error> {
    if context.security().privileged {
        let access = Access::READ.and(Access::WRITE).and(Access::MKNOD);
        return Ok(vec![DeviceRule { allow: true, kind: DeviceType::All, major: None, minor: None, access }]);
    }
    let mut rules = default_devices();
    for device in &context.config.devices {
        let access = Access::parse(&device.permissions).ok_or_else(|| {
            Error::invalid("devices", format!("permissions {:?} are not of rwm", device.permissions))
        })?;
        for node in asked_devices(&device.host_path, &device.container_path)? {
            let block = node.kind == defaults::S_IFBLK;
            let kind = if block { DeviceType::Block } else { DeviceType::Char };
            rules.push(DeviceRule {
                allow: true,
                kind,
                major: Some(node.major),
                minor: Some(node.minor),
                access,
            });
        }
    }
    Ok(rules)
}

fn process(
    context: &Context<'_>,
    security: &LinuxContainerSecurityContext,
    filter: Option<&seccomp::Program>,
) -> Result<Process, Error> {
    let config = context.config;
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let args = context.image.command(&config.command, &config.args);
    if args.is_empty() {
        return Err(Error::invalid("command", "neither the request nor the image names a program"));
    }
    let cwd = if config.working_dir.is_empty() { context.image.working_dir() } else { &config.working_dir };
    Ok(Process {
        args: args.into_iter().map(String::into_bytes).collect(),
        env: environment(context)?,
        cwd: ContainerPath::new(cwd).map_err(|error| Error::invalid("working_dir", error))?,
        user: user(context, security)?,
        capabilities: context.capabilities()?,
        no_new_privileges: security.no_new_privs,
        limits: Vec::new(),
        // Without a wish not the daemon's, which is protected.
        oom_score_adj: resources.map_or(Some(0), |resources| i32::try_from(resources.oom_score_adj).ok()),
        seccomp: filter.map(seccomp::Program::to_bytes).unwrap_or_default(),
        seccomp_flags: filter.map_or(0, |program| program.flags),
    })
}

/// The image's environment, then the request's; a later value of a name replaces an earlier one.
fn environment(context: &Context<'_>) -> Result<Vec<Vec<u8>>, Error> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |key: &[u8], value: &[u8]| match pairs.iter_mut().find(|(known, _)| known == key) {
        Some(pair) => pair.1 = value.to_vec(),
        None => pairs.push((key.to_vec(), value.to_vec())),
    };
    if context.config.tty {
        set(b"TERM", b"xterm");
    }
    for pair in context.image.environment() {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        set(key.as_bytes(), value.as_bytes());
    }
    for KeyValue { key, value } in &context.config.envs {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains(&0) {
            return Err(Error::invalid(
                "envs",
                format!("{key:?} is not a name, or its value has a NUL byte"),
            ));
        }
        set(key.as_bytes(), value);
    }
    if !pairs.iter().any(|(key, _)| key == b"PATH") {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        pairs.push((b"PATH".to_vec(), path.into()));
    }
    Ok(pairs.into_iter().map(|(key, value)| [&key[..], b"=", &value].concat()).collect())
}

fn user(context: &Context<'_>, security: &LinuxContainerSecurityContext) -> Result<User, Error> {
    let id = |field, value: i64| {
        let id = u32::try_from(value).ok().filter(|&id| id != u32::MAX);
        id.ok_or_else(|| Error::invalid(field, format!("{value} is out of range")))
    };
    let by_id = security.run_as_user.as_ref().map(|user| id("run_as_user", user.value)).transpose()?;
    let group = security.run_as_group.as_ref().map(|group| id("run_as_group", group.value)).transpose()?;
    let named = !security.run_as_username.is_empty();
    if group.is_some() && by_id.is_none() && !named {
        return Err(Error::invalid("run_as_group", "it needs run_as_user or run_as_username"));
    }
    let (user, image_group) = match by_id {
        Some(uid) => (uid.to_string(), String::new()),
        None if named => (security.run_as_username.clone(), String::new()),
        None => context.image.user(),
    };
    let additional: Result<Vec<u32>, Error> =
        security.supplemental_groups.iter().map(|&group| id("supplemental_groups", group)).collect();
    Ok(User {
        user,
        group: group.map_or(image_group, |gid| gid.to_string()),
        additional_groups: additional?,
        strict: security.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
    })
}

fn stdio(context: &Context<'_>) -> Result<Stdio, Error> {
    let (directory, name) = (&context.pod.config.log_directory, &context.config.log_path);
    let log = if directory.is_empty() || name.is_empty() {
        None
    } else {
        if name.split('/').any(|part| part == "..") || name.starts_with('/') {
            return Err(Error::invalid("log_path", format!("{name:?} leads out of the log directory")));
        }
        let directory = HostPath::new(directory).map_err(|error| Error::invalid("log_directory", error))?;
        Some(LogFile { directory, name: name.clone() })
    };
    Ok(Stdio {
        log,
        input: match (context.config.stdin, context.config.stdin_once) {
            (false, _) => Input::Empty,
            (true, false) => Input::Kept,
            (true, true) => Input::Once,
        },
        terminal: context.config.tty,
    })
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
