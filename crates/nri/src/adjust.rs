//! What plugins adjust, as a step on the description of a container that is about to be made.
//!
//! The step is pure. It sets in the runtime spec whatever plugins set, even what this build does not support: the
//! planner refuses that by its name. Only what the runtime spec cannot express is refused here.

mod process;

use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;
use wharf_cri_api::v1::{ContainerConfig, LinuxContainerResources};
use wharf_planner::{Description, Refusal};

use crate::Error;
use crate::api::{
    ContainerAdjustment, Hook, LinuxContainerAdjustment, LinuxDevice, LinuxMemoryPolicy, LinuxNamespace,
    LinuxRdt, LinuxSeccomp, LinuxSyscall, Mount, MpolFlag, MpolMode,
};
use crate::convert::{Problem, apply, in_cri, word};
use crate::merge::Changes;
use crate::merge::entries::mark;

/// Applies the merged adjustments to a description.
///
/// # Errors
/// [`Error::Impossible`], with the field.
pub(crate) fn adjust(description: &mut Description, changes: &Changes) -> Result<(), Error> {
    if changes.authors.is_empty() {
        return Ok(());
    }
    adjusted(description, &changes.adjust).map_err(|problem| problem.by(&changes.authors.join(", ")))
}

impl Changes {
    /// Notes the adjusted resources in the container's request, where they are looked up from then on.
    pub fn note_in(&self, request: &mut ContainerConfig, description: &Description) {
        if self.authors.is_empty() {
            return;
        }
        let process = description.spec.process().as_ref();
        let score = process.and_then(oci::Process::oom_score_adj).unwrap_or_default();
        request.linux.get_or_insert_default().resources =
            Some(LinuxContainerResources { oom_score_adj: score.into(), ..in_cri(&description.resources()) });
    }

    /// A refusal of the plan as the plugins' fault, or the refusal itself if none of them adjusted anything.
    ///
    /// # Errors
    /// The refusal.
    pub fn blame(&self, refusal: Refusal) -> Result<Error, Refusal> {
        if self.authors.is_empty() { Err(refusal) } else { Ok(Error::of(refusal, &self.authors)) }
    }
}

fn adjusted(description: &mut Description, adjust: &ContainerAdjustment) -> Result<(), Problem> {
    annotations(&mut description.spec, adjust);
    process::environment(description, &adjust.env);
    let spec = &mut description.spec;
    if let Some(process) = spec.process_mut() {
        process::adjust(process, adjust)?;
    }
    hooks(spec, adjust);
    if let Some(new) = &adjust.linux {
        let mut linux = spec.linux().clone().unwrap_or_default();
        self::linux(&mut linux, new)?;
        spec.set_linux(Some(linux));
        if new.seccomp_policy.is_some() {
            description.extra.seccomp = wharf_planner::Seccomp::Own;
        }
    }
    mounts(&mut description.spec, &adjust.mounts);
    Ok(())
}

fn annotations(spec: &mut oci::Spec, adjust: &ContainerAdjustment) {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    for (name, value) in &adjust.annotations {
        match mark::is_removal(name) {
            true => drop(annotations.remove(mark::bare(name))),
            false => drop(annotations.insert(name.clone(), value.clone())),
        }
    }
    spec.set_annotations(Some(annotations));
}

/// Hooks are only added.
fn hooks(spec: &mut oci::Spec, adjust: &ContainerAdjustment) {
    let Some(new) = &adjust.hooks else { return };
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let more = |known: &Option<Vec<oci::Hook>>, new: &[Hook]| {
        let all: Vec<oci::Hook> = known.iter().flatten().cloned().chain(new.iter().map(hook)).collect();
        (!all.is_empty()).then_some(all)
    };
    let prestart = more(hooks.prestart(), &new.prestart);
    let create_runtime = more(hooks.create_runtime(), &new.create_runtime);
    let create_container = more(hooks.create_container(), &new.create_container);
    let start_container = more(hooks.start_container(), &new.start_container);
    let poststart = more(hooks.poststart(), &new.poststart);
    let poststop = more(hooks.poststop(), &new.poststop);
    hooks
        .set_prestart(prestart)
        .set_create_runtime(create_runtime)
        .set_create_container(create_container)
        .set_start_container(start_container)
        .set_poststart(poststart)
        .set_poststop(poststop);
    spec.set_hooks(Some(hooks));
}

fn hook(new: &Hook) -> oci::Hook {
    let list = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    let mut hook = oci::Hook::default();
    hook.set_path(PathBuf::from(&new.path))
        .set_args(list(&new.args))
        .set_env(list(&new.env))
        .set_timeout(new.timeout.as_ref().map(|timeout| timeout.value));
    hook
}

