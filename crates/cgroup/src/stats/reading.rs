//! One reading of a cgroup's files. They are opened for the reading, and nothing stays open between two readings: with
//! twenty descriptors per container, descriptors would be the first limit on the number of containers.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open_below};

use super::{Bound, Extent, Pressure, parse};
use crate::detect::{Hierarchy, Kind};
use crate::group::Cgroup;

/// Larger than any of the files, except an `io.stat` with hundreds of devices, for which the buffer grows.
const BUFFER_BYTES: usize = 8192;
const BUFFER_MAX: usize = 1 << 20;

/// A file of a cgroup, and the smallest extent of which it is a part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter<'a> {
    name: &'a str,
    extent: Extent,
}

/// A file that is always read.
pub(super) fn usage(name: &str) -> Counter<'_> {
    Counter { name, extent: Extent::Usage }
}

/// A file with the number of tasks.
pub(super) fn tasks(name: &str) -> Counter<'_> {
    Counter { name, extent: Extent::Tasks }
}

/// A file that only metrics need.
pub(super) fn metric(name: &str) -> Counter<'_> {
    Counter { name, extent: Extent::Everything }
}

/// One reading of several files. A hierarchy that the node does not have, or a file that is gone, reads as nothing.
pub(super) struct Reading<'a> {
    cgroup: &'a Cgroup,
    extent: Extent,
    buffer: Vec<u8>,
    /// The directories of the cgroup that have been opened, with their hierarchies; `None` for one that is gone.
    directories: Vec<(&'a Hierarchy, Option<OwnedFd>)>,
}

impl<'a> Reading<'a> {
    pub(super) fn of(cgroup: &'a Cgroup, extent: Extent) -> Self {
        Self { cgroup, extent, buffer: vec![0; BUFFER_BYTES], directories: Vec::new() }
    }

    pub(super) fn extent(&self) -> Extent {
        self.extent
    }

    /// The cgroup's directory in a hierarchy, which is opened once: the kernel resolves each step of the path every
    /// time.
    fn directory(&mut self, hierarchy: &'a Hierarchy) -> Option<BorrowedFd<'_>> {
        let known = self.directories.iter().position(|(of, _)| std::ptr::eq(*of, hierarchy));
        let index = known.unwrap_or_else(|| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            self.directories.push((hierarchy, self.open(hierarchy, self.cgroup.path().relative(), flags)));
            self.directories.len() - 1
        });
        self.directories.get(index)?.1.as_ref().map(AsFd::as_fd)
    }

    fn open(&self, hierarchy: &Hierarchy, path: &str, flags: OFlag) -> Option<OwnedFd> {
        open_below(hierarchy.root(), path, flags, Resolve::BeneathNoLinks).ok()
    }

    /// The content of a file.
    pub(super) fn text(&mut self, hierarchy: Option<&'a Hierarchy>, counter: Counter<'_>) -> Option<&str> {
        if counter.extent > self.extent {
            return None;
        }
        let file = self.file(hierarchy?, counter.name)?;
        self.content(file)
    }

    /// Opens a file: from its directory if several are read from there, as from the unified one, else by its whole
    /// path, because to open the directory costs as much as the way to two files.
    fn file(&mut self, hierarchy: &'a Hierarchy, name: &str) -> Option<OwnedFd> {
        if self.extent < Extent::Everything && hierarchy.kind == Kind::V1 {
            let path = format!("{}/{name}", self.cgroup.path().relative());
            return self.open(hierarchy, &path, OFlag::O_RDONLY);
        }
        let directory = self.directory(hierarchy)?;
        open_below(directory, name, OFlag::O_RDONLY, Resolve::BeneathNoLinks).ok()
    }

    /// The whole content. To the kernel each of these files is one record, so one read returns everything that fits.
    fn content(&mut self, file: OwnedFd) -> Option<&str> {
        let mut file = File::from(file);
        let buffer = &mut self.buffer;
        let mut length = file.read(buffer).ok()?;
        while length == buffer.len() && length < BUFFER_MAX {
            buffer.resize(length * 2, 0);
            length += file.read(&mut buffer[length..]).ok()?;
        }
        std::str::from_utf8(buffer.get(..length)?).ok()
    }

    pub(super) fn number(&mut self, hierarchy: Option<&'a Hierarchy>, counter: Counter<'_>) -> Option<u64> {
        self.text(hierarchy, counter).and_then(parse::number)
    }

    pub(super) fn bound(&mut self, hierarchy: Option<&'a Hierarchy>, counter: Counter<'_>) -> Option<Bound> {
        self.text(hierarchy, counter).and_then(parse::bound)
    }

    pub(super) fn pressure(
        &mut self,
        hierarchy: Option<&'a Hierarchy>,
        counter: Counter<'_>,
    ) -> Option<Pressure> {
        self.text(hierarchy, counter).and_then(parse::pressure)
    }

    /// Calls `take` for each line of the file that has the form `key number`.
    pub(super) fn pairs(
        &mut self,
        hierarchy: Option<&'a Hierarchy>,
        counter: Counter<'_>,
        take: impl FnMut(&str, u64),
    ) {
        parse::pairs(self.text(hierarchy, counter).unwrap_or_default(), take);
    }
}
