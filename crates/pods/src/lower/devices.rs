//! Which devices a container has, as nodes and as rules of its cgroup.

use wharf_cgroup::{Access, DeviceRule, DeviceType, default_devices};
use wharf_isolation::DeviceNode;
use wharf_planner::defaults::{self, Privilege};
use wharf_types::ContainerPath;

use super::Context;
use crate::error::{Error, Stage};

pub(super) fn nodes(context: &Context<'_>, privilege: Privilege) -> Result<Vec<DeviceNode>, Error> {
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
pub(crate) fn rules(context: &Context<'_>) -> Result<Vec<DeviceRule>, Error> {
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