fn linux(linux: &mut oci::Linux, new: &LinuxContainerAdjustment) -> Result<(), Problem> {
    devices(linux, &new.devices)?;
    if let Some(new) = &new.resources {
        let mut resources = linux.resources().clone().unwrap_or_default();
        apply(new, &mut resources)?;
        linux.set_resources(Some(resources));
        if let Some(class) = &new.rdt_class {
            let class = (!class.value.is_empty()).then(|| {
                let mut class_of = oci::LinuxIntelRdt::default();
                class_of.set_clos_id(Some(class.value.clone()));
                class_of
            });
            linux.set_intel_rdt(class);
        }
    }
    if !new.cgroups_path.is_empty() {
        linux.set_cgroups_path(Some(PathBuf::from(&new.cgroups_path)));
    }
    if let Some(policy) = &new.seccomp_policy {
        linux.set_seccomp(Some(seccomp(policy)?));
    }
    namespaces(linux, &new.namespaces)?;
    sysctls(linux, new);
    net_devices(linux, new);
    if let Some(new) = &new.rdt {
        rdt(linux, new);
    }
    if let Some(policy) = &new.memory_policy {
        linux.set_memory_policy(Some(memory_policy(policy)?));
    }
    Ok(())
}

/// Sets nodes, and allows the container to use them.
fn devices(linux: &mut oci::Linux, new: &[LinuxDevice]) -> Result<(), Problem> {
    const FIELD: &str = "devices";
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for device in new {
        let path = Path::new(mark::bare(&device.path));
        devices.retain(|known| known.path() != path);
        if mark::is_removal(&device.path) {
            continue;
        }
        let kind: oci::LinuxDeviceType = word(FIELD, &device.r#type)?;
        let mut node = oci::LinuxDevice::default();
        node.set_path(path.to_owned())
            .set_typ(kind)
            .set_major(device.major)
            .set_minor(device.minor)
            .set_file_mode(device.file_mode.as_ref().map(|mode| mode.value))
            .set_uid(device.uid.as_ref().map(|uid| uid.value))
            .set_gid(device.gid.as_ref().map(|gid| gid.value));
        devices.push(node);
        let mut rule = oci::LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(Some(device.major))
            .set_minor(Some(device.minor))
            .set_access(Some(access(device)));
        rules.push(rule);
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(devices)).set_resources(Some(resources));
    Ok(())
}

/// The access that a node's mode gives to anybody; without a mode, reading and writing. Making the node is always
/// allowed.
fn access(device: &LinuxDevice) -> String {
    let mode = device.file_mode.as_ref().map_or(0o666, |mode| mode.value);
    let letter = |bits, letter| if mode & bits != 0 { letter } else { "" };
    format!("{}{}m", letter(0o444, "r"), letter(0o222, "w"))
}

fn seccomp(policy: &LinuxSeccomp) -> Result<oci::LinuxSeccomp, Problem> {
    const FIELD: &str = "seccomp_policy";
    let architectures =
        policy.architectures.iter().map(|name| word(FIELD, name)).collect::<Result<Vec<_>, _>>();
    let flags = policy.flags.iter().map(|name| word(FIELD, name)).collect::<Result<Vec<_>, _>>();
    let syscalls = policy.syscalls.iter().map(syscall).collect::<Result<Vec<_>, _>>();
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut seccomp = oci::LinuxSeccomp::default();
    seccomp
        .set_default_action(word(FIELD, &policy.default_action)?)
        .set_default_errno_ret(policy.default_errno.as_ref().map(|errno| errno.value))
        .set_architectures(Some(architectures?))
        // No flags and no word about them are the same to a plugin.
        .set_flags(Some(flags?).filter(|flags| !flags.is_empty()))
        .set_listener_path(text(&policy.listener_path).map(PathBuf::from))
        .set_listener_metadata(text(&policy.listener_metadata))
        .set_syscalls(Some(syscalls?));
    Ok(seccomp)
}

fn syscall(new: &LinuxSyscall) -> Result<oci::LinuxSyscall, Problem> {
    const FIELD: &str = "seccomp_policy";
    let argument = |new: &crate::api::LinuxSeccompArg| {
        let operator: oci::LinuxSeccompOperator = word(FIELD, &new.op)?;
        let argument = oci::LinuxSeccompArgBuilder::default()
            .index(usize::try_from(new.index).unwrap_or(usize::MAX))
            .value(new.value)
            .value_two(new.value_two)
            .op(operator);
        argument.build().map_err(|error| Problem::new(FIELD, error))
    };
    let arguments = new.args.iter().map(argument).collect::<Result<Vec<_>, Problem>>()?;
    let mut syscall = oci::LinuxSyscall::default();
    syscall
        .set_names(new.names.clone())
        .set_action(word(FIELD, &new.action)?)
        .set_errno_ret(new.errno_ret.as_ref().map(|errno| errno.value))
        .set_args((!arguments.is_empty()).then_some(arguments));
    Ok(syscall)
}

fn namespaces(linux: &mut oci::Linux, new: &[LinuxNamespace]) -> Result<(), Problem> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for LinuxNamespace { r#type, path } in new {
        let kind: oci::LinuxNamespaceType = word("namespaces", mark::bare(r#type))?;
        namespaces.retain(|known| known.typ() != kind);
        if !mark::is_removal(r#type) {
            let mut namespace = oci::LinuxNamespace::default();
            namespace.set_typ(kind).set_path((!path.is_empty()).then(|| PathBuf::from(path)));
            namespaces.push(namespace);
        }
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

fn sysctls(linux: &mut oci::Linux, new: &LinuxContainerAdjustment) {
    let mut sysctls = linux.sysctl().clone().unwrap_or_default();
    for (name, value) in &new.sysctl {
        match mark::is_removal(name) {
            true => drop(sysctls.remove(mark::bare(name))),
            false => drop(sysctls.insert(name.clone(), value.clone())),
        }
    }
    linux.set_sysctl((!sysctls.is_empty()).then_some(sysctls));
}

fn net_devices(linux: &mut oci::Linux, new: &LinuxContainerAdjustment) {
    let mut devices = linux.net_devices().clone().unwrap_or_default();
    for (name, device) in &new.net_devices {
        if mark::is_removal(name) {
            devices.remove(mark::bare(name));
            continue;
        }
        let mut added = oci::LinuxNetDevice::default();
        added.set_name((!device.name.is_empty()).then(|| device.name.clone()));
        devices.insert(name.clone(), added);
    }
    linux.set_net_devices((!devices.is_empty()).then_some(devices));
}

fn rdt(linux: &mut oci::Linux, new: &LinuxRdt) {
    if new.remove {
        linux.set_intel_rdt(None);
        return;
    }
    let mut rdt = linux.intel_rdt().clone().unwrap_or_default();
    if let Some(class) = &new.clos_id {
        rdt.set_clos_id(Some(class.value.clone()));
    }
    if let Some(schemata) = &new.schemata {
        rdt.set_schemata(Some(schemata.value.clone()));
    }
    if let Some(monitoring) = &new.enable_monitoring {
        rdt.set_enable_monitoring(Some(monitoring.value));
    }
    linux.set_intel_rdt(Some(rdt));
}

fn memory_policy(new: &LinuxMemoryPolicy) -> Result<oci::LinuxMemoryPolicy, Problem> {
    const FIELD: &str = "memory_policy";
    let mode = MpolMode::try_from(new.mode).map_err(|_unknown| Problem::new(FIELD, new.mode))?;
    let flag = |number: &i32| {
        let flag = MpolFlag::try_from(*number).map_err(|_unknown| Problem::new(FIELD, number))?;
        word(FIELD, flag.as_str_name())
    };
    let flags = new.flags.iter().map(flag).collect::<Result<Vec<_>, Problem>>()?;
    let mut policy = oci::LinuxMemoryPolicy::default();
    policy
        .set_mode(word(FIELD, mode.as_str_name())?)
        .set_nodes((!new.nodes.is_empty()).then(|| new.nodes.clone()))
        .set_flags((!flags.is_empty()).then_some(flags));
    Ok(policy)
}

/// Adds, replaces and removes mounts. Those that are nearer to the root come first, so that none hides another.
fn mounts(spec: &mut oci::Spec, new: &[Mount]) {
    if new.is_empty() {
        return;
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in new {
        let destination = Path::new(mark::bare(&mount.destination));
        mounts.retain(|known| known.destination() != destination);
        if !mark::is_removal(&mount.destination) {
            mounts.push(mount_of(mount));
        }
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
}

fn mount_of(new: &Mount) -> oci::Mount {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut mount = oci::Mount::default();
    mount
        .set_destination(PathBuf::from(&new.destination))
        .set_typ(text(&new.r#type))
        .set_source(text(&new.source).map(PathBuf::from))
        .set_options(Some(new.options.clone()));
    mount
}

#[cfg(test)]
mod tests;
