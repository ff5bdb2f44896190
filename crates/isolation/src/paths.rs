//! Masked and read-only paths. What is covered is the inode a path resolves to inside the root, and what covers it is
//! known to be empty.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{SFlag, fstatat, makedev};
use wharf_sys::mount::{self, Attributes, Depth};
use wharf_types::ContainerPath;

use crate::error::Error;
use crate::root::{Root, is_directory};

/// What covers masked paths: the host's `/dev/null`, and one empty read-only directory for all.
#[derive(Debug)]
pub(crate) struct Covers {
    null: OwnedFd,
    empty: Option<OwnedFd>,
}

impl Covers {
    /// Opens the host's `/dev/null` and checks that it is the null device. Must run before the host's root is dropped.
    pub(crate) fn open() -> Result<Self, Error> {
        let fail = |source| Error::HostPath { path: "/dev/null".into(), source };
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_PATH | OFlag::O_NOFOLLOW).map_err(fail)?;
        let stat = fstatat(&null, "", AtFlags::AT_EMPTY_PATH)
            .map_err(|errno| fail(wharf_sys::Error::new("fstatat", "/dev/null", errno)))?;
        let character = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
        if !character || stat.st_rdev != makedev(1, 3) {
            return Err(fail(wharf_sys::Error::new("open", "/dev/null is not device 1:3", Errno::ENODEV)));
        }
        Ok(Self { null, empty: None })
    }

    /// Covers each path that exists.
    pub(crate) fn mask(&mut self, root: &Root, paths: &[ContainerPath]) -> Result<(), Error> {
        paths.iter().try_for_each(|path| self.mask_one(root, path).map_err(fail("masked path", path)))
    }

    fn mask_one(&mut self, root: &Root, path: &ContainerPath) -> wharf_sys::Result<()> {
        let Some(target) = existing(root, path)? else { return Ok(()) };
        let cover = if is_directory(target.as_fd())? {
            self.empty_directory()?
        } else {
            mount::copy_tree_fd(self.null.as_fd(), Depth::One)?
        };
        mount::attach(cover.as_fd(), target.as_fd())
    }

    /// The first one is attached as it is; later ones are copies of it, since a super block a path is costly.
    fn empty_directory(&mut self) -> wharf_sys::Result<OwnedFd> {
        if let Some(attached) = &self.empty {
            return mount::copy_tree_fd(attached.as_fd(), Depth::One);
        }
        let attributes =
            Attributes::READ_ONLY.and(Attributes::NO_SUID).and(Attributes::NO_DEV).and(Attributes::NO_EXEC);
        let tree = mount::new_filesystem(
            "tmpfs",
            &[("size", "0"), ("nr_inodes", "1"), ("mode", "755")],
            attributes,
        )?;
        let handle = tree.try_clone().map_err(|_full| wharf_sys::Error::new("dup", "", Errno::EMFILE))?;
        self.empty = Some(handle);
        Ok(tree)
    }
}

/// Makes each path that exists read-only, by a copy of its own mount.
pub(crate) fn make_read_only(root: &Root, paths: &[ContainerPath]) -> Result<(), Error> {
    paths.iter().try_for_each(|path| read_only_one(root, path).map_err(fail("read-only path", path)))
}

fn read_only_one(root: &Root, path: &ContainerPath) -> wharf_sys::Result<()> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let copy = mount::copy_tree_fd(target.as_fd(), Depth::Recursive)?;
    mount::forbid(copy.as_fd(), Attributes::READ_ONLY, Depth::Recursive)?;
    mount::attach(copy.as_fd(), target.as_fd())
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
