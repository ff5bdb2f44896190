//! An image's layers, put together as overlayfs will show them.
//!
//! A layer is unpacked once and shared by many images, so its unpacking does not look at the layers below it. What
//! depends on the whole chain is settled here. A directory that a layer implies, because it has files in it but no
//! entry for it, keeps the mode, owner and attributes of the layers below. Overlayfs shows those of the topmost layer,
//! so every such directory is made, empty and with the right attributes, in one thin layer on top. If the directory is
//! a symbolic link further down, the layer's files belong where the link leads: see [`crate::relocate`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use wharf_snapshots::tree::Usage;
use wharf_sys::Error;
use wharf_sys::error::Named;

use crate::limits::Limits;
use crate::unpack::{Contents, Effect, OPAQUE, UnpackError, is_whiteout, look, open_beneath, shown};

/// Overlayfs accepts 500 lower layers, and one of them may be the thin layer.
const LAYERS_LIMIT: usize = 499;

/// The most components of paths that are looked up for one image: some seconds of a processor. Real images need
/// thousands.
const COMPONENTS_LIMIT: u64 = 2_000_000;

/// How much may still be looked up for one image. Its commit cannot be interrupted, and others wait for their turn.
#[derive(Debug)]
pub(crate) struct Lookups(Cell<u64>);

impl Lookups {
    pub(crate) fn new() -> Self {
        Self(Cell::new(COMPONENTS_LIMIT))
    }

    fn take(&self) -> Result<(), ChainError> {
        self.0.set(self.0.get().checked_sub(1).ok_or(ChainError::TooMuchToLookUp)?);
        Ok(())
    }
}

/// The most directories and files that are copied for one image, in whatever copies of its layers: some seconds of a
/// disk. A few bytes of an archive can ask for as many, and a layer is rarely copied more than once.
const COPIES_LIMIT: u64 = 250_000;
/// After how many of them the disk is looked at again.
const DISK_CHECK: u64 = 128;

/// What may still be made for one image.
#[derive(Debug)]
pub(crate) struct Copies<'a> {
    left: Cell<u64>,
    limits: &'a Limits,
}

impl<'a> Copies<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { left: Cell::new(COPIES_LIMIT), limits }
    }

    /// Counts a directory or file that is about to be made below this directory.
    pub(crate) fn take(&self, root: &OwnedFd) -> Result<(), ChainError> {
        let left = self.left.get();
        if left.is_multiple_of(DISK_CHECK) {
            self.limits.check_disk(root).map_err(ChainError::Disk)?;
        }
        self.left.set(left.checked_sub(1).ok_or(ChainError::TooMuchToCopy)?);
        Ok(())
    }
}

/// Why layers cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// There are more layers than overlayfs can mount.
    #[error("the image has {count} layers with content; at most {LAYERS_LIMIT} can be mounted")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A layer has files below a path that is a symbolic link in a lower layer, and they cannot be put where it leads.
    #[error(
        "layer {layer} has files below {path:?}, where a lower layer has a symbolic link, and they cannot be put where it \
         leads; build the image so that the layer names the directory or the link's target"
    )]
    HiddenLink {
        /// The layer.
        layer: String,
        /// The directory, shortened to 200 characters.
        path: String,
    },
    /// A layer has a hard link to a file that neither it nor a lower layer has.
    #[error(
        "layer {layer} has a hard link {path:?} to {target:?}, which is neither in it nor a file of a lower layer"
    )]
    NoTarget {
        /// The layer.
        layer: String,
        /// The link, shortened to 200 characters.
        path: String,
        /// The link's target, shortened in the same way.
        target: String,
    },
    /// The names to be looked up in the layers are too many or too long.
    #[error(
        "the layers of the image have too many files in directories without an entry of their own, or too many hard links to \
         files of lower layers; rebuild the image with those entries, or in one layer"
    )]
    TooMuchToLookUp,
    /// Too much of the layers must be copied.
    #[error(
        "the layers of the image have too many directories and files that must be copied (at most {COPIES_LIMIT}), because a \
         layer has files below symbolic links of lower layers; rebuild the image in one layer"
    )]
    TooMuchToCopy,
    /// Only the disk's reserve is left, or the disk cannot be looked at.
    #[error(transparent)]
    Disk(UnpackError),
    /// The kernel returned an error.
    #[error("cannot combine the layers of the image at {path:?}")]
    System {
        /// The directory, shortened to 200 characters.
        path: String,
        /// The call that failed.
        #[source]
        source: Error,
    },
}

