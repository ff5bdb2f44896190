//! The container's root file system. Paths in it are reached through descriptors below its root.
//!
//! What is in it belongs to the image, so every path may lead through a link: the kernel resolves it as if the root
//! were `/` (openat2), and what is missing is made where the link leads inside. No path of the container is ever joined
//! to one of the host.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use wharf_sys::error::Named as _;
use wharf_sys::fs::{Resolve, open_below, split_last};
use wharf_sys::mount::{self, Attributes, Depth, Propagation};
use wharf_sys::overlay::Overlay;
use wharf_types::{ContainerPath, IdMaps, SelinuxLabel};

use crate::birth::Inside;
use crate::error::{Error, Stage};
use crate::plan::Plan;
use crate::pod::Users;

/// What a missing path is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

impl Make {
    /// Makes it under a new name in a directory, and returns it opened (`O_PATH`).
    fn in_directory(self, parent: BorrowedFd<'_>, name: &OsStr) -> wharf_sys::Result<OwnedFd> {
        let named = |call, errno| wharf_sys::Error::new(call, name.to_string_lossy(), errno);
        match self {
            Self::Directory => nix::sys::stat::mkdirat(parent, name, Mode::from_bits_truncate(0o755))
                .map_err(|errno| named("mkdirat", errno))?,
            Self::File => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                nix::fcntl::openat(parent, name, flags, Mode::from_bits_truncate(0o644))
                    .map_err(|errno| named("openat", errno))?;
            }
        }
        open_made(parent, name)
    }
}

fn open_made(parent: BorrowedFd<'_>, name: &OsStr) -> wharf_sys::Result<OwnedFd> {
    open_below(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Resolve::BeneathNoLinks)
}

/// By which a file is known, whatever path leads to it.
type Place = (u64, u64);

fn place_of(fd: BorrowedFd<'_>) -> wharf_sys::Result<Place> {
    let stat = fstatat(fd, "", AtFlags::AT_EMPTY_PATH).named("fstatat", || "a mount point".into())?;
    Ok((stat.st_dev, stat.st_ino))
}

/// How many dangling links in a row are followed.
const LINKS_LIMIT: usize = 40;

/// The mounted root file system.
#[derive(Debug)]
pub(crate) struct Root {
    mount: OwnedFd,
    /// The device and the number of its root directory.
    place: Place,
    /// Whose rights what is made in it takes, while this process still has those of the host.
    ids: Option<IdMaps>,
}

impl Root {
    /// Makes the overlay as a detached mount, with the layers' ids as those of `users`. Must run where the layers'
    /// paths are those of the host.
    pub(crate) fn make(plan: &Plan, users: Option<Users<'_>>) -> Result<Self, Error> {
        const STAGE: &str = "the overlay of the root file system";
        let rootfs = &plan.rootfs;
        let lowers: Vec<&Path> = rootfs.lowers.iter().map(|path| path.as_path()).collect();
        let overlay = Overlay {
            lowers: &lowers,
            upper: rootfs.upper.as_path(),
            work: rootfs.work.as_path(),
            user_namespace: users.map(|users| users.namespace),
            label: plan.mount_label.as_ref().map(SelinuxLabel::as_str),
        };
        let place = rootfs.upper.as_path().parent().unwrap_or(Path::new("/"));
        let mount = overlay.detached(place).stage(STAGE)?;
        users.map_or(Ok(()), |users| users.forbid_nodes(mount.as_fd(), Depth::One)).stage(STAGE)?;
        Self::of(mount, users.map(|users| users.ids)).stage(STAGE)
    }

