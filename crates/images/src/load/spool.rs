//! The files of an archive, kept on disk until all of it is there: what says which images it has may come last.
//!
//! They are in a directory of the staging area, which goes with this value or at the next start. No name of the archive
//! becomes a name on disk: a file is called by its number. Its digest is taken as it arrives, and a blob whose content
//! is not what its name says is refused. What nothing names in the end is ignored.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sha2::{Digest as _, Sha256};
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open_below, read_bounded};
use wharf_types::Digest;

use super::LoadError;
use crate::limits::Limits;
use crate::store::Shared;
use crate::stream::{Compression, Decoder, Means, PIECE_BYTES, fill};
use crate::tar::{Archive, Entry, Kind};
use crate::unpack::{Sender, shown};

/// The most bytes of an archive when unpacked: dozens of large images.
const ARCHIVE_LIMIT_BYTES: u64 = 512 << 30;
/// The most entries of an archive.
const ENTRIES_LIMIT: u64 = 50_000;
/// The most bytes of all its names, which are kept in memory.
const NAMES_LIMIT_BYTES: usize = 8 << 20;
/// The most that may be written between two checks of the free space; each file counts as a block, too.
const DISK_CHECK_BYTES: u64 = 16 << 20;

const BLOBS: &str = "blobs/sha256/";

/// A file of the archive.
#[derive(Debug, Clone)]
pub(super) struct Spooled {
    number: u64,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
}

#[derive(Debug)]
enum Found {
    File(Spooled),
    /// A symbolic link to this name: old versions of Docker save a layer of several images once, and links to it.
    Link(String),
}

/// All files of an archive.
#[derive(Debug)]
pub(super) struct Spool<'a> {
    shared: &'a Shared,
    pub(super) sender: Sender,
    staged: String,
    directory: OwnedFd,
    files: BTreeMap<String, Found>,
    entries: u64,
    names_bytes: usize,
    archive_bytes: u64,
    /// How much of the archive has arrived, as it is compressed.
    arrived_bytes: Rc<Cell<u64>>,
    /// Written since the disk was looked at…
    unchecked_bytes: u64,
    /// …which is due again after so many.
    due_bytes: u64,
}

impl Drop for Spool<'_> {
    fn drop(&mut self) {
        self.shared.discard_staged(&self.staged);
    }
}