/// A layer of a chain.
#[derive(Debug)]
pub(crate) struct ChainLayer {
    pub(crate) name: String,
    pub(crate) root: OwnedFd,
    pub(crate) contents: Arc<Contents>,
}

/// The layers as they will be mounted.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Top first, without layers that change nothing or that are wholly hidden.
    pub(crate) layers: Vec<ChainLayer>,
    /// The directories of the thin layer, each with the layer that has its attributes; parents before children.
    thin: BTreeMap<Vec<u8>, usize>,
}

/// What a layer has at a path.
pub(crate) enum Found {
    Nothing,
    Directory(OwnedFd),
    /// Something that is neither a directory nor a link.
    File,
    /// A whiteout, or something on the way that is not a directory.
    Other,
    /// A symbolic link at the path itself, and its target.
    Link(Vec<u8>),
}

/// What becomes of a chain of layers.
#[derive(Debug)]
pub(crate) enum Plan {
    Whole(Chain),
    /// The layers that matter, bottom first; one of them must be relocated before they can be put together.
    Relocate(Vec<ChainLayer>, Relocation),
    /// The same, where one of them has hard links to files of lower layers.
    Complete(Vec<ChainLayer>, usize),
}

/// What one copy of a layer puts elsewhere.
#[derive(Debug)]
pub(crate) struct Relocation {
    pub(crate) layer: usize,
    /// At least one, and none is below another.
    pub(crate) links: Links,
}

/// Directories that a layer implies and that are symbolic links further down, with the links' targets.
pub(crate) type Links = BTreeMap<Vec<u8>, Vec<u8>>;

/// Which layer has the attributes of an implied directory.
enum Attribution {
    /// The layer that is shown has the right ones.
    Shown,
    Layer(usize),
    /// The directory is a link for the layer that implies it.
    Link {
        layer: usize,
        target: Vec<u8>,
    },
}

/// Puts layers together. They come bottom first, as in a manifest.
pub(crate) fn plan(layers: Vec<ChainLayer>, lookups: &Lookups) -> Result<Plan, ChainError> {
    let layers = visible(layers);
    if layers.len() > LAYERS_LIMIT {
        return Err(ChainError::TooMany { count: layers.len() });
    }
    // The lowest layer first: the links of the others may lead to its own.
    if let Some(at) = layers.iter().rposition(|layer| !layer.contents.links.is_empty()) {
        let at = layers.len() - 1 - at;
        return Ok(Plan::Complete(layers.into_iter().rev().collect(), at));
    }
    let mut chain = Chain { layers, thin: BTreeMap::new() };
    let mut implied: Vec<Vec<u8>> = Vec::new();
    for layer in &chain.layers {
        implied.extend(layer.contents.implied.iter().cloned());
    }
    implied.sort();
    implied.dedup();
    let mut relocation: Option<Relocation> = None;
    for path in implied {
        match chain.attributes_of(&path, lookups)? {
            Attribution::Shown => {}
            Attribution::Layer(source) => drop(chain.thin.insert(path, source)),
            Attribution::Link { layer, target } => {
                let relocation = relocation.get_or_insert(Relocation { layer, links: Links::new() });
                if layer == relocation.layer {
                    relocation.add(path, target);
                }
            }
        }
    }
    if let Some(relocation) = relocation {
        let layer = chain.layers.len() - 1 - relocation.layer;
        chain.layers.reverse();
        return Ok(Plan::Relocate(chain.layers, Relocation { layer, ..relocation }));
    }
    chain.add_parents(lookups)?;
    Ok(Plan::Whole(chain))
}

impl Relocation {
    /// Adds a link, unless it is below another: then it is found again in the copy, where that one leads.
    fn add(&mut self, path: Vec<u8>, target: Vec<u8>) {
        if !ways(&path).any(|above| self.links.contains_key(above)) {
            self.links.insert(path, target);
        }
    }
}

