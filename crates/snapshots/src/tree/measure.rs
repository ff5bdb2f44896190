//! Measuring: how much disk space a tree uses.
//!
//! The tree is a container's, which may make it as deep and as wide as it likes and change it meanwhile: neither memory
//! nor descriptors grow with it, and no link is followed.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};
use wharf_sys::error::Named;
use wharf_sys::fs::Listing;

use super::{OPEN_LIMIT, open_directory, open_parent};

/// The most hard-linked files that are remembered, so that each is counted once.
const LINKED_LIMIT: usize = 1 << 20;

/// How much disk space a tree uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of allocated blocks.
    pub bytes: u64,
    /// Inodes: files, directories, symbolic links, device nodes.
    pub inodes: u64,
}

impl Usage {
    /// What one file or directory uses, without what is in it.
    pub(crate) fn of(stat: &FileStat) -> Self {
        Self { bytes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512), inodes: 1 }
    }
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |sum, one| sum + one)
    }
}

/// How deep a walk goes. It is far deeper than any path can name, and it bounds the memory.
const DEPTH_LIMIT: usize = 1 << 17;

/// Measures the tree at an open directory, however deep it is. What vanishes or is moved during the walk is not
/// counted.
///
/// # Errors
/// The kernel's error if the top cannot be read.
pub fn measure(top: BorrowedFd<'_>) -> wharf_sys::Result<Usage> {
    let failed = || "the top of a tree".into();
    let mut count = Count { usage: Usage::default(), linked: HashSet::new() };
    count.add(&fstat(top).named("fstat", failed)?);
    let directory = open_directory(top, OsStr::new(".")).named("openat2", failed)?;
    let mut stack = vec![Level::open(directory).named("getdents64", failed)?];
    while let Some(level) = stack.last_mut() {
        let Some((stat, name)) = level.next() else {
            if leave(&mut stack).is_err() {
                // Somebody is moving directories; the next measurement may see more.
                break;
            }
            continue;
        };
        count.add(&stat);
        if is_directory(&stat) && stack.len() < DEPTH_LIMIT {
            enter(&mut stack, &name);
        }
    }
    Ok(count.usage)
}

/// A directory on the way down from the top, and the position in its listing.
struct Level {
    /// Device and inode, by which the walk recognises it on the way back.
    identity: (u64, u64),
    position: i64,
    /// `None` while the walk is far below it.
    listing: Option<Listing>,
}

impl Level {
    fn open(directory: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&directory)?;
        let listing = Listing::new(directory, 0).map_err(|error| error.errno)?;
        Ok(Self { identity: (stat.st_dev, stat.st_ino), position: 0, listing: Some(listing) })
    }

    /// The next entry that still exists.
    fn next(&mut self) -> Option<(FileStat, CString)> {
        let listing = self.listing.as_mut()?;
        loop {
            let entry = listing.read()?.ok()?;
            self.position = entry.position;
            if matches!(entry.name.to_bytes(), b"." | b"..") {
                continue;
            }
            if let Ok(stat) = fstatat(listing.directory(), &*entry.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                return Some((stat, entry.name));
            }
        }
    }
}

/// Goes down one level, and closes a directory far above.
fn enter(stack: &mut Vec<Level>, name: &CStr) {
    let Some(above) = stack.last().and_then(|level| level.listing.as_ref()) else { return };
    let opened = open_directory(above.directory(), OsStr::from_bytes(name.to_bytes())).and_then(Level::open);
    let Ok(level) = opened else { return };
    stack.push(level);
    if let Some(far) = stack.len().checked_sub(OPEN_LIMIT + 1) {
        stack[far].listing = None;
    }
}

/// Goes up one level, and reopens the directory if it was closed.
fn leave(stack: &mut Vec<Level>) -> Result<(), Errno> {
    let Some(below) = stack.pop() else { return Ok(()) };
    let Some(level) = stack.last_mut().filter(|level| level.listing.is_none()) else { return Ok(()) };
    let below = below.listing.ok_or(Errno::EBADF)?;
    let directory = open_parent(below.directory())?;
    let stat = fstat(&directory)?;
    if (stat.st_dev, stat.st_ino) != level.identity {
        return Err(Errno::ESTALE);
    }
    level.listing = Some(Listing::new(directory, level.position).map_err(|error| error.errno)?);
    Ok(())
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

struct Count {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &FileStat) {
        if stat.st_nlink > 1
            && !is_directory(stat)
            && self.linked.len() < LINKED_LIMIT
            && !self.linked.insert((stat.st_dev, stat.st_ino))
        {
            return;
        }
        self.usage = self.usage + Usage::of(stat);
    }
}
