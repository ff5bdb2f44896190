//! The edits of a device, applied to a container's description. As the interface says, of two variables, nodes or
//! mounts with the same name or path the later one counts.

use oci_spec::runtime::{
    self as oci, Linux, LinuxDevice, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice, Process, Spec,
};
use wharf_cgroup::{Access, DeviceRule, DeviceType};
use wharf_types::{ContainerPath, IdMaps, IdRange, OwnerId};

use super::Addition;
use super::file::{Edits, Hook, Mount, NO_ACCESS, Node, Rdt};
use crate::description::{Description, Extra};
use crate::hooks::{self, Point};
use crate::{Refusal, devices, mounts, unsupported, user_namespace};

/// The types of mounts that a file may name, besides binds.
const FILESYSTEMS: [&str; 1] = ["tmpfs"];

/// Applies edits in this order. Nodes must have their types and numbers by now.
///
/// # Errors
/// [`Refusal::Addition`], which names the device, for what this build cannot do or what makes no sense.
pub fn apply(description: &mut Description, additions: &[Addition]) -> Result<(), Refusal> {
    for Addition { device, edits } in additions {
        apply_one(description, edits).map_err(|problem| device.refusal(problem))?;
        unsupported::refuse(&description.spec).map_err(|refusal| device.refusal(refusal.problem()))?;
    }
    Ok(())
}

fn apply_one(description: &mut Description, edits: &Edits) -> Result<(), String> {
    let Description { spec, extra } = description;
    let mut process = spec.process().clone().unwrap_or_default();
    let mut linux = spec.linux().clone().unwrap_or_default();
    let ids = user_namespace::ids_of(&linux).map_err(|refusal| refusal.problem())?;
    edits.env.iter().for_each(|variable| set_variable(&mut process, extra, variable));
    for node in &edits.device_nodes {
        add_node(&mut linux, &process, node, ids)
            .map_err(|problem| format!("node {}: {problem}", node.path))?;
    }
    add_groups(&mut process, &edits.additional_gids)?;
    if let Some(rdt) = &edits.intel_rdt {
        linux.set_intel_rdt(Some(intel_rdt(rdt)));
    }
    for link in &edits.net_devices {
        let mut device = LinuxNetDevice::default();
        device.set_name(Some(link.name.clone()));
        linux.net_devices_mut().get_or_insert_default().insert(link.host_interface_name.clone(), device);
    }
    spec.set_process(Some(process)).set_linux(Some(linux));
    for mount in &edits.mounts {
        let added = add_mount(spec, extra, mount, ids);
        added.map_err(|problem| format!("mount {}: {problem}", mount.container_path))?;
    }
    edits.hooks.iter().try_for_each(|hook| add_hook(spec, hook))
}

/// Of a variable whose value was not text, only the new value is left.
fn set_variable(process: &mut Process, extra: &mut Extra, variable: &str) {
    let wanted = name_of(variable);
    let prefix = format!("{wanted}=").into_bytes();
    extra.binary_environment.retain(|binary| !binary.starts_with(&prefix));
    let all = process.env_mut().get_or_insert_default();
    match all.iter_mut().find(|known| name_of(known) == wanted) {
        Some(known) => variable.clone_into(known),
        None => all.push(variable.to_owned()),
    }
}

fn name_of(variable: &str) -> &str {
    variable.split('=').next().unwrap_or_default()
}

fn add_groups(process: &mut Process, groups: &[u32]) -> Result<(), String> {
    let all = process.user_mut().additional_gids_mut().get_or_insert_default();
    for group in groups {
        let id = OwnerId::try_from(*group).map_err(|error| format!("additionalGids: {error}"))?;
        // The interface takes 0 for "not set".
        if id != OwnerId::ROOT && !all.contains(group) {
            all.push(*group);
        }
    }
    Ok(())
}

