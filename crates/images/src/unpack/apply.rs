//! Makes one entry after another below the layer's root.
//!
//! Names and targets are hostile. Every parent is opened below the root without following a link, and the last
//! component is made under a new name, so no order of entries leads out of the layer.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};
use wharf_snapshots::tree::{Usage, remove_tree};
use wharf_sys::Error;
use wharf_sys::error::Named;
use wharf_types::Reserve;

use super::attributes::{self, OPAQUE};
use super::name::Name;
use super::parents::{Parent, Parents, is_kind, is_whiteout, join, look, open_beneath};
use super::{Contents, Effect, UnpackError, shown};
use crate::limits::Limits;
use crate::tar::{Archive, Entry, Kind};

/// The most that may be written or made between two checks of the free space.
const DISK_CHECK_BYTES: u64 = 64 << 20;
const DISK_CHECK_INODES: u64 = 4096;

/// Unpacks an archive into the empty directory `root`, and reads the input to its end.
pub(crate) fn apply<R: BufRead>(input: R, root: OwnedFd, limits: &Limits) -> Result<Contents, UnpackError> {
    let mut apply = Apply::new(root, limits)?;
    let mut archive = Archive::new(input);
    while let Some(entry) = archive.next_entry()? {
        apply.entry(&entry, &mut archive)?;
    }
    // What follows the archive's end counts for the digest and for nothing else.
    read_rest(archive)?;
    apply.finish()
}

/// Makes one file with this path and size in the empty directory `root`, and reads the input to its end.
pub(crate) fn apply_file<R: BufRead>(
    input: R,
    (path, size_bytes): (&str, u64),
    root: OwnedFd,
    limits: &Limits,
) -> Result<Contents, UnpackError> {
    let mut apply = Apply::new(root, limits)?;
    let entry = Entry {
        kind: Kind::File,
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        device: (0, 0),
        size_bytes,
        sparse: None,
        xattrs: Vec::new(),
    };
    let mut content = Archive::of_content(input, size_bytes);
    apply.entry(&entry, &mut content)?;
    read_rest(content)?;
    apply.finish()
}

fn read_rest<R: BufRead>(archive: Archive<R>) -> Result<(), UnpackError> {
    let mut rest = archive.into_input();
    let mut scrap = [0; 8192];
    while rest.read(&mut scrap).map_err(|source| UnpackError::Read { source })? > 0 {}
    Ok(())
}

struct Apply<'a> {
    limits: &'a Limits,
    parents: Parents,
    usage: Usage,
    entries: u64,
    /// The sizes of all files with holes: who copies them may have to write the holes, too.
    hollow_bytes: u64,
    /// What was made since the last check of the disk.
    unchecked: Usage,
    /// What must stay free of it.
    reserve: Reserve,
    effect: Effect,
}

/// The place of an entry.
struct Place<'a> {
    parent: Parent,
    name: &'a [u8],
}

impl Place<'_> {
    fn os_name(&self) -> &OsStr {
        OsStr::from_bytes(self.name)
    }

    fn path(&self) -> Vec<u8> {
        self.parent.child(self.name)
    }

    fn failed(&self, source: Error) -> UnpackError {
        UnpackError::System { path: shown(&self.path()), source }
    }

    fn refused(&self, reason: &'static str) -> UnpackError {
        UnpackError::Entry { path: shown(&self.path()), reason }
    }
}

impl<'a> Apply<'a> {
    fn new(root: OwnedFd, limits: &'a Limits) -> Result<Self, UnpackError> {
        Ok(Self {
            limits,
            reserve: limits.check_disk(&root)?,
            parents: Parents::new(root, limits.depth)?,
            usage: Usage::default(),
            entries: 0,
            hollow_bytes: 0,
            unchecked: Usage::default(),
            effect: Effect::Nothing,
        })
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        self.entries += 1;
        self.count(0)?;
        if self.effect == Effect::Nothing {
            self.effect = Effect::Merges;
        }
        match Name::of_entry(&entry.path, self.limits.depth)? {
            Name::Ignored => Ok(()),
            Name::Root if entry.kind == Kind::Directory => {
                self.parents.leave()?;
                self.parents.loose.settle(b"");
                attributes::set(self.parents.root().as_fd(), entry)
                    .map_err(|source| UnpackError::System { path: "/".into(), source })
            }
            Name::Root => {
                Err(UnpackError::Entry { path: "/".into(), reason: "is the root, but not a directory" })
            }
            Name::Opaque { parent } => self.opaque(&parent, entry),
            Name::Whiteout { parent, name } => {
                let parent = self.parents.open(&parent, entry.mtime)?;
                self.whiteout(&Place { parent, name: &name })
            }
            Name::In { .. } if entry.kind == Kind::Character && entry.device == (0, 0) => {
                tracing::warn!(
                    path = shown(&entry.path),
                    "dropped a device 0:0 of a layer: overlayfs would take it for a whiteout"
                );
                Ok(())
            }
            Name::In { parent, name } => {
                let parent = self.parents.open(&parent, entry.mtime)?;
                self.make(&Place { parent, name: &name }, entry, archive)
            }
        }
    }

