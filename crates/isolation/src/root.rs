//! The container's root file system, and how paths in it are reached: by descriptor, below the root's own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag};
use wharf_sys::fs::{Resolve, open_below, split_last};
use wharf_sys::mount::{self, Attributes, Depth};
use wharf_sys::overlay::Overlay;
use wharf_types::ContainerPath;

use crate::error::{Error, Stage};
use crate::plan::Rootfs;

/// What a path must be when it has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

/// The mounted root file system.
#[derive(Debug)]
pub(crate) struct Root {
    mount: OwnedFd,
}

impl Root {
    /// Mounts the overlay over the directory that holds its upper one, in this process's mount namespace.
    pub(crate) fn mount(rootfs: &Rootfs) -> Result<Self, Error> {
        const STAGE: &str = "the overlay of the root file system";
        let lowers: Vec<&Path> = rootfs.lowers.iter().map(|path| path.as_path()).collect();
        let overlay = Overlay { lowers: &lowers, upper: rootfs.upper.as_path(), work: rootfs.work.as_path() };
        let place = rootfs.upper.as_path().parent().unwrap_or(Path::new("/"));
        overlay.mount(place).stage(STAGE).map(|mount| Self { mount })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Opens a path without following it out of the root.
    pub(crate) fn open(&self, path: &ContainerPath, flags: OFlag) -> wharf_sys::Result<OwnedFd> {
        open_below(self.fd(), path.relative(), flags, Resolve::InRoot)
    }

    /// Opens a path (`O_PATH`), making it and its parents where they are missing.
    pub(crate) fn ensure(&self, path: &ContainerPath, make: Make) -> wharf_sys::Result<OwnedFd> {
        self.ensure_relative(path.relative(), make)
    }

    fn ensure_relative(&self, path: &str, make: Make) -> wharf_sys::Result<OwnedFd> {
        match open_below(self.fd(), path, OFlag::O_PATH, Resolve::InRoot) {
            Err(error) if error.errno == Errno::ENOENT && !path.is_empty() => {}
            other => return other,
        }
        let (parent, name) = split_last(path);
        let parent = self.ensure_relative(parent, Make::Directory)?;
        let named = |call, errno| wharf_sys::Error::new(call, path, errno);
        match make {
            Make::Directory => {
                match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(named("mkdirat", errno)),
                }
            }
            Make::File => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                nix::fcntl::openat(&parent, name, flags, Mode::from_bits_truncate(0o644))
                    .map_err(|errno| named("openat", errno))?;
            }
        }
        open_below(parent.as_fd(), name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Resolve::BeneathNoLinks)
    }

    /// Makes the root itself read-only; mounts in it stay as they are.
    pub(crate) fn forbid_writing(&self) -> Result<(), Error> {
        mount::forbid(self.fd(), Attributes::READ_ONLY, Depth::One)
            .stage("making the root file system read-only")
    }

    /// Makes this root the root of the mount namespace, and drops the host's.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        nix::unistd::fchdir(self.fd()).stage("entering the root file system")?;
        mount::pivot_here().stage("entering the root file system")
    }
}

/// Opens a directory of the container below the descriptor of its root: no link, not even one of procfs, leads out.
pub(crate) fn open_cwd(root: BorrowedFd<'_>, path: &ContainerPath) -> Result<OwnedFd, Error> {
    open_below(root, path.relative(), OFlag::O_PATH | OFlag::O_DIRECTORY, Resolve::InRoot)
        .map_err(|source| cwd_error(path, source))
}

/// Makes it the working directory of this process, whose root is the container's by now; one that cannot be reached from
/// there is none of the container's, however it was opened.
pub(crate) fn enter_cwd(directory: BorrowedFd<'_>, path: &ContainerPath) -> Result<(), Error> {
    let named = |call, errno| cwd_error(path, wharf_sys::Error::new(call, path.as_str(), errno));
    nix::unistd::fchdir(directory).map_err(|errno| named("fchdir", errno))?;
    // Where the kernel writes "(unreachable)" before the name, some C libraries say ENOENT.
    let here = nix::unistd::getcwd().map_err(|errno| named("getcwd", errno))?;
    if here.is_absolute() { Ok(()) } else { Err(named("getcwd", Errno::EXDEV)) }
}

pub(crate) fn cwd_error(path: &ContainerPath, source: wharf_sys::Error) -> Error {
    Error::ContainerPath { what: "working directory", path: path.to_string(), source }
}

/// Whether an `O_PATH` descriptor is of a directory.
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> wharf_sys::Result<bool> {
    let stat = nix::sys::stat::fstatat(fd, "", AtFlags::AT_EMPTY_PATH)
        .map_err(|errno| wharf_sys::Error::new("fstatat", "", errno))?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR)
}