fn add_node(linux: &mut Linux, process: &Process, node: &Node, ids: Option<IdMaps>) -> Result<(), String> {
    let path = ContainerPath::new(&node.path).map_err(|error| error.to_string())?;
    if ids.is_some() && !path.as_str().starts_with("/dev/") {
        return Err("in a user namespace, only devices below /dev can be opened".to_owned());
    }
    let (kind, in_cgroup) = match node.kind.as_str() {
        "b" => (LinuxDeviceType::B, DeviceType::Block),
        "c" | "u" => (LinuxDeviceType::C, DeviceType::Char),
        "p" => return Err("a pipe is not a device: mount it instead".to_owned()),
        _ => return Err("its type is not known".to_owned()),
    };
    let numbers = node.major.zip(node.minor);
    let (major, minor) = numbers.ok_or("its major and minor numbers are not known")?;
    let user = process.user();
    let uid = owner(node.uid, user.uid(), ids.map(|ids| ids.users))?;
    let gid = owner(node.gid, user.gid(), ids.map(|ids| ids.groups))?;
    let mut device = LinuxDevice::default();
    device
        .set_path(path.as_str().into())
        .set_typ(kind)
        .set_major(major.into())
        .set_minor(minor.into())
        .set_file_mode(node.file_mode.map(|mode| mode & 0o7777))
        .set_uid(Some(uid))
        .set_gid(Some(gid));
    let all = linux.devices_mut().get_or_insert_default();
    all.retain(|known| known.path() != device.path());
    all.push(device);
    let letters = match node.permissions.as_str() {
        NO_ACCESS => return Ok(()),
        "" => "rwm",
        letters => letters,
    };
    let access = Access::parse(letters)
        .ok_or_else(|| format!("permissions {letters:?} are not made of r, w and m"))?;
    let rule = DeviceRule::allow(in_cgroup, Some(major), Some(minor), access);
    let resources = linux.resources_mut().get_or_insert_default();
    resources.devices_mut().get_or_insert_default().push(devices::rule(&rule));
    Ok(())
}

/// The owner of a node in the host's numbers. Without one it is the program's user, as for other runtimes; what is then
/// the host's root user's stays so, even in a user namespace.
fn owner(asked: Option<u32>, of_program: u32, range: Option<IdRange>) -> Result<u32, String> {
    let wanted = asked.or((of_program > 0).then_some(of_program));
    match (wanted, range) {
        (None, _) => Ok(0),
        (Some(id), None) => OwnerId::try_from(id).map(OwnerId::number).map_err(|error| error.to_string()),
        (Some(id), Some(range)) => {
            range.on_host(id).ok_or_else(|| format!("its owner {id} is not in the pod's user namespace"))
        }
    }
}

/// Adds a mount in place of one at the same path, and before those below it, so that none hides another.
fn add_mount(spec: &mut Spec, extra: &mut Extra, asked: &Mount, ids: Option<IdMaps>) -> Result<(), String> {
    let target = ContainerPath::new(&asked.container_path).map_err(|error| error.to_string())?;
    if target.depth() == 0 {
        return Err("nothing can be mounted over the container's root".to_owned());
    }
    let mount = mount_of(asked, &target)?;
    mounts::check_added(&mount, ids).map_err(|refusal| refusal.problem())?;
    extra.volumes.retain(|volume| volume.target != target);
    extra.images.retain(|image| image.target != target);
    let all = spec.mounts_mut().get_or_insert_default();
    let place = |mount: &oci::Mount| ContainerPath::new(&mount.destination().to_string_lossy());
    all.retain(|known| place(known).as_ref() != Ok(&target));
    let below = |known: &oci::Mount| place(known).is_ok_and(|known| known.is_below(&target));
    let at = all.iter().position(below).unwrap_or(all.len());
    all.insert(at, mount);
    Ok(())
}

fn mount_of(asked: &Mount, target: &ContainerPath) -> Result<oci::Mount, String> {
    let mut options = asked.options.clone();
    let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
    let kind = match asked.kind.as_str() {
        "" | "bind" | "none" => "bind",
        _ if is_bind => "bind",
        kind if FILESYSTEMS.contains(&kind) => kind,
        kind => return Err(format!("the type {kind:?} is neither bind nor {}", FILESYSTEMS.join(", "))),
    };
    if kind == "bind" {
        if !asked.host_path.starts_with('/') {
            return Err(format!("the host path {:?} does not begin with a slash", asked.host_path));
        }
        options.extend((!is_bind).then(|| "bind".to_owned()));
    }
    let mut mount = oci::Mount::default();
    mount
        .set_destination(target.as_str().into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(asked.host_path.as_str().into()))
        .set_options(Some(options));
    Ok(mount)
}

fn add_hook(spec: &mut Spec, asked: &Hook) -> Result<(), String> {
    let point = Point::of_name(&asked.hook_name).ok_or("a hook at an unknown point")?;
    let list = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let mut hook = oci::Hook::default();
    hook.set_path(asked.path.as_str().into())
        .set_args(list(&asked.args))
        .set_env(list(&asked.env))
        .set_timeout(asked.timeout);
    hooks::add(spec, point, hook);
    Ok(())
}

fn intel_rdt(asked: &Rdt) -> LinuxIntelRdt {
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(Some(asked.class.clone()).filter(|class| !class.is_empty()))
        .set_l3_cache_schema(asked.l3_cache_schema.clone())
        .set_mem_bw_schema(asked.mem_bw_schema.clone())
        .set_schemata(asked.schemata.clone())
        .set_enable_monitoring(asked.enable_monitoring.then_some(true));
    rdt
}
