//! The directories of a layer that is being unpacked: opened beneath its root, and made where the layer implies them.
//!
//! Making something in a directory changes the directory's time. The time is restored as soon as something is made in
//! another directory, so that nothing needs to be remembered about directories that have entries.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};
use wharf_sys::Error;
use wharf_sys::error::Named;

use super::attributes::{OPAQUE, set_time};
use super::loose::Loose;
use super::{UnpackError, shown};

/// As many links as the kernel follows.
pub(crate) const LINKS_LIMIT: usize = 40;

/// An open directory and its path in the layer, free of links.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    pub(super) path: Rc<[u8]>,
    pub(super) fd: Rc<OwnedFd>,
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Parent {
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// Seconds and nanoseconds since the epoch.
type Time = (i64, u32);

/// The directory in which something was last made.
#[derive(Debug)]
struct Last {
    /// Its path as requested.
    name: Vec<u8>,
    parent: Parent,
    /// The time that it should have.
    mtime: Time,
}

#[derive(Debug)]
pub(super) struct Parents {
    root: Rc<OwnedFd>,
    depth_limit: usize,
    /// The entries of a directory mostly come one after another.
    last: Option<Last>,
    pub(super) loose: Loose,
    /// How many implied directories have been made.
    pub(super) made: u64,
}

impl Parents {
    /// Takes the empty root of a layer, which is implied until an entry names it.
    pub(super) fn new(root: OwnedFd, depth_limit: usize) -> Result<Self, UnpackError> {
        let failed = |source| UnpackError::System { path: "/".into(), source };
        plain(&root).and_then(|()| set_time(root.as_fd(), (0, 0))).map_err(failed)?;
        let mut loose = Loose::default();
        loose.imply(Vec::new())?;
        Ok(Self { root: Rc::new(root), depth_limit, last: None, loose, made: 0 })
    }

    pub(super) fn root(&self) -> Parent {
        Parent { path: Rc::from(&b""[..]), fd: Rc::clone(&self.root) }
    }

    /// Opens a directory by its normalised path, to make something in it. Missing directories are made, with `mtime`.
    pub(super) fn open(&mut self, path: &[u8], mtime: Time) -> Result<Parent, UnpackError> {
        if let Some(last) = &self.last
            && last.name == path
        {
            return Ok(last.parent.clone());
        }
        self.leave()?;
        let parent = match open_beneath(&self.root, path) {
            Ok(fd) => Parent { path: path.into(), fd: Rc::new(fd) },
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => {
                let walked = self.walk(path, Some(mtime))?;
                walked.ok_or_else(|| entry(path, "cannot be made"))?
            }
            Err(errno) => return Err(system(path, "openat2", errno)),
        };
        let mtime = time(&parent)?;
        self.last = Some(Last { name: path.to_vec(), parent: parent.clone(), mtime });
        Ok(parent)
    }

    /// Restores the time of the directory in which something was last made.
    pub(super) fn leave(&mut self) -> Result<(), UnpackError> {
        self.last.take().map_or(Ok(()), |last| put_back(&last.parent, last.mtime))
    }

    /// Opens a directory if it exists.
    pub(super) fn existing(&mut self, path: &[u8]) -> Result<Option<Parent>, UnpackError> {
        match open_beneath(&self.root, path) {
            Ok(fd) => Ok(Some(Parent { path: path.into(), fd: Rc::new(fd) })),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => self.walk(path, None),
            Err(errno) => Err(system(path, "openat2", errno)),
        }
    }

    /// Resolves a path component by component, with the layer as the root. Without `mtime` nothing is made, and the
    /// result may be `None`.
    fn walk(&mut self, path: &[u8], mtime: Option<Time>) -> Result<Option<Parent>, UnpackError> {
        let mut here = self.root();
        let mut ahead: VecDeque<Vec<u8>> = components(path).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == b".." {
                let end = here.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                here = self.reopen(&here.path[..end])?;
                continue;
            }
            let below = here.child(&name);
            if below.split(|byte| *byte == b'/').count() > self.depth_limit || below.len() > 4096 {
                return Err(entry(path, "is nested too deeply"));
            }
            match open_beneath(&here.fd, &name) {
                Ok(fd) => here = Parent { path: below.into(), fd: Rc::new(fd) },
                Err(Errno::ENOENT) => {
                    let Some(mtime) = mtime else { return Ok(None) };
                    here = self.make(&here, &name, mtime)?;
                    self.loose.imply(here.path.to_vec())?;
                }
                Err(Errno::ELOOP | Errno::ENOTDIR) => match (look(&here, &name), mtime) {
                    (Some(stat), _) if is_kind(&stat, SFlag::S_IFLNK) => {
                        links += 1;
                        if links > LINKS_LIMIT {
                            return Err(entry(path, "goes through too many symbolic links"));
                        }
                        let target = nix::fcntl::readlinkat(&here, OsStr::from_bytes(&name))
                            .map_err(|errno| system(path, "readlinkat", errno))?;
                        if target.as_bytes().starts_with(b"/") {
                            here = self.root();
                        }
                        let target: Vec<_> = components(target.as_bytes()).collect();
                        target.into_iter().rev().for_each(|part| ahead.push_front(part));
                    }
                    (Some(stat), Some(mtime)) if is_whiteout(&stat) => {
                        here = self.replace_whiteout(&here, &name, mtime)?;
                    }
                    _ => return Err(entry(path, "lies below something that is not a directory")),
                },
                Err(errno) => return Err(system(path, "openat2", errno)),
            }
        }
        Ok(Some(here))
    }

    fn reopen(&self, path: &[u8]) -> Result<Parent, UnpackError> {
        let fd = open_beneath(&self.root, path).map_err(|errno| system(path, "openat2", errno))?;
        Ok(Parent { path: path.into(), fd: Rc::new(fd) })
    }

    /// Makes a directory in place of a whiteout. It is opaque: the whiteout hid what was there.
    fn replace_whiteout(&mut self, here: &Parent, name: &[u8], mtime: Time) -> Result<Parent, UnpackError> {
        let path = here.child(name);
        let before = time(here)?;
        nix::unistd::unlinkat(here, OsStr::from_bytes(name), nix::unistd::UnlinkatFlags::NoRemoveDir)
            .map_err(|errno| system(&path, "unlinkat", errno))?;
        let made = self.make(here, name, mtime)?;
        put_back(here, before)?;
        wharf_sys::xattr::set(made.as_fd(), OPAQUE, b"y")
            .map_err(|source| UnpackError::System { path: shown(&path), source })?;
        Ok(made)
    }

    fn make(&mut self, here: &Parent, name: &[u8], mtime: Time) -> Result<Parent, UnpackError> {
        let path = here.child(name);
        let failed = |source| UnpackError::System { path: shown(&path), source };
        let before = time(here)?;
        mkdirat(here, OsStr::from_bytes(name), Mode::S_IRWXU)
            .named("mkdirat", || shown(name))
            .map_err(failed)?;
        put_back(here, before)?;
        let fd = open_beneath(&here.fd, name).named("openat2", || shown(name)).map_err(failed)?;
        plain(&fd).and_then(|()| set_time(fd.as_fd(), mtime)).map_err(failed)?;
        self.made += 1;
        Ok(Parent { path: path.into(), fd: Rc::new(fd) })
    }

    /// The loose names of the layer, now that it is complete.
    pub(super) fn finish(mut self) -> Result<Loose, UnpackError> {
        self.leave()?;
        Ok(self.loose)
    }
}

