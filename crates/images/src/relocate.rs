//! Layers with files below paths that are symbolic links in a lower layer: `bin/tool` over a base with `bin ->
//! usr/bin`.
//!
//! Builders that append an archive to an image without reading the image make such layers. Runtimes that unpack layers
//! one over the other write such a file through the link. Here a copy of the layer is made for this image: its files
//! are hard links, and those below such paths are put where the links lead. What the layer has there under its own name
//! is merged with them: directories have the contents of both, whiteouts give way to what the layer has itself, and of
//! two files the one below the link stays, because the order of the archive's entries is not known any more.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::SFlag;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use wharf_snapshots::list_names;
use wharf_snapshots::tree::Usage;
use wharf_sys::error::Named;

use crate::chain::{self, ChainError, ChainLayer, Copies, Links, attributes, copy_time, open, system, ways};
use crate::unpack::{Contents, Effect, OPAQUE, is_kind, is_whiteout, join, look, plain, shown};

/// Makes a relocated copy of a layer in an empty directory.
///
/// # Errors
/// HiddenLink if a link leads to itself, or through something in the layer that is not a directory.
pub(crate) fn relocate(
    layer: &ChainLayer,
    links: &Links,
    root: &OwnedFd,
    copies: &Copies<'_>,
) -> Result<Contents, ChainError> {
    let mut copy = Copy::new(layer, links, root, copies)?;
    for (path, target) in links {
        let impossible = || ChainError::HiddenLink { layer: layer.name.clone(), path: shown(path) };
        let target = leads_to(path, target).ok_or_else(impossible)?;
        let moved = copy.make_way(&target, path).and_then(|()| copy.merge(path, &target));
        moved.map_err(|error| match error {
            ChainError::System { source, .. }
                if matches!(source.errno, Errno::ENOTDIR | Errno::ELOOP | Errno::EISDIR) =>
            {
                impossible()
            }
            other => other,
        })?;
    }
    Ok(copy.finish())
}

/// Where a link leads, as a path without links, dots and redundant slashes. `None` if that is the link or below it.
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

/// A copy of a layer.
pub(crate) struct Copy<'a> {
    layer: &'a ChainLayer,
    root: &'a OwnedFd,
    /// The directories that go to other places in the copy.
    but: &'a Links,
    /// Directories in the copy that the layer implies.
    implied: BTreeSet<Vec<u8>>,
    /// How many directories have been made.
    made: u64,
    effect: Effect,
    copies: &'a Copies<'a>,
}

impl<'a> Copy<'a> {
    /// Copies a layer into an empty directory, except the directories that are links for it.
    pub(crate) fn new(
        layer: &'a ChainLayer,
        but: &'a Links,
        root: &'a OwnedFd,
        copies: &'a Copies<'a>,
    ) -> Result<Self, ChainError> {
        let effect = layer.contents.effect;
        let mut copy = Self { layer, root, but, implied: BTreeSet::new(), made: 1, effect, copies };
        copy.describe(b"", b"")?;
        copy.merge(b"", b"")?;
        Ok(copy)
    }

    /// Adds a file from any layer, at any path of the copy.
    pub(crate) fn take(&mut self, from: &OwnedFd, path: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let ((source, name), (parent, new_name)) = (split(path), split(to));
        self.make_plain_way(parent)?;
        let (source, destination) = (open(from, source)?, open(self.root, parent)?);
        self.copies.take(self.root)?;
        put(&source, name, &destination, new_name).map_err(|source| system(to, source))?;
        // The directory keeps its time, or gets that of the one in the lower layer.
        let own = open(&self.layer.root, parent);
        copy_time(own.as_ref().unwrap_or(&source), &destination).map_err(|source| system(to, source))
    }

    /// The contents of the copy.
    pub(crate) fn finish(self) -> Contents {
        Contents {
            usage: Usage { bytes: self.made * 4096, inodes: self.made },
            implied: self.implied.into_iter().collect(),
            links: Vec::new(),
            effect: self.effect,
        }
    }