    /// The root of this process.
    pub(crate) fn own() -> Result<Self, Error> {
        let opened = wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY);
        opened.and_then(|mount| Self::of(mount, None)).stage("opening the root")
    }

    /// One that is mounted at this name in the working directory.
    pub(crate) fn mounted(name: &str) -> Result<Self, Error> {
        let opened = wharf_sys::fs::open(name, OFlag::O_PATH | OFlag::O_DIRECTORY);
        opened.and_then(|mount| Self::of(mount, None)).stage("opening the root file system")
    }

    fn of(mount: OwnedFd, ids: Option<IdMaps>) -> wharf_sys::Result<Self> {
        let place = place_of(mount.as_fd())?;
        Ok(Self { mount, place, ids })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Opens a path without leaving the root.
    pub(crate) fn open(&self, path: &ContainerPath, flags: OFlag) -> wharf_sys::Result<OwnedFd> {
        open_below(self.fd(), path.relative(), flags, Resolve::InRoot)
    }

    /// Opens a path (`O_PATH`), and makes it and its parents if they are missing. The target of a link is made where
    /// the link leads inside the root.
    pub(crate) fn ensure(&self, path: &ContainerPath, make: Make) -> wharf_sys::Result<OwnedFd> {
        self.ensure_relative(path.relative(), make, LINKS_LIMIT)
    }

    /// The same for a path that must not lead through a link.
    pub(crate) fn ensure_without_links(
        &self,
        path: &ContainerPath,
        make: Make,
    ) -> wharf_sys::Result<OwnedFd> {
        let open = || open_below(self.fd(), path.relative(), OFlag::O_PATH, Resolve::BeneathNoLinks);
        let opened = match open() {
            Err(error) if error.errno == Errno::ENOENT => {
                drop(self.ensure(path, make)?);
                open()
            }
            other => other,
        };
        opened.map_err(|error| match error.errno {
            Errno::ELOOP => {
                wharf_sys::Error::new("openat2", format!("{path}, from where a link leads on"), Errno::ELOOP)
            }
            _ => error,
        })
    }

    /// Attaches a detached mount over a file or directory in the root, but never over the root itself, whatever path
    /// leads there. It would hide the file system in which everything else is resolved, and would not even be hidden
    /// itself: commands enter the topmost mount, and so does `..` for a process that calls chroot(2).
    pub(crate) fn attach(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> wharf_sys::Result<()> {
        if self.is_at(target)? {
            return Err(wharf_sys::Error::new("move_mount", "over the root of the container", Errno::EINVAL));
        }
        mount::attach(mount, target)
    }

    pub(crate) fn is_at(&self, place: BorrowedFd<'_>) -> wharf_sys::Result<bool> {
        Ok(self.place == place_of(place)?)
    }

    /// Checks that the root user of the container's user namespace may make files in a directory. This process may make
    /// them anywhere, and a link in the image can lead into a volume of the host in which the container may not.
    pub(crate) fn may_make_in(&self, directory: BorrowedFd<'_>) -> wharf_sys::Result<()> {
        let Some(ids) = self.ids else { return Ok(()) };
        let what = || "a directory in which the user namespace has no rights".into();
        let stat = fstatat(directory, "", AtFlags::AT_EMPTY_PATH).named("fstatat", what)?;
        let is_its_own = ids.users.has_on_host(stat.st_uid) && ids.groups.has_on_host(stat.st_gid);
        let is_everyones = stat.st_mode & Mode::S_IWOTH.bits() != 0;
        if is_its_own || is_everyones { Ok(()) } else { Err(Errno::EACCES).named("mkdirat", what) }
    }

    fn ensure_relative(&self, path: &str, make: Make, links: usize) -> wharf_sys::Result<OwnedFd> {
        match open_below(self.fd(), path, OFlag::O_PATH, Resolve::InRoot) {
            Err(error) if error.errno == Errno::ENOENT && !path.is_empty() => {}
            other => return other,
        }
        let named = |call, errno| wharf_sys::Error::new(call, path, errno);
        let (before, name) = split_last(path);
        let parent = self.ensure_relative(before, Make::Directory, links)?;
        if name == ".." {
            // The directory before `..` was missing, and exists now.
            return open_below(self.fd(), path, OFlag::O_PATH, Resolve::InRoot);
        }
        self.may_make_in(parent.as_fd())?;
        match make.in_directory(parent.as_fd(), name) {
            // Neither call follows a link: the name may be a dangling link, or someone else has just made it.
            Err(error) if error.errno == Errno::EEXIST => {}
            made => return made,
        }
        let Ok(target) = nix::fcntl::readlinkat(&parent, name) else {
            return open_made(parent.as_fd(), name);
        };
        // The kernel resolves `..` from the place of the link, and so does the longer path.
        let left = links.checked_sub(1).ok_or_else(|| named("readlinkat", Errno::ELOOP))?;
        let target = target.to_str().ok_or_else(|| named("readlinkat", Errno::EILSEQ))?;
        match target.strip_prefix('/') {
            Some(absolute) => self.ensure_relative(absolute.trim_matches('/'), make, left),
            None => self.ensure_relative(&format!("{before}/{}", target.trim_end_matches('/')), make, left),
        }
    }

    /// Makes the root itself shared, if it is to be; a new mount is private.
    pub(crate) fn propagate(&self, propagation: Propagation) -> Result<(), Error> {
        match propagation {
            Propagation::Shared => mount::propagate(self.fd(), propagation, Depth::One)
                .stage("setting the propagation of the root file system"),
            Propagation::Private | Propagation::Slave => Ok(()),
        }
    }

    /// Makes the root itself read-only; mounts in it are unchanged.
    pub(crate) fn forbid_writing(&self) -> Result<(), Error> {
        mount::forbid(self.fd(), Attributes::READ_ONLY, Depth::One)
            .stage("making the root file system read-only")
    }

    /// Makes this the root of this process, whose mount namespace has only the kernel's own root so far.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        mount::take_root(self.fd()).stage("entering the root file system")
    }
}

