//! A container's devices, as nodes and as rules of its cgroup.
//!
//! The nodes and the rules come from one list, so that no container has a node that it may not open because two lists
//! differ. Whether a device exists on the host was found out before; here it is a fact.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use wharf_cgroup::{Access, DeviceRule, DeviceType, default_devices};
use wharf_cri_api::v1::Int64Value;
use wharf_isolation::DeviceNode;
use wharf_types::{ContainerPath, IdMaps, IdRange, OwnerId};

use crate::plan::container_path;
use crate::request::{HostFacts, Request, Switch};
use crate::{Refusal, user_namespace};

/// The kernel's type bits of a character device.
const S_IFCHR: u32 = 0o020_000;
/// The kernel's type bits of a block device.
const S_IFBLK: u32 = 0o060_000;

/// The six nodes that every program may rely on. The spec does not list them, because every runtime must supply them.
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The nodes in addition to the usual ones: the machine's for a privileged container, and the requested ones.
pub(crate) fn describe(request: &Request<'_>, facts: &HostFacts) -> Result<Vec<LinuxDevice>, Refusal> {
    let mut devices: Vec<_> = facts.host_devices.iter().map(device).collect();
    let ids = user_namespace::of(request.pods_namespaces())?;
    for nodes in asked(request, facts) {
        let (_permissions, nodes) = nodes?;
        if let Some(node) =
            nodes.iter().find(|node| ids.is_some() && !node.path.as_str().starts_with("/dev/"))
        {
            let problem =
                format!("{}: in a user namespace, only devices below /dev can be opened", node.path);
            return Err(Refusal::field("devices", problem));
        }
        devices.extend(nodes.iter().map(|node| device(&given(node, request, ids))));
    }
    Ok(devices)
}

/// The node with the user and the group that the request names as its owner, if the node's administrator wants that.
/// Root is no owner to give it to: the node on the host may be a group's, whom it would be taken from.
fn given(node: &DeviceNode, request: &Request<'_>, ids: Option<IdMaps>) -> DeviceNode {
    let security = request.security();
    let named = |id: Option<&Int64Value>, range: Option<IdRange>| {
        let id = id.and_then(|id| u32::try_from(id.value).ok()).filter(|id| *id != 0)?;
        range.map_or(Some(id), |range| range.on_host(id)).and_then(OwnerId::new)
    };
    let mut given = node.clone();
    if request.defaults.users_devices == Switch::On {
        given.uid = named(security.run_as_user.as_ref(), ids.map(|ids| ids.users)).unwrap_or(node.uid);
        given.gid = named(security.run_as_group.as_ref(), ids.map(|ids| ids.groups)).unwrap_or(node.gid);
    }
    given
}

/// The permissions of each device, and the nodes for it.
fn asked<'a>(
    request: &Request<'a>,
    facts: &'a HostFacts,
) -> impl Iterator<Item = Result<(&'a str, &'a [DeviceNode]), Refusal>> {
    let nodes_own = request.defaults.devices.len();
    request.devices().zip(&facts.devices).enumerate().map(move |(at, (device, nodes))| match nodes {
        Ok(nodes) => Ok((device.permissions.as_str(), nodes.as_slice())),
        Err(unread) => {
            let unread = unread.clone().of(&device.host_path);
            Err(Refusal::unread("devices", if at < nodes_own { unread.of_the_nodes() } else { unread }))
        }
    })
}

fn device(node: &DeviceNode) -> LinuxDevice {
    let kind = if node.kind == S_IFBLK { LinuxDeviceType::B } else { LinuxDeviceType::C };
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.as_str().into())
        .set_typ(kind)
        .set_major(node.major.into())
        .set_minor(node.minor.into())
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid.number()))
        .set_gid(Some(node.gid.number()));
    device
}

