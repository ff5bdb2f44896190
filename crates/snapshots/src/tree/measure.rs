//! Measuring: what a tree takes on disk.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use nix::dir::Type;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};
use wharf_sys::error::Named;

use super::{Listing, OPEN_LIMIT};

/// Files with more than one name are counted once, up to this many of them.
const LINKED_LIMIT: usize = 1 << 20;

/// What a tree takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of allocated blocks.
    pub bytes: u64,
    /// Inodes: files, directories, links, nodes.
    pub inodes: u64,
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

/// Measures the tree at an open directory. Directories deeper than 48 levels are counted without their content; what
/// vanishes meanwhile is not counted.
///
/// # Errors
/// The kernel's, if the top cannot be read.
pub fn measure(top: BorrowedFd<'_>) -> wharf_sys::Result<Usage> {
    let listing = Listing::open(top, OsStr::new(".")).named("openat2", || "the top of a tree".into())?;
    let mut count = Count { usage: Usage::default(), linked: HashSet::new() };
    count.add(&fstat(top).named("fstat", String::new)?);
    let mut stack = vec![listing];
    loop {
        let room = stack.len() < OPEN_LIMIT;
        let Some(level) = stack.last_mut() else { break };
        let Some(Ok(entry)) = level.entries.next() else {
            stack.pop();
            continue;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = fstatat(&level.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        count.add(&stat);
        let name = OsStr::from_bytes(name.to_bytes()).to_owned();
        let is_directory = matches!(entry.file_type(), Some(Type::Directory) | None);
        if is_directory
            && room
            && let Ok(below) = Listing::open(level.fd.as_fd(), &name)
        {
            stack.push(below);
        }
    }
    Ok(count.usage)
}

struct Count {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &FileStat) {
        let is_directory =
            stat.st_mode & nix::sys::stat::SFlag::S_IFMT.bits() == nix::sys::stat::SFlag::S_IFDIR.bits();
        if stat.st_nlink > 1
            && !is_directory
            && self.linked.len() < LINKED_LIMIT
            && !self.linked.insert((stat.st_dev, stat.st_ino))
        {
            return;
        }
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        self.usage = self.usage + Usage { bytes, inodes: 1 };
    }
}
