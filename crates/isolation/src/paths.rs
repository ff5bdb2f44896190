//! Masked and read-only paths. What is covered is the inode to which a path resolves inside the root, and what covers
//! it is known to be empty.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_sys::error::Named as _;
use wharf_sys::mount::{self, Attributes, Depth};
use wharf_types::{ContainerPath, SelinuxLabel};

use crate::error::Error;
use crate::root::{Root, is_directory};
use crate::{selinux, streams};

/// What covers masked paths: the container's null device and an empty directory, as read-only mounts. Each is made for
/// the first path and copied for later ones.
#[derive(Debug)]
pub(crate) struct Covers<'a> {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
    label: Option<&'a SelinuxLabel>,
}

impl<'a> Covers<'a> {
    /// Covers with the label of the container's other file systems.
    pub(crate) fn labelled(label: Option<&'a SelinuxLabel>) -> Self {
        Self { null: None, empty: None, label }
    }

    /// Covers each existing path.
    pub(crate) fn mask(&mut self, root: &Root, paths: &[ContainerPath]) -> Result<(), Error> {
        paths.iter().try_for_each(|path| self.mask_one(root, path).map_err(fail("masked path", path)))
    }

    fn mask_one(&mut self, root: &Root, path: &ContainerPath) -> wharf_sys::Result<()> {
        let Some(target) = existing(root, path)? else { return Ok(()) };
        let cover = if is_directory(target.as_fd())? {
            copy_or_make(&mut self.empty, || empty_directory(self.label))?
        } else {
            copy_or_make(&mut self.null, || null_device(root))?
        };
        root.attach(cover.as_fd(), target.as_fd())
    }
}

fn copy_or_make(
    attached: &mut Option<OwnedFd>,
    make: impl FnOnce() -> wharf_sys::Result<OwnedFd>,
) -> wharf_sys::Result<OwnedFd> {
    if let Some(attached) = attached {
        return mount::copy_tree_fd(attached.as_fd(), Depth::One);
    }
    let made = make()?;
    let handle = made.try_clone().named("dup", || "what covers a masked path".into())?;
    *attached = Some(handle);
    Ok(made)
}

/// The null device: it can be written through a read-only mount, but its mode and owner are fixed.
fn null_device(root: &Root) -> wharf_sys::Result<OwnedFd> {
    let null = streams::open_null(root.fd(), OFlag::O_PATH)?;
    let copy = mount::copy_tree_fd(null.as_fd(), Depth::One)?;
    let attributes = Attributes::READ_ONLY.and(Attributes::NO_SUID).and(Attributes::NO_EXEC);
    mount::forbid(copy.as_fd(), attributes, Depth::One)?;
    Ok(copy)
}

/// An empty directory that cannot be written, as a detached mount.
pub(crate) fn empty_directory(label: Option<&SelinuxLabel>) -> wharf_sys::Result<OwnedFd> {
    let attributes =
        Attributes::READ_ONLY.and(Attributes::NO_SUID).and(Attributes::NO_DEV).and(Attributes::NO_EXEC);
    let options = [("size", "0"), ("nr_inodes", "1"), ("mode", "755")].into_iter();
    let label = selinux::option("tmpfs", label);
    mount::new_filesystem("tmpfs", &options.chain(label).collect::<Vec<_>>(), attributes)
}

/// Makes each existing path read-only, with a copy of its own mount.
pub(crate) fn make_read_only(root: &Root, paths: &[ContainerPath]) -> Result<(), Error> {
    paths.iter().try_for_each(|path| read_only_one(root, path).map_err(fail("read-only path", path)))
}

fn read_only_one(root: &Root, path: &ContainerPath) -> wharf_sys::Result<()> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let copy = mount::copy_tree_fd(target.as_fd(), Depth::Recursive)?;
    mount::forbid(copy.as_fd(), Attributes::READ_ONLY, Depth::Recursive)?;
    root.attach(copy.as_fd(), target.as_fd())
}

fn existing(root: &Root, path: &ContainerPath) -> wharf_sys::Result<Option<OwnedFd>> {
    match root.open(path, OFlag::O_PATH) {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        other => other.map(Some),
    }
}

fn fail(what: &'static str, path: &ContainerPath) -> impl FnOnce(wharf_sys::Error) -> Error {
    let path = path.to_string();
    move |source| Error::ContainerPath { what, path, source }
}
