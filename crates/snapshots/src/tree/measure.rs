//! Measuring: how much disk space a tree uses.
//!
//! The tree is a container's, which may make it as deep and as wide as it likes and change it meanwhile: neither memory
//! nor descriptors grow with it, and no link is followed. A directory that is moved ahead of the walk, again and again,
//! is walked through once.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};
use wharf_sys::error::Named;
use wharf_sys::fs::Listing;

use super::{OPEN_LIMIT, open_directory, open_parent};

/// The most directories and hard-linked files that are remembered, so that each is counted once.
const SEEN_LIMIT: usize = 1 << 20;
/// How deep a walk goes. It is far deeper than any path can name, and it bounds the memory.
const DEPTH_LIMIT: usize = 1 << 17;
/// The most entries that a walk looks at. No honest container has as many, but one may make new ones ahead of the walk
/// for ever.
const ENTRY_LIMIT: u64 = 1 << 27;

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

    /// The larger of both, in bytes and in inodes.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), inodes: self.inodes.max(other.inodes) }
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

/// How far a walk has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// To its end: this is what the trees use.
    Whole(Usage),
    /// Not to its end: this is what it has seen, and it can go on.
    Part(Usage),
    /// It has seen more entries than a walk looks at, and does not go on.
    GivenUp(Usage),
}

/// A walk that measures trees, however deep they are, a stretch at a time. Between two stretches it keeps few
/// descriptors open. What vanishes during the walk is not counted.
#[derive(Debug)]
pub struct Walk {
    /// The tops of the trees that are left; the last one is being walked through.
    tops: Vec<OwnedFd>,
    stack: Vec<Level>,
    /// What directories that are done use, and hard-linked files.
    done: Usage,
    /// Device and inode of those directories and files.
    seen: HashSet<Identity>,
    entries: u64,
}

/// Device and inode.
type Identity = (u64, u64);

/// A directory on the way down from the top, and the position in its listing.
#[derive(Debug)]
struct Level {
    /// By this the walk recognises it on the way back.
    identity: Identity,
    position: i64,
    /// `None` while the walk is far below it.
    listing: Option<Listing>,
    /// What it uses, with what has been seen in it that is neither hard-linked nor a directory.
    usage: Usage,
}

impl Walk {
    /// A walk through the trees at these open directories.
    #[must_use]
    pub fn new(tops: Vec<OwnedFd>) -> Self {
        Self { tops, stack: Vec::new(), done: Usage::default(), seen: HashSet::new(), entries: 0 }
    }

    /// Goes on for a while, by at least one step.
    ///
    /// # Errors
    /// The kernel's error if the top of a tree cannot be read.
    pub fn go_on(&mut self, stretch: Duration) -> wharf_sys::Result<Progress> {
        let begin = Instant::now();
        while !self.tops.is_empty() {
            self.step()?;
            if self.entries > ENTRY_LIMIT {
                return Ok(Progress::GivenUp(self.so_far()));
            }
            if begin.elapsed() >= stretch && !self.tops.is_empty() {
                self.close_all_but_the_last();
                return Ok(Progress::Part(self.so_far()));
            }
        }
        Ok(Progress::Whole(self.done))
    }

    /// How many directories and files it remembers, and the levels that it is in.
    pub(crate) fn remembered(&self) -> usize {
        self.seen.len() + self.stack.len()
    }

    fn close_all_but_the_last(&mut self) {
        let above = self.stack.iter_mut().rev().take(OPEN_LIMIT).skip(1);
        above.for_each(|level| level.listing = None);
    }

    fn so_far(&self) -> Usage {
        self.done + self.stack.iter().map(|level| level.usage).sum()
    }

    fn step(&mut self) -> wharf_sys::Result<()> {
        let Some(level) = self.stack.last_mut() else { return self.enter_top() };
        let Some((name, directory)) = level.next() else {
            self.leave();
            return Ok(());
        };
        self.entries += 1;
        let Ok(stat) = fstatat(directory.directory(), &*name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
            return Ok(());
        };
        let (identity, usage) = ((stat.st_dev, stat.st_ino), Usage::of(&stat));
        if is_directory(&stat) {
            if !self.seen.contains(&identity) && !self.enter(&name) {
                self.count(identity, usage);
            }
        } else if stat.st_nlink > 1 {
            self.count(identity, usage);
        } else {
            level.usage = level.usage + usage;
        }
        Ok(())
    }

    /// Counts a hard-linked file, or a directory that is done, unless it has been counted.
    fn count(&mut self, identity: Identity, usage: Usage) {
        if self.seen.len() >= SEEN_LIMIT || self.seen.insert(identity) {
            self.done = self.done + usage;
        }
    }

    fn enter_top(&mut self) -> wharf_sys::Result<()> {
        let failed = || "the top of a tree".into();
        let Some(top) = self.tops.last() else { return Ok(()) };
        let directory = open_directory(top.as_fd(), OsStr::new(".")).named("openat2", failed)?;
        self.stack.push(Level::open(directory).named("getdents64", failed)?);
        Ok(())
    }

    /// Goes down one level, if it can, and closes a directory far above.
    fn enter(&mut self, name: &CStr) -> bool {
        let above = self.stack.last().and_then(|level| level.listing.as_ref());
        let Some(above) = above.filter(|_| self.stack.len() < DEPTH_LIMIT) else { return false };
        let opened = open_directory(above.directory(), OsStr::from_bytes(name.to_bytes()));
        let Ok(level) = opened.and_then(Level::open) else { return false };
        self.stack.push(level);
        if let Some(far) = self.stack.len().checked_sub(OPEN_LIMIT + 1) {
            self.stack[far].listing = None;
        }
        true
    }

    /// Goes up one level from a directory that is done. If somebody has moved a directory, so that the way back is
    /// lost, the walk begins again at the top, and leaves out what is done: nobody hides anything by moving it.
    fn leave(&mut self) {
        let Some(below) = self.stack.pop() else { return };
        self.count(below.identity, below.usage);
        match self.stack.last_mut() {
            None => drop(self.tops.pop()),
            Some(level) if level.listing.is_some() => {}
            Some(level) => {
                if level.reopen(below).is_err() {
                    self.stack.clear();
                }
            }
        }
    }
}

impl Level {
    fn open(directory: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&directory)?;
        let listing = Listing::new(directory, 0).map_err(|error| error.errno)?;
        Ok(Self {
            identity: (stat.st_dev, stat.st_ino),
            position: 0,
            listing: Some(listing),
            usage: Usage::of(&stat),
        })
    }

    /// Opens it again from a directory in it.
    fn reopen(&mut self, below: Self) -> Result<(), Errno> {
        let below = below.listing.ok_or(Errno::EBADF)?;
        let directory = open_parent(below.directory())?;
        let stat = fstat(&directory)?;
        if (stat.st_dev, stat.st_ino) != self.identity {
            return Err(Errno::ESTALE);
        }
        self.listing = Some(Listing::new(directory, self.position).map_err(|error| error.errno)?);
        Ok(())
    }

    /// The next entry, which may have vanished, and the listing that it is in.
    fn next(&mut self) -> Option<(CString, &Listing)> {
        let listing = self.listing.as_mut()?;
        loop {
            let entry = listing.read()?.ok()?;
            self.position = entry.position;
            if !matches!(entry.name.to_bytes(), b"." | b"..") {
                return Some((entry.name, self.listing.as_ref()?));
            }
        }
    }
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}