/// Overlayfs refuses the same directory twice. The lower copy of a layer does nothing that the upper copy does not do
/// again.
fn visible(layers: Vec<ChainLayer>) -> Vec<ChainLayer> {
    let mut visible: Vec<ChainLayer> = Vec::new();
    for layer in layers.into_iter().rev() {
        let effect = layer.contents.effect;
        if effect != Effect::Nothing && visible.iter().all(|above| above.name != layer.name) {
            visible.push(layer);
        }
        if effect == Effect::HidesAll {
            break;
        }
    }
    visible
}

impl Chain {
    /// Whether the image needs a thin layer on top of the shared ones.
    pub(crate) fn needs_thin_layer(&self) -> bool {
        // Overlayfs needs at least one lower layer, even for an image without layers.
        !self.thin.is_empty() || self.layers.is_empty()
    }

    /// Finds the layer that has the attributes of an implied directory; layers are counted from the top.
    fn attributes_of(&self, path: &[u8], lookups: &Lookups) -> Result<Attribution, ChainError> {
        let mut top: Option<(usize, OwnedFd)> = None;
        for (at, layer) in self.layers.iter().enumerate() {
            let (found, cut) = locate(&layer.root, path, lookups)?;
            match found {
                Found::Nothing => {}
                Found::File | Found::Other => return Ok(Attribution::Shown),
                Found::Link(target) => {
                    let link = |(layer, _)| Attribution::Link { layer, target };
                    return Ok(top.map_or(Attribution::Shown, link));
                }
                Found::Directory(fd) if layer.contents.implies(path) => {
                    top.get_or_insert((at, fd));
                }
                Found::Directory(fd) => {
                    let Some((_, top)) = &top else { return Ok(Attribution::Shown) };
                    let differs = attributes(&fd, path)? != attributes(top, path)?;
                    return Ok(if differs { Attribution::Layer(at) } else { Attribution::Shown });
                }
            }
            if cut {
                break;
            }
        }
        Ok(Attribution::Shown)
    }

    /// Adds the parents of each directory to the thin layer, with the attributes that they show without it.
    fn add_parents(&mut self, lookups: &Lookups) -> Result<(), ChainError> {
        let paths: Vec<_> = self.thin.keys().cloned().collect();
        for path in paths {
            for parent in std::iter::once(&b""[..]).chain(ways(&path)) {
                if self.thin.contains_key(parent) {
                    continue;
                }
                for (at, layer) in self.layers.iter().enumerate() {
                    if let (Found::Directory(_), _) = locate(&layer.root, parent, lookups)? {
                        self.thin.insert(parent.to_vec(), at);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the thin layer in an empty directory.
    pub(crate) fn make_thin_layer(
        &self,
        root: &OwnedFd,
        copies: &Copies<'_>,
    ) -> Result<Contents, ChainError> {
        fchmod(root, Mode::from_bits_truncate(0o755))
            .named("fchmod", || "0755".into())
            .map_err(|source| system(b"/", source))?;
        for (path, source) in &self.thin {
            let failed = |source| system(path, source);
            copies.take(root)?;
            if !path.is_empty() {
                make(root, path).map_err(failed)?;
            }
            let made = open(root, path)?;
            let from = open(&self.layers[*source].root, path)?;
            attributes(&from, path)?.set(&made).map_err(failed)?;
        }
        // Making a directory has changed its parent's time.
        for (path, source) in self.thin.iter().rev() {
            copy_time(&open(&self.layers[*source].root, path)?, &open(root, path)?)
                .map_err(|source| system(path, source))?;
        }
        let inodes = self.thin.len().max(1) as u64;
        Ok(Contents { usage: Usage { bytes: inodes * 4096, inodes }, ..Contents::default() })
    }
}

/// Mode, owner and extended attributes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: Vec<(String, Vec<u8>)>,
}

pub(crate) fn attributes(directory: &OwnedFd, path: &[u8]) -> Result<Attributes, ChainError> {
    let failed = |source| system(path, source);
    let stat = fstat(directory).named("fstat", || shown(path)).map_err(failed)?;
    let fd = directory.as_fd();
    let mut names = wharf_sys::xattr::names(fd).map_err(failed)?;
    names.retain(|name| name.starts_with("user."));
    names.sort();
    let value = |name: String| {
        let value = wharf_sys::xattr::value(fd, &name).map_err(failed)?.unwrap_or_default();
        Ok((name, value))
    };
    let xattrs = names.into_iter().map(value).collect::<Result<_, _>>()?;
    Ok(Attributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, xattrs })
}

impl Attributes {
    pub(crate) fn set(&self, directory: &OwnedFd) -> wharf_sys::Result<()> {
        let owner = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        fchown(directory, Some(owner.0), Some(owner.1))
            .named("fchown", || format!("{}:{}", self.uid, self.gid))?;
        fchmod(directory, Mode::from_bits_truncate(self.mode))
            .named("fchmod", || format!("{:04o}", self.mode))?;
        self.xattrs.iter().try_for_each(|(name, value)| wharf_sys::xattr::set(directory.as_fd(), name, value))
    }
}

/// The directories on the way to a path, and the path itself, without the root.
pub(crate) fn ways(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    slashes.chain([path.len()]).filter(|end| *end > 0).map(|end| &path[..end])
}

/// Makes a directory whose parent exists.
pub(crate) fn make(root: &OwnedFd, path: &[u8]) -> wharf_sys::Result<()> {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
    let opened = open_beneath(root, parent).named("openat2", || shown(parent))?;
    mkdirat(&opened, OsStr::from_bytes(name), Mode::S_IRWXU).named("mkdirat", || shown(path))
}

/// Copies a directory's time to another.
pub(crate) fn copy_time(from: &OwnedFd, to: &OwnedFd) -> wharf_sys::Result<()> {
    let stat = fstat(from).named("fstat", || "the directory to copy the time from".into())?;
    let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    futimens(to, &time, &time).named("futimens", || format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec))
}

/// What a layer has at a path, and whether it hides what lower layers have there.
pub(crate) fn locate(root: &OwnedFd, path: &[u8], lookups: &Lookups) -> Result<(Found, bool), ChainError> {
    let mut here = open(root, b"")?;
    let mut cut = false;
    let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        lookups.take()?;
        cut |=
            wharf_sys::xattr::value(here.as_fd(), OPAQUE).map_err(|source| system(path, source))?.is_some();
        match open_beneath(&here, part) {
            Ok(below) => here = below,
            Err(Errno::ENOENT) => return Ok((Found::Nothing, cut)),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let last = parts.peek().is_none();
                return Ok((if last { kind(&here, part) } else { Found::Other }, true));
            }
            Err(errno) => return Err(system(path, Error::new("openat2", shown(part), errno))),
        }
    }
    Ok((Found::Directory(here), cut))
}

