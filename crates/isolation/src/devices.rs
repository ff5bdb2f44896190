//! Device nodes and the usual links in `/dev`, made through descriptors of the container's own file system.
//!
//! They are made while this process is the host's root user, for a container with a user namespace, too. Which of them
//! may be opened is not decided here: that is the cgroup's.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use nix::unistd::{Gid, Uid};
use wharf_sys::fs::{Resolve, open_below, split_last};
use wharf_types::ContainerPath;

use crate::error::{Error, Stage};
use crate::plan::{DeviceNode, Plan, Source};
use crate::root::{Make, Root};

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Makes every node, then the links; what exists stays. A `/dev` that is not the container's own, but a bound directory
/// of the host or of other containers, gets none.
pub(crate) fn make(root: &Root, plan: &Plan) -> Result<(), Error> {
    let own_dev = has_own_dev(plan);
    // Of two nodes with one path, the later one counts: it is the one in the request.
    let nodes: BTreeMap<&str, &DeviceNode> =
        plan.devices.iter().map(|node| (node.path.as_str(), node)).collect();
    // What is made belongs to whom this process makes files for.
    let users = plan.namespaces.user.as_ref();
    let owner = users.map_or((0, 0), |users| (users.ids.users.first(), users.ids.groups.first()));
    nodes.into_values().filter(|node| own_dev || !node.path.as_str().starts_with("/dev/")).try_for_each(
        |node| {
            make_node(root, node, owner).map_err(|source| Error::ContainerPath {
                what: "device",
                path: node.path.to_string(),
                source,
            })
        },
    )?;
    if own_dev { make_links(root).stage("making the links in /dev") } else { Ok(()) }
}

/// Whether the container's `/dev` is its own file system.
pub(crate) fn has_own_dev(plan: &Plan) -> bool {
    let dev = plan.mounts.iter().rfind(|mount| mount.target.as_str() == "/dev");
    dev.is_some_and(|dev| matches!(dev.source, Source::Filesystem { .. }))
}

fn make_node(root: &Root, node: &DeviceNode, owner: (u32, u32)) -> wharf_sys::Result<()> {
    let (parent, name) = split_last(node.path.as_str());
    let parent = if parent.is_empty() { "/" } else { parent };
    let parent = ContainerPath::new(parent)
        .map_err(|_bad| wharf_sys::Error::new("mknodat", node.path.as_str(), Errno::EINVAL))?;
    let parent = root.ensure(&parent, Make::Directory)?;
    root.may_make_in(parent.as_fd())?;
    let named = |call, errno| wharf_sys::Error::new(call, node.path.as_str(), errno);
    let mode = Mode::from_bits_truncate(node.mode);
    let device = makedev(node.major.into(), node.minor.into());
    match mknodat(&parent, name, SFlag::from_bits_truncate(node.kind), mode, device) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return Ok(()),
        Err(errno) => return Err(named("mknodat", errno)),
    }
    let (uid, gid) = (node.uid.number(), node.gid.number());
    if (uid, gid) == owner {
        return Ok(());
    }
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    nix::unistd::fchownat(&parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno| named("fchownat", errno))
}

fn make_links(root: &Root) -> wharf_sys::Result<()> {
    let dev = match open_below(root.fd(), "dev", OFlag::O_PATH | OFlag::O_DIRECTORY, Resolve::InRoot) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        other => other?,
    };
    for (name, target) in LINKS {
        match nix::unistd::symlinkat(target, dev.as_fd(), name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(wharf_sys::Error::new("symlinkat", name, errno)),
        }
    }
    Ok(())
}