/// The devices that the container's cgroup allows.
pub(crate) fn rules(request: &Request<'_>, facts: &HostFacts) -> Result<Vec<LinuxDeviceCgroup>, Refusal> {
    if request.may_use_every_device() {
        return Ok(vec![rule(&DeviceRule::allow(DeviceType::All, None, None, Access::ALL))]);
    }
    let mut rules: Vec<_> = default_devices().iter().map(rule).collect();
    for device in asked(request, facts) {
        let (permissions, nodes) = device?;
        let access = Access::parse(permissions).ok_or_else(|| {
            Refusal::field("devices", format!("permissions {permissions:?} are not made of r, w and m"))
        })?;
        for node in nodes {
            let kind = if node.kind == S_IFBLK { DeviceType::Block } else { DeviceType::Char };
            rules.push(rule(&DeviceRule::allow(kind, Some(node.major), Some(node.minor), access)));
        }
    }
    Ok(rules)
}

pub(crate) fn rule(rule: &DeviceRule) -> LinuxDeviceCgroup {
    let kind = match rule.kind {
        DeviceType::All => LinuxDeviceType::A,
        DeviceType::Char => LinuxDeviceType::C,
        DeviceType::Block => LinuxDeviceType::B,
    };
    let mut spec = LinuxDeviceCgroup::default();
    spec.set_allow(rule.allow)
        .set_typ(Some(kind))
        .set_major(rule.major.map(i64::from))
        .set_minor(rule.minor.map(i64::from))
        .set_access(Some(rule.access.letters()));
    spec
}

/// The nodes of the plan, the usual ones first: of two nodes with one path, the later one counts. In a user namespace
/// the usual ones are its root user's. The others keep the owners that they have on the host, and with them the
/// protection.
pub(crate) fn plan(devices: &[LinuxDevice], ids: Option<IdMaps>) -> Result<Vec<DeviceNode>, Refusal> {
    let uid = owner(ids.map(|ids| ids.users.first()))?;
    let gid = owner(ids.map(|ids| ids.groups.first()))?;
    let mut nodes = Vec::with_capacity(USUAL.len() + devices.len());
    for (path, major, minor) in USUAL {
        let path = ContainerPath::new(path).map_err(|error| Refusal::spec("linux.devices", error))?;
        nodes.push(DeviceNode { path, kind: S_IFCHR, major, minor, mode: 0o666, uid, gid });
    }
    for device in devices {
        nodes.push(node(device)?);
    }
    Ok(nodes)
}

fn node(device: &LinuxDevice) -> Result<DeviceNode, Refusal> {
    const FIELD: &str = "linux.devices";
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => S_IFCHR,
        LinuxDeviceType::B => S_IFBLK,
        LinuxDeviceType::A | LinuxDeviceType::P => {
            return Err(Refusal::spec(FIELD, "a node is a character or a block device"));
        }
    };
    Ok(DeviceNode {
        path: container_path("devices", device.path())?,
        kind,
        major: number(FIELD, device.major())?,
        minor: number(FIELD, device.minor())?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: owner(device.uid())?,
        gid: owner(device.gid())?,
    })
}

fn owner(id: Option<u32>) -> Result<OwnerId, Refusal> {
    OwnerId::try_from(id.unwrap_or_default()).map_err(|error| Refusal::spec("linux.devices", error))
}

/// The rules for the cgroup.
pub(crate) fn limits(rules: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, Refusal> {
    rules.iter().map(limit).collect()
}

fn limit(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, Refusal> {
    const FIELD: &str = "linux.resources.devices";
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => DeviceType::All,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceType::Char,
        LinuxDeviceType::B => DeviceType::Block,
        LinuxDeviceType::P => return Err(Refusal::spec(FIELD, "a pipe is not a device")),
    };
    let access = match rule.access().as_deref() {
        None => Access::ALL,
        Some(letters) => Access::parse(letters)
            .ok_or_else(|| Refusal::spec(FIELD, format!("access {letters:?} is not made of r, w and m")))?,
    };
    let numbers = |number: Option<i64>| {
        // In the spec, -1 also means every number.
        number.filter(|&number| number != -1).map(|value| self::number(FIELD, value)).transpose()
    };
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: numbers(rule.major())?,
        minor: numbers(rule.minor())?,
        access,
    })
}

fn number(field: &'static str, value: i64) -> Result<u32, Refusal> {
    u32::try_from(value).map_err(|_range| Refusal::spec(field, format!("{value} is not a device number")))
}