    fn make<R: BufRead>(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        match entry.kind {
            Kind::File => self.file(place, entry, archive),
            Kind::Directory => self.directory(place, entry),
            Kind::HardLink => self.hard_link(place, &entry.link),
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > 4095 || entry.link.contains(&0) {
                    return Err(place.refused("is a symbolic link with an impossible target"));
                }
                let target = OsStr::from_bytes(&entry.link);
                self.replace(place, "symlinkat", |parent, name| symlinkat(target, parent, name))?;
                attributes::set_on_link(&place.parent, place.name, entry).map_err(|error| place.failed(error))
            }
            Kind::Character => self.node(place, entry, SFlag::S_IFCHR),
            Kind::Block => self.node(place, entry, SFlag::S_IFBLK),
            Kind::Fifo => self.node(place, entry, SFlag::S_IFIFO),
        }
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        // O_EXCL never follows a link: what is there is removed first, and never written through.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let fd =
            self.replace(place, "openat", |parent, name| nix::fcntl::openat(parent, name, flags, mode))?;
        let mut file = File::from(fd);
        self.usage.bytes += entry.size_bytes.next_multiple_of(4096);
        // Its last block is rarely full.
        self.written(4096)?;
        let failed = |error| place.failed(error);
        match &entry.sparse {
            None => archive.content(|piece| {
                file.write_all(piece).named("write", || bytes(piece)).map_err(failed)?;
                self.written(piece.len())
            })?,
            Some(map) => {
                self.hollow_bytes = self.hollow_bytes.saturating_add(map.size_bytes);
                if self.hollow_bytes > self.limits.layer_bytes {
                    let limit = self.limits.layer_bytes;
                    return Err(UnpackError::Limit { what: "bytes in files with holes", limit });
                }
                file.set_len(map.size_bytes)
                    .named("ftruncate", || map.size_bytes.to_string())
                    .map_err(failed)?;
                let written = |bytes| self.written(bytes);
                write_regions((&mut file, &map.regions), place, archive, written)?;
            }
        }
        attributes::set(file.as_fd(), entry).map_err(failed)
    }

    fn directory(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), UnpackError> {
        let there = look(&place.parent, place.name);
        let keep = there.as_ref().is_some_and(|stat| is_kind(stat, SFlag::S_IFDIR));
        if !keep {
            self.replace(place, "mkdirat", |parent, name| mkdirat(parent, name, Mode::S_IRWXU))?;
            self.count(4096)?;
        }
        let failed = |error| place.failed(error);
        let fd = open_beneath(&place.parent.fd, place.name)
            .named("openat2", || shown(place.name))
            .map_err(failed)?;
        if there.as_ref().is_some_and(is_whiteout) {
            wharf_sys::xattr::set(fd.as_fd(), OPAQUE, b"y").map_err(failed)?;
        }
        attributes::set(fd.as_fd(), entry).map_err(failed)?;
        self.parents.loose.settle(&place.path());
        Ok(())
    }

    fn node(&mut self, place: &Place<'_>, entry: &Entry, kind: SFlag) -> Result<(), UnpackError> {
        let device = makedev(entry.device.0.into(), entry.device.1.into());
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        self.replace(place, "mknodat", |parent, name| mknodat(parent, name, kind, mode, device))?;
        attributes::set_on_node(&place.parent, place.name, entry).map_err(|error| place.failed(error))
    }

    fn hard_link(&mut self, place: &Place<'_>, target: &[u8]) -> Result<(), UnpackError> {
        let (parent, name) = Name::of_link(target, self.limits.depth)?;
        let Some(parent) = self.parents.existing(&parent)? else {
            return self.link_below(place, join(&parent, &name));
        };
        let from = Place { parent, name: &name };
        let Some(stat) = look(&from.parent, &name) else { return self.link_below(place, from.path()) };
        if is_kind(&stat, SFlag::S_IFDIR) || is_whiteout(&stat) {
            return Err(place.refused("is a hard link to a directory or a whiteout"));
        }
        if from.path() == place.path() {
            return Err(place.refused("is a hard link to itself"));
        }
        if let Some(there) = look(&place.parent, place.name)
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        // Removing what is in the way could remove the target.
        let below = [&place.path()[..], b"/"].concat();
        if from.path().starts_with(&below) {
            return Err(place.refused("is a hard link to what it replaces"));
        }
        let source = from.os_name();
        self.replace(place, "linkat", |parent, name| {
            linkat(&from.parent, source, parent, name, AtFlags::empty())
        })?;
        self.usage.inodes -= 1;
        Ok(())
    }

    /// Notes a hard link to a file that this layer does not have, at least not before the link.
    fn link_below(&mut self, place: &Place<'_>, target: Vec<u8>) -> Result<(), UnpackError> {
        let path = place.path();
        if target == path {
            return Err(place.refused("is a hard link to itself"));
        }
        // A link to such a link is a link to the same file.
        let target = self.parents.loose.target(&target).cloned().unwrap_or(target);
        remove_tree(place.parent.as_fd(), place.os_name()).map_err(|source| place.failed(source))?;
        self.parents.loose.forget(&path);
        self.made()?;
        self.parents.loose.link(path, target)
    }

    fn whiteout(&mut self, place: &Place<'_>) -> Result<(), UnpackError> {
        let mode = Mode::empty();
        match mknodat(&place.parent, place.os_name(), SFlag::S_IFCHR, mode, 0) {
            Ok(()) => self.made(),
            // Something of this layer is there. It stays, and hides what is below by itself unless it is a directory.
            Err(Errno::EEXIST) => {
                let is_directory = |stat| is_kind(&stat, SFlag::S_IFDIR);
                if !look(&place.parent, place.name).is_some_and(is_directory) {
                    return Ok(());
                }
                let failed = |error| place.failed(error);
                let fd = open_beneath(&place.parent.fd, place.name)
                    .named("openat2", || shown(place.name))
                    .map_err(failed)?;
                self.parents.loose.settle(&place.path());
                wharf_sys::xattr::set(fd.as_fd(), OPAQUE, b"y").map_err(failed)
            }
            Err(errno) => Err(place.failed(Error::new("mknodat", "0:0", errno))),
        }
    }

    fn opaque(&mut self, path: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let directory = self.parents.open(path, entry.mtime)?;
        if directory.path.is_empty() {
            self.effect = Effect::HidesAll;
        }
        wharf_sys::xattr::set(directory.as_fd(), OPAQUE, b"y")
            .map_err(|source| UnpackError::System { path: shown(path), source })
    }

    /// Makes something under a name that must be new; what an earlier entry made there is removed.
    fn replace<T>(
        &mut self,
        place: &Place<'_>,
        call: &'static str,
        make: impl Fn(&Parent, &OsStr) -> nix::Result<T>,
    ) -> Result<T, UnpackError> {
        let failed = |source| place.failed(source);
        self.made()?;
        match make(&place.parent, place.os_name()) {
            Err(Errno::EEXIST) => {
                remove_tree(place.parent.as_fd(), place.os_name()).map_err(failed)?;
                self.parents.loose.forget(&place.path());
                make(&place.parent, place.os_name()).named(call, || shown(place.name)).map_err(failed)
            }
            other => {
                self.parents.loose.unlink(&place.path());
                other.named(call, || shown(place.name)).map_err(failed)
            }
        }
    }

    fn made(&mut self) -> Result<(), UnpackError> {
        self.usage.inodes += 1;
        self.unchecked.inodes += 1;
        self.count(0)
    }

    /// Counts bytes, and checks every limit that they may exceed.
    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.usage.bytes += bytes;
        if self.entries + self.parents.made > self.limits.entries {
            return Err(UnpackError::Limit { what: "entries", limit: self.limits.entries });
        }
        self.written(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Counts bytes that the disk has by now, or is about to have, and looks at the disk in time.
    fn written(&mut self, bytes: usize) -> Result<(), UnpackError> {
        self.unchecked.bytes += bytes as u64;
        let Reserve { bytes, inodes } = self.reserve;
        if self.unchecked.bytes >= Limits::due(DISK_CHECK_BYTES, bytes)
            || self.unchecked.inodes >= Limits::due(DISK_CHECK_INODES, inodes)
        {
            self.unchecked = Usage::default();
            self.reserve = self.limits.check_disk(self.parents.root())?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Contents, UnpackError> {
        let mut usage = self.usage;
        // The root itself, and what was made without an entry.
        usage.inodes += self.parents.made + 1;
        usage.bytes += 4096 * (self.parents.made + 1);
        Ok(self.parents.finish()?.finish(usage, self.effect))
    }
}

fn bytes(piece: &[u8]) -> String {
    format!("{} bytes", piece.len())
}

fn write_regions<R: BufRead>(
    (file, regions): (&mut File, &[(u64, u64)]),
    place: &Place<'_>,
    archive: &mut Archive<R>,
    mut written: impl FnMut(usize) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    let failed = |error| place.failed(error);
    let mut regions = regions.iter().copied();
    let mut left = 0;
    archive.content(|mut piece| {
        while !piece.is_empty() {
            while left == 0 {
                let Some((offset, length)) = regions.next() else { return Ok(()) };
                file.seek(SeekFrom::Start(offset)).named("lseek", || offset.to_string()).map_err(failed)?;
                left = length;
            }
            let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all(&piece[..count]).named("write", || bytes(&piece[..count])).map_err(failed)?;
            written(count)?;
            piece = &piece[count..];
            left -= count as u64;
        }
        Ok(())
    })
}
