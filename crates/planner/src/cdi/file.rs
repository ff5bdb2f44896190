//! A file of the Container Device Interface: what is in it, and whether all of it makes sense. A file with one fault is
//! refused as a whole, as by other runtimes: nobody should get half of a device.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::number::{bool_of, or_default, whole, wholes};
use super::{Addition, DeviceName, check_device, check_kind_part};
use crate::hooks::Point;

/// A version of the interface, and whether a file has something that it added.
type Version = (&'static str, fn(&File) -> bool);

/// The versions, the newest first.
const VERSIONS: [Version; 8] = [
    ("1.1.0", |file| file.edits().any(Edits::needs_1_1)),
    ("1.0.0", |_file| false),
    ("0.8.0", |_file| false),
    ("0.7.0", |file| {
        file.edits().any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty())
    }),
    ("0.6.0", File::has_annotations_or_dots),
    ("0.5.0", |file| file.has_digits_first() || file.edits().any(Edits::has_host_paths)),
    ("0.4.0", |file| file.edits().any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty()))),
    ("0.3.0", |_file| true),
];

/// The most devices in one file.
const DEVICES_MAX: usize = 4096;

/// A file of one vendor about devices of one class.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct File {
    cdi_version: String,
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    /// What every container with one of the devices needs.
    #[serde(default, deserialize_with = "or_default")]
    container_edits: Edits,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Device {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    container_edits: Edits,
}

/// What a container needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Edits {
    /// `NAME=value` each.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(default, deserialize_with = "or_default")]
    pub device_nodes: Vec<Node>,
    /// Network links of the host.
    #[serde(default, deserialize_with = "or_default")]
    pub net_devices: Vec<NetDevice>,
    /// Programs of the host.
    #[serde(default, deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    /// Mounts.
    #[serde(default, deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    /// A class of the cache and of the memory's bandwidth.
    #[serde(default)]
    pub intel_rdt: Option<Rdt>,
    /// More groups of the container's program.
    #[serde(default, deserialize_with = "wholes")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Node {
    /// Its path in the container.
    pub path: String,
    /// Its path on the host, if that is another one.
    #[serde(default)]
    pub host_path: Option<String>,
    /// `b`, `c`, `u` or `p`; if empty, as on the host.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Major number; if it is missing, as on the host.
    #[serde(default, deserialize_with = "whole")]
    pub major: Option<u32>,
    /// Minor number.
    #[serde(default, deserialize_with = "whole")]
    pub minor: Option<u32>,
    /// Permission bits; if they are missing, as on the host.
    #[serde(default, deserialize_with = "whole")]
    pub file_mode: Option<u32>,
    /// What the container's cgroup allows: letters of `rwm`; if empty, all of them, and `none` for nothing.
    #[serde(default, deserialize_with = "or_default")]
    pub permissions: String,
    /// Owner, in the container's numbers.
    #[serde(default, deserialize_with = "whole")]
    pub uid: Option<u32>,
    /// Group, in the container's numbers.
    #[serde(default, deserialize_with = "whole")]
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    /// What is mounted.
    pub host_path: String,
    /// Where in the container.
    pub container_path: String,
    /// Options of mount(8).
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    /// The type of a new file system; a bind if empty.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
}

/// A program that is executed at some point of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// The point: `createContainer`.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its arguments, the first of which is its name.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// `NAME=value` each.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// How long it may run, in seconds.
    #[serde(default, deserialize_with = "whole")]
    pub timeout: Option<i64>,
}

/// A class of Intel's Resource Director Technology.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rdt {
    /// The class.
    #[serde(default, rename = "closID", deserialize_with = "or_default")]
    pub class: String,
    /// The schema of the third-level cache.
    #[serde(default)]
    pub l3_cache_schema: Option<String>,
    /// The schema of the memory's bandwidth.
    #[serde(default)]
    pub mem_bw_schema: Option<String>,
    /// Further schemata.
    #[serde(default)]
    pub schemata: Option<Vec<String>>,
    /// Whether the container is to be monitored.
    #[serde(default, deserialize_with = "bool_of")]
    pub enable_monitoring: bool,
}

/// A network link of the host that is moved into the container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

