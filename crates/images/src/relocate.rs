//! A layer with files below a name that is a symbolic link in a lower layer: `bin/tool` over a base with `bin -> usr/bin`.
//!
//! Builders that append an archive to an image without a look into it make such layers. Unpacked one over the other, as
//! the peers do it, such a file is written through the link. Here the layer is made once more for this image: its files
//! by hard links, and those below the name at the place where the link leads.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use wharf_snapshots::tree::Usage;
use wharf_sys::Error;
use wharf_sys::error::Named;

use crate::chain::{ChainError, ChainLayer, Link, attributes, open, system};
use crate::unpack::{Contents, OPAQUE, open_beneath, shown};

/// Makes a layer once more in an empty directory.
///
/// # Errors
/// HiddenLink if the link leads to itself, or through something in the layer that is no directory.
pub(crate) fn relocate(layer: &ChainLayer, link: &Link, root: &OwnedFd) -> Result<Contents, ChainError> {
    let impossible = || ChainError::HiddenLink { layer: layer.name.clone(), path: shown(&link.path) };
    let target = leads_to(&link.path, &link.target).ok_or_else(impossible)?;
    let mut copy = Copy { layer, link, root, implied: BTreeSet::new(), made: 0 };
    let copied = copy.root().and_then(|()| {
        copy.make_way(&target)?;
        copy.merge(&link.path, &target)
    });
    copied.map_err(|error| match error {
        ChainError::System { source, .. }
            if matches!(source.errno, Errno::ENOTDIR | Errno::ELOOP | Errno::EISDIR) =>
        {
            impossible()
        }
        other => other,
    })?;
    let usage = Usage { bytes: copy.made * 4096, inodes: copy.made };
    Ok(Contents { usage, implied: copy.implied.into_iter().collect(), effect: layer.contents.effect })
}

/// Where a link leads, as a path without links, dots and slashes too many. `None` if that is the link or below it.
fn leads_to(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    if !target.starts_with(b"/") {
        parts.extend(path.split(|byte| *byte == b'/'));
        parts.pop();
    }
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let leads_to = parts.join(&b'/');
    let below = [path, b"/"].concat();
    (leads_to != path && !leads_to.starts_with(&below)).then_some(leads_to)
}

/// A layer that is made once more.
struct Copy<'a> {
    layer: &'a ChainLayer,
    link: &'a Link,
    root: &'a OwnedFd,
    /// Directories of the copy that it does not name.
    implied: BTreeSet<Vec<u8>>,
    /// Directories that were made.
    made: u64,
}

impl Copy<'_> {
    /// Copies all but what has to move.
    fn root(&mut self) -> Result<(), ChainError> {
        self.made = 1;
        self.describe(b"", b"")?;
        self.merge(b"", b"")
    }

    /// Copies what is in a directory of the layer into one of the copy.
    fn merge(&mut self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let source = open(&self.layer.root, from)?;
        let destination = open(self.root, to)?;
        for (name, kind) in entries(&source, from)? {
            let (from, to) = (join(from, &name), join(to, &name));
            if from == self.link.path {
                continue;
            }
            if kind == Type::Directory {
                self.directory(&from, &to)?;
            } else {
                put(&source, &destination, &name).map_err(|source| system(&to, source))?;
            }
        }
        self.stamp(from, to)
    }

    fn directory(&mut self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let implied = self.is_implied(from);
        if self.make(to)? || (!implied && self.implied.remove(to)) {
            self.describe(from, to)?;
            if implied {
                self.implied.insert(to.to_vec());
            }
        }
        self.merge(from, to)
    }

    /// Makes the directories that are missing on the way to one, as implied ones.
    fn make_way(&mut self, path: &[u8]) -> Result<(), ChainError> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in slashes.chain([path.len()]).filter(|end| *end > 0) {
            let path = &path[..end];
            if self.make(path)? {
                self.describe(&self.link.path, path)?;
                self.implied.insert(path.to_vec());
            }
        }
        Ok(())
    }

    /// Makes a directory; `false` if it is there.
    fn make(&mut self, path: &[u8]) -> Result<bool, ChainError> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        match mkdirat(open(self.root, parent)?, OsStr::from_bytes(name), Mode::S_IRWXU) {
            Ok(()) => {
                self.made += 1;
                Ok(true)
            }
            Err(Errno::EEXIST) => open(self.root, path).map(|_directory| false),
            Err(errno) => Err(system(path, Error::new("mkdirat", "", errno))),
        }
    }

    /// Gives a directory of the copy what one of the layer has.
    fn describe(&mut self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let failed = |source| system(to, source);
        let (source, destination) = (open(&self.layer.root, from)?, open(self.root, to)?);
        attributes(&source, from)?.set(&destination).map_err(failed)?;
        if let Some(mark) = wharf_sys::xattr::value(source.as_fd(), OPAQUE).map_err(failed)? {
            wharf_sys::xattr::set(destination.as_fd(), OPAQUE, &mark).map_err(failed)?;
        }
        if from.is_empty() && self.is_implied(from) {
            self.implied.insert(Vec::new());
        }
        self.stamp(from, to)
    }

    /// Gives a directory of the copy the time of one of the layer.
    fn stamp(&self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let stat = fstat(open(&self.layer.root, from)?).named("fstat", String::new);
        let stat = stat.map_err(|source| system(from, source))?;
        let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        let set = futimens(open(self.root, to)?, &time, &time).named("futimens", String::new);
        set.map_err(|source| system(to, source))
    }

    fn is_implied(&self, path: &[u8]) -> bool {
        self.layer.contents.implied.iter().any(|implied| implied == path)
    }
}

/// The names in a directory, and what they are.
fn entries(directory: &OwnedFd, path: &[u8]) -> Result<Vec<(Vec<u8>, Type)>, ChainError> {
    let failed = |errno| system(path, Error::new("getdents", "", errno));
    let own = open_beneath(directory, b"").map_err(failed)?;
    let mut all = Vec::new();
    for entry in Dir::from_fd(own).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            all.push((name.to_vec(), kind(directory, name, entry.file_type())));
        }
    }
    Ok(all)
}

/// What stands under a name. Not every file system says so in its directories.
fn kind(directory: &OwnedFd, name: &[u8], told: Option<Type>) -> Type {
    told.unwrap_or_else(|| match open_beneath(directory, name) {
        Ok(_directory) => Type::Directory,
        Err(_) => Type::File,
    })
}

/// Links a file, which wins over what is there.
fn put(from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> wharf_sys::Result<()> {
    let name = OsStr::from_bytes(name);
    let link = || linkat(from, name, to, name, AtFlags::empty());
    let linked = match link() {
        Err(Errno::EEXIST) => unlinkat(to, name, UnlinkatFlags::NoRemoveDir).and_then(|()| link()),
        other => other,
    };
    linked.named("linkat", || name.to_string_lossy().into_owned())
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_within_the_image() {
        let table: [(&str, &str, Option<&str>); 9] = [
            ("bin", "usr/bin", Some("usr/bin")),
            ("bin", "/usr/bin/", Some("usr/bin")),
            ("a/b", "c", Some("a/c")),
            ("a/b", "../c/./d", Some("c/d")),
            ("a/b", "../../../..", Some("")),
            ("a", "/", Some("")),
            ("a", "a", None),
            ("a", "./b/../a/x", None),
            ("a/b", "../a/b/c", None),
        ];
        for (path, target, expected) in table {
            let found = leads_to(path.as_bytes(), target.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path} -> {target}");
        }
    }
}