/// The kind of an entry that is not a directory.
fn kind(directory: &OwnedFd, name: &[u8]) -> Found {
    match (readlinkat(directory, OsStr::from_bytes(name)), look(directory, name)) {
        (Ok(target), _) => Found::Link(target.into_vec()),
        (_, Some(stat)) if !is_whiteout(&stat) => Found::File,
        _ => Found::Other,
    }
}

pub(crate) fn open(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, ChainError> {
    open_beneath(root, path).named("openat2", || shown(path)).map_err(|source| system(path, source))
}

pub(crate) fn system(path: &[u8], source: Error) -> ChainError {
    ChainError::System { path: shown(path), source }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::OFlag;

    use super::*;

    #[test]
    fn what_is_copied_has_a_bound_for_the_whole_image() {
        let dir = tempfile::tempdir().unwrap();
        let root = wharf_sys::fs::open(dir.path(), OFlag::O_RDONLY | OFlag::O_DIRECTORY).unwrap();
        let limits = Limits::default();
        let copies = Copies { left: Cell::new(1), limits: &limits };
        copies.take(&root).unwrap();
        assert!(matches!(copies.take(&root), Err(ChainError::TooMuchToCopy)));
    }

    #[test]
    fn what_is_looked_up_has_a_bound_for_the_whole_image() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let root = wharf_sys::fs::open(dir.path(), OFlag::O_RDONLY | OFlag::O_DIRECTORY).unwrap();
        let lookups = Lookups(Cell::new(3));
        assert!(matches!(locate(&root, b"a/b", &lookups), Ok((Found::Directory(_), false))));
        assert!(matches!(locate(&root, b"a/b", &lookups), Err(ChainError::TooMuchToLookUp)));
        assert!(matches!(locate(&root, b"a", &lookups), Err(ChainError::TooMuchToLookUp)));
    }
}
