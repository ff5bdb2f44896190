//! A layer of the store as an archive again, from which unpacking makes the same layer.
//!
//! The archive is not the one that the layer came from: the order of its entries, and what else two archives of the
//! same files may differ in, was not kept. But it is always the same: entries are sorted, and it has nothing of this
//! machine in it. Directories that the layer only implies have no entry, so that the layers below still decide about
//! them.
//!
//! Whiteouts become `.wh.` files again, and holes are written as zeros. A hard link has the attributes of its file,
//! because other runtimes set them once more. Those of a link to a file of a lower layer were not kept, so a layer with
//! such a link is refused; no builder that looks at what it builds on makes one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use wharf_snapshots::list_names;
use wharf_sys::Error;
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open_below};

use super::SaveError;
use super::tar::{END, Head, Kind, padding};
use crate::stream::PIECE_BYTES;
use crate::unpack::{Contents, OPAQUE, is_admitted, is_kind, is_whiteout, join, look, open_beneath, shown};

/// The most bytes of names of files with several names, which are in memory until the layer is written.
const NAMES_LIMIT_BYTES: usize = 64 << 20;

/// Writes a layer's archive.
pub(super) fn pack(root: &OwnedFd, contents: &Contents, out: &mut dyn Write) -> Result<(), SaveError> {
    if let Some(link) = contents.links.first() {
        return Err(SaveError::LinkBelow { path: shown(&link.path) });
    }
    let mut pack = Pack { contents, out, linked: HashMap::new(), names_bytes: 0 };
    pack.directory(root, b"")?;
    Ok(out.write_all(&END)?)
}

struct Pack<'a> {
    contents: &'a Contents,
    out: &'a mut dyn Write,
    /// The first names of files that have several.
    linked: HashMap<u64, Vec<u8>>,
    names_bytes: usize,
}

impl Pack<'_> {
    fn directory(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<(), SaveError> {
        let failed = |source| system(path, source);
        if !self.contents.implies(path) {
            let stat = fstat(directory).named("fstat", || shown(path)).map_err(failed)?;
            let path = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
            let xattrs = xattrs(directory, &path)?;
            Head { kind: Kind::Directory, xattrs, ..head(path, &stat) }.write(self.out)?;
        }
        if wharf_sys::xattr::value(directory.as_fd(), OPAQUE).map_err(failed)?.is_some() {
            Head::file(&join(path, b".wh..wh..opq"), 0).write(self.out)?;
        }
        let mut names = list_names(directory.as_fd()).map_err(failed)?;
        names.sort();
        for name in &names {
            self.entry(directory, name, &join(path, name.as_bytes()))?;
        }
        Ok(())
    }

    fn entry(&mut self, parent: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<(), SaveError> {
        let gone = || system(path, Error::new("fstatat", shown(path), Errno::ENOENT));
        let stat = look(parent, name.as_bytes()).ok_or_else(gone)?;
        if is_kind(&stat, SFlag::S_IFDIR) {
            let below = open_beneath(parent, name.as_bytes()).named("openat2", || shown(path));
            return self.directory(&below.map_err(|source| system(path, source))?, path);
        }
        if is_whiteout(&stat) {
            let parent = &path[..path.len() - name.len()];
            return Ok(Head::file(&[parent, b".wh.", name.as_bytes()].concat(), 0).write(self.out)?);
        }
        let head = head(path.to_vec(), &stat);
        let content = if is_kind(&stat, SFlag::S_IFREG) { Some(open(parent, name, path)?) } else { None };
        let head = match &content {
            Some(fd) => Head { xattrs: xattrs(fd, path)?, ..head },
            None => special(parent, name, head, &stat)?,
        };
        if stat.st_nlink > 1
            && let Some(link) = self.first_name(stat.st_ino, path)?
        {
            let (kind, size_bytes) = (Kind::HardLink, 0);
            return Ok(Head { kind, link, size_bytes, device: (0, 0), ..head }.write(self.out)?);
        }
        head.write(self.out)?;
        content.map_or(Ok(()), |fd| self.content(fd, &head))
    }

    /// The name under which a file has been written; from now on it is this one, if there is none.
    fn first_name(&mut self, inode: u64, path: &[u8]) -> Result<Option<Vec<u8>>, SaveError> {
        if let Some(first) = self.linked.get(&inode) {
            return Ok(Some(first.clone()));
        }
        self.names_bytes += path.len();
        if self.names_bytes > NAMES_LIMIT_BYTES {
            return Err(SaveError::Names { limit: NAMES_LIMIT_BYTES });
        }
        self.linked.insert(inode, path.to_vec());
        Ok(None)
    }

    fn content(&mut self, fd: OwnedFd, head: &Head) -> Result<(), SaveError> {
        let (path, size_bytes) = (&head.path, head.size_bytes);
        let mut content = File::from(fd).take(size_bytes);
        let (mut piece, mut left) = (vec![0; PIECE_BYTES], size_bytes);
        while left > 0 {
            let read = content.read(&mut piece).named("read", || shown(path));
            let count = read.map_err(|source| system(path, source))?;
            if count == 0 {
                return Err(SaveError::Changed { path: shown(path) });
            }
            self.out.write_all(&piece[..count])?;
            left -= count as u64;
        }
        Ok(self.out.write_all(padding(size_bytes))?)
    }
}

/// Opens what was a regular file a moment ago. A FIFO that has taken its place is not waited for.
fn open(parent: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<OwnedFd, SaveError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    open_below(parent.as_fd(), name, flags, Resolve::BeneathNoLinks).map_err(|source| system(path, source))
}

/// A link, device or fifo.
fn special(parent: &OwnedFd, name: &OsStr, head: Head, stat: &FileStat) -> Result<Head, SaveError> {
    let kinds =
        [(SFlag::S_IFCHR, Kind::Character), (SFlag::S_IFBLK, Kind::Block), (SFlag::S_IFIFO, Kind::Fifo)];
    if is_kind(stat, SFlag::S_IFLNK) {
        let target = readlinkat(parent, name).named("readlinkat", || shown(&head.path));
        let link = target.map_err(|source| system(&head.path, source))?.into_vec();
        return Ok(Head { kind: Kind::Symlink, link, ..head });
    }
    match kinds.into_iter().find(|(kind, _)| is_kind(stat, *kind)) {
        Some((_, Kind::Fifo)) => Ok(Head { kind: Kind::Fifo, ..head }),
        Some((_, kind)) => Ok(Head { kind, device: (major(stat.st_rdev), minor(stat.st_rdev)), ..head }),
        // Unpacking makes nothing else.
        None => Err(SaveError::Changed { path: shown(&head.path) }),
    }
}

fn head(path: Vec<u8>, stat: &FileStat) -> Head {
    Head {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: if is_kind(stat, SFlag::S_IFREG) { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        ..Head::file(&path, 0)
    }
}

/// The attributes that unpacking admits, sorted.
fn xattrs(fd: &OwnedFd, path: &[u8]) -> Result<Vec<(String, Vec<u8>)>, SaveError> {
    let failed = |source| system(path, source);
    let mut names = wharf_sys::xattr::names(fd.as_fd()).map_err(failed)?;
    names.retain(|name| is_admitted(name));
    names.sort();
    let mut xattrs = Vec::new();
    for name in names {
        if let Some(value) = wharf_sys::xattr::value(fd.as_fd(), &name).map_err(failed)? {
            xattrs.push((name, value));
        }
    }
    Ok(xattrs)
}

fn system(path: &[u8], source: Error) -> SaveError {
    SaveError::System { path: shown(path), source }
}
