//! The directories of a layer while it is unpacked: opened beneath its root, made where a layer implies them.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};
use wharf_sys::Error;
use wharf_sys::error::Named;

use super::attributes::{OPAQUE, set_time};
use super::{UnpackError, shown};

/// As many links as the kernel follows.
const LINKS_LIMIT: usize = 40;
/// Names of directories that are remembered, so that a layer cannot fill memory, or its record.
const NAMES_LIMIT_BYTES: u64 = 8 << 20;

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

/// What is remembered of a directory.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    mtime: (i64, u32),
    implied: bool,
}

#[derive(Debug)]
pub(super) struct Parents {
    root: Rc<OwnedFd>,
    depth_limit: usize,
    /// The last parent by the name that was asked for: entries of one directory mostly come together.
    last: Option<(Vec<u8>, Parent)>,
    directories: BTreeMap<Vec<u8>, Remembered>,
    names_bytes: u64,
    /// Directories that were made as implied.
    pub(super) made: u64,
}

impl Parents {
    pub(super) fn new(root: OwnedFd, depth_limit: usize) -> Self {
        let root_implied = Remembered { mtime: (0, 0), implied: true };
        Self {
            root: Rc::new(root),
            depth_limit,
            last: None,
            directories: BTreeMap::from([(Vec::new(), root_implied)]),
            names_bytes: 0,
            made: 0,
        }
    }

    pub(super) fn root(&self) -> Parent {
        Parent { path: Rc::from(&b""[..]), fd: Rc::clone(&self.root) }
    }

    /// Opens a directory by a cleaned path; what is missing is made, with `mtime`.
    pub(super) fn open(&mut self, path: &[u8], mtime: (i64, u32)) -> Result<Parent, UnpackError> {
        if let Some((name, parent)) = &self.last
            && name == path
        {
            return Ok(parent.clone());
        }
        let parent = match open_beneath(&self.root, path) {
            Ok(fd) => Parent { path: path.into(), fd: Rc::new(fd) },
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => self.walk(path, Some(mtime))?,
            Err(errno) => return Err(system(path, "openat2", errno)),
        };
        self.last = Some((path.to_vec(), parent.clone()));
        Ok(parent)
    }

    /// Opens a directory that must be there.
    pub(super) fn existing(&mut self, path: &[u8]) -> Result<Parent, UnpackError> {
        match open_beneath(&self.root, path) {
            Ok(fd) => Ok(Parent { path: path.into(), fd: Rc::new(fd) }),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => self.walk(path, None),
            Err(errno) => Err(system(path, "openat2", errno)),
        }
    }

    /// Resolves a path component by component with the layer as the root. Without `mtime`, nothing is made.
    fn walk(&mut self, path: &[u8], mtime: Option<(i64, u32)>) -> Result<Parent, UnpackError> {
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
                    let mtime = mtime.ok_or_else(|| entry(path, "is not in the layer, or comes later"))?;
                    here = self.make(&here, &name, Remembered { mtime, implied: true })?;
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
                    _ => return Err(entry(path, "lies in something that is no directory")),
                },
                Err(errno) => return Err(system(path, "openat2", errno)),
            }
        }
        Ok(here)
    }

    fn reopen(&self, path: &[u8]) -> Result<Parent, UnpackError> {
        let fd = open_beneath(&self.root, path).map_err(|errno| system(path, "openat2", errno))?;
        Ok(Parent { path: path.into(), fd: Rc::new(fd) })
    }

    /// A directory in the place of a whiteout: it hides what was there, so it takes nothing from below.
    fn replace_whiteout(
        &mut self,
        here: &Parent,
        name: &[u8],
        mtime: (i64, u32),
    ) -> Result<Parent, UnpackError> {
        let path = here.child(name);
        nix::unistd::unlinkat(here, OsStr::from_bytes(name), nix::unistd::UnlinkatFlags::NoRemoveDir)
            .map_err(|errno| system(&path, "unlinkat", errno))?;
        let made = self.make(here, name, Remembered { mtime, implied: false })?;
        wharf_sys::xattr::set(made.as_fd(), OPAQUE, b"y")
            .map_err(|source| UnpackError::System { path: shown(&path), source })?;
        Ok(made)
    }

    fn make(&mut self, here: &Parent, name: &[u8], what: Remembered) -> Result<Parent, UnpackError> {
        let path = here.child(name);
        let failed = |source| UnpackError::System { path: shown(&path), source };
        mkdirat(here, OsStr::from_bytes(name), Mode::S_IRWXU)
            .named("mkdirat", String::new)
            .map_err(failed)?;
        let fd = open_beneath(&here.fd, name).named("openat2", String::new).map_err(failed)?;
        plain(&fd).map_err(failed)?;
        self.made += 1;
        self.remember(path.clone(), what)?;
        Ok(Parent { path: path.into(), fd: Rc::new(fd) })
    }

    /// Notes a directory that an entry names.
    pub(super) fn named(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<(), UnpackError> {
        self.remember(path, Remembered { mtime, implied: false })
    }

    /// Notes that a directory hides what is below: it is itself, not what a lower layer says.
    pub(super) fn cut(&mut self, path: &[u8]) {
        if let Some(directory) = self.directories.get_mut(path) {
            directory.implied = false;
        }
    }

    fn remember(&mut self, path: Vec<u8>, what: Remembered) -> Result<(), UnpackError> {
        let length = path.len() as u64 + 64;
        if self.directories.insert(path, what).is_none() {
            self.names_bytes += length;
        }
        if self.names_bytes > NAMES_LIMIT_BYTES {
            let what = "bytes of names of directories";
            return Err(UnpackError::Limit { what, limit: NAMES_LIMIT_BYTES });
        }
        Ok(())
    }

    /// Forgets a path and all below it, for they were removed.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.last = None;
        let below = join(path, b"");
        let names: Vec<_> = self
            .directories
            .range(path.to_vec()..)
            .take_while(|(name, _)| name.starts_with(path))
            .filter(|(name, _)| *name == path || name.starts_with(&below))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.directories.remove(&name);
            self.names_bytes = self.names_bytes.saturating_sub(name.len() as u64 + 64);
        }
    }

    /// Sets the times of all directories, now that nothing is made in them any more; returns the implied ones.
    pub(super) fn finish(self) -> Result<Vec<Vec<u8>>, UnpackError> {
        let mut implied = Vec::new();
        for (path, directory) in self.directories {
            let failed = |source| UnpackError::System { path: shown(&path), source };
            let fd = open_beneath(&self.root, &path).named("openat2", String::new).map_err(failed)?;
            set_time(fd.as_fd(), directory.mtime).map_err(failed)?;
            if directory.implied {
                implied.push(path);
            }
        }
        Ok(implied)
    }
}

/// The attributes of a directory nobody named: root's, mode 0755.
pub(super) fn plain(fd: &OwnedFd) -> wharf_sys::Result<()> {
    fchown(fd, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).named("fchown", || "0:0".into())?;
    fchmod(fd, Mode::from_bits_truncate(0o755)).named("fchmod", || "0755".into())
}

/// Opens a directory beneath another: no link anywhere on the way, no mount crossed.
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

/// What stands under a name, itself and not what it links to.
pub(crate) fn look(parent: impl AsFd, name: &[u8]) -> Option<FileStat> {
    fstatat(parent, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW).ok()
}

pub(crate) fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

pub(super) fn is_whiteout(stat: &FileStat) -> bool {
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
    UnpackError::System { path: shown(path), source: Error::new(call, "", errno) }
}