/// Opens a directory of the container below the descriptor of its root; no link leads out, not even one in procfs.
pub(crate) fn open_cwd(root: BorrowedFd<'_>, path: &ContainerPath) -> Result<OwnedFd, Error> {
    open_below(root, path.relative(), OFlag::O_PATH | OFlag::O_DIRECTORY, Resolve::InRoot)
        .map_err(|source| cwd_error(path, source))
}

/// Makes it this process's working directory; the process's root is the container's by now. A directory that cannot be
/// reached from that root is not the container's, however it was opened.
pub(crate) fn enter_cwd(directory: BorrowedFd<'_>, path: &ContainerPath) -> Result<Inside, Error> {
    let named = |call, errno| cwd_error(path, wharf_sys::Error::new(call, path.as_str(), errno));
    nix::unistd::fchdir(directory).map_err(|errno| named("fchdir", errno))?;
    // For an unreachable directory the kernel puts "(unreachable)" before the path; some C libraries report ENOENT
    // instead.
    let here = nix::unistd::getcwd().map_err(|errno| named("getcwd", errno))?;
    if here.is_absolute() { Ok(Inside::entered()) } else { Err(named("getcwd", Errno::EXDEV)) }
}

pub(crate) fn cwd_error(path: &ContainerPath, source: wharf_sys::Error) -> Error {
    Error::ContainerPath { what: "working directory", path: path.to_string(), source }
}

/// Whether an `O_PATH` descriptor is a directory.
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> wharf_sys::Result<bool> {
    let stat = fstatat(fd, "", AtFlags::AT_EMPTY_PATH)
        .named("fstatat", || format!("descriptor {}", fd.as_raw_fd()))?;
    Ok(kind(&stat) == SFlag::S_IFDIR)
}

/// The type of a file.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "what is looked at from outside is a directory of the test's own"
)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let mount = wharf_sys::fs::open(directory.path(), OFlag::O_PATH | OFlag::O_DIRECTORY).unwrap();
        (directory, Root::of(mount, None).unwrap())
    }

    fn path(text: &str) -> ContainerPath {
        ContainerPath::new(text).unwrap()
    }

    #[test]
    fn what_a_link_names_is_made_where_it_leads() {
        let (directory, root) = root();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("etc/deep")).unwrap();
        symlink("../run/resolve/stub.conf", at("etc/resolv.conf")).unwrap();
        symlink("/lists/hosts", at("etc/hosts")).unwrap();
        symlink("/run", at("var")).unwrap();
        symlink("../..", at("etc/deep/up")).unwrap();
        symlink("again/../../first", at("second")).unwrap();
        symlink("/third", at("first")).unwrap();
        for (asked, make, made) in [
            ("/etc/resolv.conf", Make::File, "run/resolve/stub.conf"),
            ("/etc/hosts", Make::File, "lists/hosts"),
            ("/var/lib/x", Make::Directory, "run/lib/x"),
            ("/etc/deep/up/new/file", Make::File, "new/file"),
            ("/second/x", Make::Directory, "third/x"),
        ] {
            drop(root.ensure(&path(asked), make).unwrap());
            assert_eq!(at(made).is_dir(), make == Make::Directory, "{asked}");
            assert!(at(made).exists(), "{asked}");
            // It exists by now, and is found in the same way.
            drop(root.ensure(&path(asked), make).unwrap());
        }
    }

    /// In a thread with a working directory of its own.
    #[test]
    fn a_directory_that_cannot_be_reached_from_the_root_is_not_entered() {
        let enter = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            let elsewhere = mount::new_filesystem("tmpfs", &[], Attributes::NONE).unwrap();
            enter_cwd(elsewhere.as_fd(), &path("/w")).unwrap_err().to_string()
        };
        let error = std::thread::scope(|scope| scope.spawn(enter).join()).unwrap();
        assert!(error.contains("working directory /w"), "{error}");
    }

    #[test]
    fn links_lead_neither_out_nor_round_for_ever() {
        let (directory, root) = root();
        let at = |name: &str| directory.path().join(name);
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("made");
        symlink(&target, at("out")).unwrap();
        symlink(format!("../../../../../..{}", target.display()), at("up")).unwrap();
        for link in ["/out", "/up"] {
            drop(root.ensure(&path(link), Make::Directory).unwrap());
        }
        assert!(!target.exists() && directory.path().join(target.strip_prefix("/").unwrap()).is_dir());
        // Each leads to a missing name after the next one, without end.
        symlink("b/x", at("a")).unwrap();
        symlink("a/x", at("b")).unwrap();
        assert_eq!(root.ensure(&path("/a"), Make::Directory).unwrap_err().errno, Errno::ELOOP);
    }
}