impl File {
    /// Parses a file's content, which is JSON, or YAML whose scalars are all text.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse<'de, D: serde::Deserializer<'de>>(content: D) -> Result<Self, String> {
        let file = Self::deserialize(content).map_err(|error| error.to_string())?;
        file.check()?;
        Ok(file)
    }

    /// The devices in the file.
    pub fn devices(&self) -> impl Iterator<Item = DeviceName> {
        self.devices.iter().map(|device| DeviceName::of(&self.kind, &device.name))
    }

    /// What the file says of a device; `None` if it is not in the file.
    #[must_use]
    pub fn addition(&self, name: &DeviceName) -> Option<Addition> {
        let device = self.devices.iter().find(|device| DeviceName::of(&self.kind, &device.name) == *name)?;
        Some(Addition { device: name.clone(), edits: device.container_edits.clone() })
    }

    /// What every container needs that has one of the devices, here this one.
    #[must_use]
    pub fn common(&self, name: &DeviceName) -> Addition {
        Addition { device: name.clone(), edits: self.container_edits.clone() }
    }

    fn edits(&self) -> impl Iterator<Item = &Edits> {
        std::iter::once(&self.container_edits)
            .chain(self.devices.iter().map(|device| &device.container_edits))
    }

    fn has_annotations_or_dots(&self) -> bool {
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        !self.annotations.is_empty()
            || self.devices.iter().any(|device| !device.annotations.is_empty())
            || class.contains('.')
    }

    fn has_digits_first(&self) -> bool {
        self.devices.iter().any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()))
    }

    fn check(&self) -> Result<(), String> {
        self.check_version()?;
        let (vendor, class) = self
            .kind
            .split_once('/')
            .ok_or_else(|| format!("kind {:?} is not vendor.com/class", self.kind))?;
        check_kind_part("vendor", vendor)?;
        check_kind_part("class", class)?;
        self.container_edits.check().map_err(|problem| format!("containerEdits: {problem}"))?;
        if self.devices.is_empty() || self.devices.len() > DEVICES_MAX {
            return Err(format!("it has {} devices; 1 to {DEVICES_MAX} are allowed", self.devices.len()));
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            check_device(&device.name)?;
            if !names.insert(&device.name) {
                return Err(format!("the device {:?} is listed twice", device.name));
            }
            let edits = &device.container_edits;
            if *edits == Edits::default() {
                return Err(format!("the device {:?} has no containerEdits", device.name));
            }
            edits.check().map_err(|problem| format!("the device {:?}: {problem}", device.name))?;
        }
        Ok(())
    }

    /// A file that uses what its version does not have was written for something that this is not.
    fn check_version(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let own = VERSIONS.iter().position(|(name, _)| *name == version);
        let Some(own) = own else {
            let [newest, .., oldest] = VERSIONS.map(|(name, _)| name);
            return Err(format!("cdiVersion {version:?} is not supported: {oldest} to {newest} are"));
        };
        match VERSIONS[..own].iter().find(|(_, needed)| needed(self)) {
            Some((needed, _)) => {
                Err(format!("cdiVersion {version} is too old for its content, which needs {needed}"))
            }
            None => Ok(()),
        }
    }
}

impl Edits {
    fn needs_1_1(&self) -> bool {
        let newer = |rdt: &Rdt| rdt.schemata.is_some() || rdt.enable_monitoring;
        !self.net_devices.is_empty() || self.intel_rdt.as_ref().is_some_and(newer)
    }

    fn has_host_paths(&self) -> bool {
        self.device_nodes.iter().any(|node| node.host_path.is_some())
    }

    fn check(&self) -> Result<(), String> {
        check_environment(&self.env)?;
        self.device_nodes.iter().try_for_each(Node::check)?;
        self.hooks.iter().try_for_each(Hook::check)?;
        match self.mounts.iter().find(|mount| mount.host_path.is_empty() || mount.container_path.is_empty()) {
            Some(_) => Err("a mount needs a hostPath and a containerPath".to_owned()),
            None => Ok(()),
        }
    }
}

impl Node {
    fn check(&self) -> Result<(), String> {
        let fail = |problem: &str| Err(format!("the node {:?} {problem}", self.path));
        if self.path.is_empty() {
            return fail("has no path");
        }
        if !["", "b", "c", "u", "p"].contains(&&*self.kind) {
            return fail("has a type other than b, c, u and p");
        }
        let is_known = self.permissions == NO_ACCESS || self.permissions.chars().all(|c| "rwm".contains(c));
        if is_known { Ok(()) } else { fail("has permissions that are not made of r, w and m") }
    }
}

/// The permissions of a node that the container's cgroup does not allow.
pub(super) const NO_ACCESS: &str = "none";

impl Hook {
    fn check(&self) -> Result<(), String> {
        if Point::of_name(&self.hook_name).is_none() {
            return Err(format!("the hook {:?} is not one of {}", self.hook_name, Point::names()));
        }
        if self.path.is_empty() {
            return Err(format!("a hook {} has no path", self.hook_name));
        }
        check_environment(&self.env).map_err(|problem| format!("a hook {}: {problem}", self.hook_name))
    }
}

fn check_environment(variables: &[String]) -> Result<(), String> {
    let is_wrong = |text: &&String| text.contains('\0') || text.find('=').is_none_or(|at| at == 0);
    match variables.iter().find(is_wrong) {
        Some(wrong) => Err(format!("the variable {wrong:?} is not NAME=value")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