fn time(directory: &Parent) -> Result<Time, UnpackError> {
    let stat = fstat(directory).map_err(|errno| system(&directory.path, "fstat", errno))?;
    Ok((stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)))
}

fn put_back(directory: &Parent, mtime: Time) -> Result<(), UnpackError> {
    let path = || shown(&directory.path);
    set_time(directory.as_fd(), mtime).map_err(|source| UnpackError::System { path: path(), source })
}

/// Sets the attributes of a directory that no entry names: owned by root, mode 0755.
pub(crate) fn plain(fd: &OwnedFd) -> wharf_sys::Result<()> {
    fchown(fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).named("fchown", || "0:0".into())?;
    fchmod(fd, Mode::from_bits_truncate(0o755)).named("fchmod", || "0755".into())
}

/// Opens a directory beneath another: through no link, across no mount.
pub(crate) fn open_beneath(directory: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    loop {
        let how = OpenHow::new().flags(flags).resolve(resolve);
        match nix::fcntl::openat2(directory, OsStr::from_bytes(path), how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// The status of a name, without following a link.
pub(crate) fn look(parent: impl AsFd, name: &[u8]) -> Option<FileStat> {
    fstatat(parent, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW).ok()
}

pub(crate) fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    is_kind(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

/// The path of a name in a directory.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn entry(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Entry { path: shown(path), reason }
}

fn system(path: &[u8], call: &'static str, errno: Errno) -> UnpackError {
    UnpackError::System { path: shown(path), source: Error::new(call, shown(path), errno) }
}