    /// Copies the contents of a directory of the layer into a directory of the copy.
    fn merge(&mut self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let source = open(&self.layer.root, from)?;
        let destination = open(self.root, to)?;
        if wharf_sys::xattr::value(source.as_fd(), OPAQUE).map_err(|source| system(from, source))?.is_some() {
            self.hide_below(to)?;
        }
        for name in list_names(source.as_fd()).map_err(|source| system(from, source))? {
            let name = name.as_bytes();
            let (from, to) = (join(from, name), join(to, name));
            if self.but.contains_key(&from) {
                continue;
            }
            let stat = look(&source, name);
            if stat.is_some_and(|stat| is_kind(&stat, SFlag::S_IFDIR)) {
                self.directory(&from, &to)?;
                continue;
            }
            match look(&destination, name) {
                Some(own) if stat.is_some_and(|stat| is_whiteout(&stat)) => {
                    if is_kind(&own, SFlag::S_IFDIR) {
                        self.hide_below(&to)?;
                    }
                }
                _ => {
                    self.copies.take(self.root)?;
                    put(&source, name, &destination, name).map_err(|source| system(&to, source))?;
                }
            }
        }
        self.stamp(from, to)
    }

    fn directory(&mut self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let implied = self.layer.contents.implies(from);
        if self.make(to)? || (!implied && self.implied.remove(to)) {
            self.describe(from, to)?;
            if implied {
                self.implied.insert(to.to_vec());
            }
        }
        self.merge(from, to)
    }

    /// Makes the missing directories on the way to a path, as implied ones with the attributes of one of the layer.
    fn make_way(&mut self, path: &[u8], like: &[u8]) -> Result<(), ChainError> {
        for path in ways(path) {
            if self.make(path)? {
                self.describe(like, path)?;
                self.implied.insert(path.to_vec());
            }
        }
        Ok(())
    }

    /// The same with the attributes of a directory that no entry names.
    fn make_plain_way(&mut self, path: &[u8]) -> Result<(), ChainError> {
        for path in ways(path) {
            if self.make(path)? {
                plain(&open(self.root, path)?).map_err(|source| system(path, source))?;
                self.implied.insert(path.to_vec());
            }
        }
        Ok(())
    }

    /// Makes a directory; `false` if it exists.
    fn make(&mut self, path: &[u8]) -> Result<bool, ChainError> {
        self.copies.take(self.root)?;
        match chain::make(self.root, path) {
            Ok(()) => {
                self.made += 1;
                Ok(true)
            }
            Err(error) if error.errno == Errno::EEXIST => self.replace_whiteout(path),
            Err(error) => Err(system(path, error)),
        }
    }

    /// Makes a directory that is opaque in place of a whiteout; `false` if a directory exists.
    fn replace_whiteout(&mut self, path: &[u8]) -> Result<bool, ChainError> {
        let (parent, name) = split(path);
        let parent = open(self.root, parent)?;
        if !look(&parent, name).is_some_and(|stat| is_whiteout(&stat)) {
            return open(self.root, path).map(|_directory| false);
        }
        unlinkat(&parent, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir)
            .named("unlinkat", || shown(path))
            .and_then(|()| chain::make(self.root, path))
            .map_err(|source| system(path, source))?;
        self.made += 1;
        self.hide_below(path).map(|()| true)
    }

    /// Makes a directory of the copy hide what lower layers have in it.
    fn hide_below(&mut self, path: &[u8]) -> Result<(), ChainError> {
        if path.is_empty() {
            self.effect = Effect::HidesAll;
        }
        wharf_sys::xattr::set(open(self.root, path)?.as_fd(), OPAQUE, b"y")
            .map_err(|source| system(path, source))
    }

    /// Gives a directory of the copy the attributes of a directory of the layer.
    fn describe(&mut self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        let failed = |source| system(to, source);
        let (source, destination) = (open(&self.layer.root, from)?, open(self.root, to)?);
        attributes(&source, from)?.set(&destination).map_err(failed)?;
        if from.is_empty() && self.layer.contents.implies(from) {
            self.implied.insert(Vec::new());
        }
        self.stamp(from, to)
    }

    /// Gives a directory of the copy the time of a directory of the layer.
    fn stamp(&self, from: &[u8], to: &[u8]) -> Result<(), ChainError> {
        copy_time(&open(&self.layer.root, from)?, &open(self.root, to)?).map_err(|source| system(to, source))
    }
}

/// A path's directory and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    slash.map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

/// Links a file, which replaces what is there.
fn put(from: &OwnedFd, name: &[u8], to: &OwnedFd, new_name: &[u8]) -> wharf_sys::Result<()> {
    let (name, new_name) = (OsStr::from_bytes(name), OsStr::from_bytes(new_name));
    let link = || linkat(from, name, to, new_name, AtFlags::empty());
    let linked = match link() {
        Err(Errno::EEXIST) => unlinkat(to, new_name, UnlinkatFlags::NoRemoveDir).and_then(|()| link()),
        other => other,
    };
    linked.named("linkat", || new_name.to_string_lossy().into_owned())
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