impl<'a> Spool<'a> {
    /// Reads an archive to its end.
    pub(super) fn receive(
        shared: &'a Shared,
        input: &mut dyn Read,
        sender: &Sender,
    ) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Read { source };
        let mut start = [0; 4];
        let length = fill(|into| input.read(into), &mut start).map_err(failed)?;
        let compression = Compression::of(&start[..length]);
        let mut spool = Self::new(shared, sender.clone())?;
        let whole = Cursor::new(&start[..length]).chain(input);
        let counted = Counted { inner: whole, bytes: Rc::clone(&spool.arrived_bytes) };
        let input = BufReader::with_capacity(PIECE_BYTES, counted);
        let directory = spool.directory.try_clone().map_err(failed)?;
        let means = Means { limits: &shared.limits, sender, directory: directory.as_fd() };
        let decoder = Decoder::new(compression, input, &means).map_err(failed)?;
        let mut archive = Archive::new(BufReader::with_capacity(PIECE_BYTES, decoder));
        while let Some(entry) = archive.next_entry()? {
            spool.entry(&entry, &mut archive)?;
        }
        let mut rest = archive.into_input();
        loop {
            let length = rest.fill_buf().map_err(failed)?.len();
            if length == 0 {
                break;
            }
            spool.count(length as u64)?;
            rest.consume(length);
        }
        rest.into_inner().finish().map_err(failed)?;
        Ok(spool)
    }

    fn new(shared: &'a Shared, sender: Sender) -> Result<Self, LoadError> {
        let (staged, own) = shared.stage()?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let directory = open_below(own.as_fd(), "fs", flags, Resolve::BeneathNoLinks);
        let directory = directory.inspect_err(|_error| shared.discard_staged(&staged))?;
        Ok(Self {
            shared,
            sender,
            staged,
            directory,
            files: BTreeMap::new(),
            entries: 0,
            names_bytes: 0,
            archive_bytes: 0,
            arrived_bytes: Rc::default(),
            unchecked_bytes: 0,
            due_bytes: 0,
        })
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), LoadError> {
        self.entries += 1;
        if self.entries > ENTRIES_LIMIT {
            return Err(LoadError::Limit { what: "entries", limit: ENTRIES_LIMIT });
        }
        let refused = |reason| LoadError::Entry { name: shown(&entry.path), reason };
        let name = name_of(&entry.path).map_err(refused)?;
        let found = match entry.kind {
            Kind::Directory => return Ok(()),
            Kind::File if entry.sparse.is_some() => {
                return Err(refused("has holes, which no file of an archive has"));
            }
            Kind::File => Found::File(self.file(&name, archive)?),
            Kind::Symlink => {
                let target =
                    target_of(&name, &entry.link).ok_or_else(|| refused("is a link out of the archive"))?;
                self.names_bytes += target.len();
                Found::Link(target)
            }
            Kind::HardLink | Kind::Character | Kind::Block | Kind::Fifo => {
                return Err(refused("is neither a file, nor a directory, nor a symbolic link"));
            }
        };
        self.names_bytes += name.len();
        if self.names_bytes > NAMES_LIMIT_BYTES {
            return Err(LoadError::Limit { what: "bytes of names", limit: NAMES_LIMIT_BYTES as u64 });
        }
        match self.files.insert(name, found) {
            // Tools differ in which of the two they take.
            Some(_other) => Err(refused("is in it twice")),
            None => Ok(()),
        }
    }

    /// Writes the content of the current entry to a file of its own.
    fn file<R: BufRead>(&mut self, name: &str, archive: &mut Archive<R>) -> Result<Spooled, LoadError> {
        let number = self.entries;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(&self.directory, number.to_string().as_str(), flags, Mode::S_IRUSR);
        let mut file = File::from(fd.named("openat", || number.to_string())?);
        let (mut hash, mut size_bytes) = (Sha256::new(), 0);
        self.count(4096)?;
        archive.content(|piece| {
            self.count(piece.len() as u64)?;
            size_bytes += piece.len() as u64;
            hash.update(piece);
            file.write_all(piece).named("write", || format!("{} bytes", piece.len())).map_err(LoadError::from)
        })?;
        let digest = Digest::from_sha256(hash.finalize().into());
        if let Some(hex) = name.strip_prefix(BLOBS) {
            let expected: Digest = format!("sha256:{hex}").parse().map_err(|_malformed| {
                LoadError::Entry { name: shown(name.as_bytes()), reason: "is a blob whose name is no digest" }
            })?;
            if expected != digest {
                return Err(LoadError::Blob { expected, found: digest });
            }
        }
        Ok(Spooled { number, digest, size_bytes })
    }

    /// Counts bytes, and checks what they may exceed.
    fn count(&mut self, bytes: u64) -> Result<(), LoadError> {
        self.archive_bytes += bytes;
        self.unchecked_bytes += bytes;
        if self.archive_bytes > ARCHIVE_LIMIT_BYTES {
            return Err(LoadError::Limit { what: "bytes", limit: ARCHIVE_LIMIT_BYTES });
        }
        let Limits { ratio, ratio_free_bytes, .. } = self.shared.limits;
        if self.archive_bytes > ratio_free_bytes && self.archive_bytes / ratio > self.arrived_bytes.get() {
            return Err(LoadError::Limit { what: "times its compressed size", limit: ratio });
        }
        if self.unchecked_bytes >= self.due_bytes {
            self.unchecked_bytes = 0;
            let reserve = self.shared.limits.check_disk(&self.directory)?;
            self.due_bytes = Limits::due(DISK_CHECK_BYTES, reserve.bytes);
        }
        Ok(())
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// The file of a name, or to which the link of that name leads.
    pub(super) fn find(&self, name: &str) -> Result<&Spooled, LoadError> {
        let missing = || LoadError::Missing { name: shown(name.as_bytes()) };
        let found = self.files.get(name).ok_or_else(missing)?;
        let found = match found {
            Found::Link(target) => self.files.get(target).ok_or_else(missing)?,
            Found::File(_) => found,
        };
        match found {
            Found::File(file) => Ok(file),
            Found::Link(_) => {
                Err(LoadError::Entry { name: shown(name.as_bytes()), reason: "is a link to another link" })
            }
        }
    }

    /// The blob with this digest, if it has this size.
    pub(super) fn blob(&self, digest: &Digest, size_bytes: u64) -> Result<&Spooled, LoadError> {
        let file = self.find(&blob_name(digest))?;
        if file.size_bytes != size_bytes {
            let (digest, found_bytes) = (digest.clone(), file.size_bytes);
            return Err(LoadError::Size { digest, expected_bytes: size_bytes, found_bytes });
        }
        Ok(file)
    }

    /// The content of a file.
    pub(super) fn open(&self, file: &Spooled) -> Result<OwnedFd, LoadError> {
        let name = file.number.to_string();
        Ok(open_below(self.directory.as_fd(), name, OFlag::O_RDONLY, Resolve::BeneathNoLinks)?)
    }

    /// The content of a file that is not longer than this.
    pub(super) fn read(&self, file: &Spooled, limit_bytes: usize) -> Result<Vec<u8>, LoadError> {
        if file.size_bytes > limit_bytes as u64 {
            return Err(LoadError::Limit { what: "bytes in one document", limit: limit_bytes as u64 });
        }
        Ok(read_bounded(&self.open(file)?, limit_bytes)?)
    }
}

/// The name of a blob in an archive.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("{BLOBS}{}", digest.hex())
}

/// The name of an entry: its path without empty components and dots.
fn name_of(path: &[u8]) -> Result<String, &'static str> {
    let path = std::str::from_utf8(path).map_err(|_not_text| "has a name that is not UTF-8")?;
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("has a component ..");
    }
    Ok(parts.join("/"))
}

/// The name to which a link leads, if that is in the archive.
fn target_of(name: &str, link: &[u8]) -> Option<String> {
    let link = std::str::from_utf8(link).ok().filter(|link| !link.starts_with('/'))?;
    let mut parts: Vec<_> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// A reader that counts what passes through it.
struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(into)?;
        self.bytes.set(self.bytes.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_links_stay_inside() {
        assert_eq!(name_of(b"./blobs//sha256/./a/").unwrap(), "blobs/sha256/a");
        assert_eq!(name_of(b"/a").unwrap(), "a");
        for bad in [&b"../a"[..], b"a/../b", b"a/..", b"\xff"] {
            assert!(name_of(bad).is_err(), "{}", bad.escape_ascii());
        }
        for (name, link, want) in [
            ("a/layer.tar", "../b/layer.tar", Some("b/layer.tar")),
            ("a", "./b", Some("b")),
            ("a/b", "c//d", Some("a/c/d")),
            ("a", "../b", None),
            ("a/b", "../../b", None),
            ("a/b", "/etc/passwd", None),
        ] {
            assert_eq!(target_of(name, link.as_bytes()).as_deref(), want, "{name} -> {link}");
        }
    }
}
