//! Images as volumes. What is in them is up to their authors, so it is reached through descriptors below their roots.
//!
//! Nothing here writes to an image, and the container cannot either: its layers are merged without an upper directory,
//! or bound where the kernel locks the flag that makes the bind read-only.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{SFlag, fstatat};
use wharf_sys::error::Named as _;
use wharf_sys::fs::{Resolve, open_below};
use wharf_sys::mount::{self, Depth};
use wharf_sys::{Error, Result, overlay};
use wharf_types::{ContainerPath, HostPath, SelinuxLabel};

use crate::pod::Users;
use crate::root::kind;

/// The merged layers as a detached mount. In a user namespace their ids are those of the container, as in its own
/// image.
pub(crate) fn merged(
    layers: &[HostPath],
    users: Option<Users<'_>>,
    label: Option<&SelinuxLabel>,
) -> Result<OwnedFd> {
    let namespace = users.map(|users| users.namespace);
    let tree = match layers {
        // A plan has a single one only where the container cannot take the flag away that makes a bind read-only, and
        // where it has no label, which only a mount of its own can have.
        [only] => {
            let tree = mount::copy_tree(only.as_path(), Depth::One)?;
            namespace.map_or(Ok(()), |namespace| mount::map_ids(tree.as_fd(), namespace))?;
            tree
        }
        _ => {
            let lowers: Vec<&Path> = layers.iter().map(|layer| layer.as_path()).collect();
            let place = lowers.first().copied().unwrap_or(Path::new("/"));
            overlay::read_only(&lowers, place, namespace, label.map(SelinuxLabel::as_str))?
        }
    };
    users.map_or(Ok(()), |users| users.forbid_nodes(tree.as_fd(), Depth::One)).map(|()| tree)
}

/// Copies a file or directory out of a detached image. Links are resolved as if the image's root were `/`. Nothing but
/// files and directories is mounted: a device, for one, would be open to whoever may use devices of its number.
pub(crate) fn part(image: BorrowedFd<'_>, path: &ContainerPath) -> Result<OwnedFd> {
    mount::while_attached(image, || {
        let opened = open_below(image, path.relative(), OFlag::O_PATH, Resolve::InRoot)?;
        let stat = fstatat(&opened, "", AtFlags::AT_EMPTY_PATH).named("fstatat", || path.to_string())?;
        match kind(&stat) {
            SFlag::S_IFDIR | SFlag::S_IFREG => mount::copy_tree_fd(opened.as_fd(), Depth::One),
            _ => Err(Error::new("open_tree", "neither a file nor a directory", Errno::EINVAL)),
        }
    })
}
