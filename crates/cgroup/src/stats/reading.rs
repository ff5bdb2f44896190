//! One reading of a cgroup's files. They are opened for it and nothing is kept open between two: twenty descriptors a
//! container would be the first bound on how many a node can have.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open_below};

use super::{Bound, Extent, Pressure, parse};
use crate::detect::Hierarchy;
use crate::group::Cgroup;

/// Larger than any of the files but `io.stat` with some hundred devices, for which it grows.
const BUFFER_BYTES: usize = 8192;
const BUFFER_MAX: usize = 1 << 20;

/// A file of a cgroup, and the least that is read when it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter<'a> {
    name: &'a str,
    extent: Extent,
}

/// One that is always read.
pub(super) fn usage(name: &str) -> Counter<'_> {
    Counter { name, extent: Extent::Usage }
}

/// One that tells how many tasks there are.
pub(super) fn tasks(name: &str) -> Counter<'_> {
    Counter { name, extent: Extent::Tasks }
}

/// One that only metrics tell.
pub(super) fn metric(name: &str) -> Counter<'_> {
    Counter { name, extent: Extent::Everything }
}

/// One reading of several files. What the node has no hierarchy for, and what is gone, reads as nothing.
pub(super) struct Reading<'a> {
    cgroup: &'a Cgroup,
    extent: Extent,
    buffer: Vec<u8>,
    /// The cgroup's directories that were opened for it, with the hierarchies they are in; those that are gone are none.
    directories: Vec<(&'a Hierarchy, Option<OwnedFd>)>,
}

impl<'a> Reading<'a> {
    pub(super) fn of(cgroup: &'a Cgroup, extent: Extent) -> Self {
        Self { cgroup, extent, buffer: vec![0; BUFFER_BYTES], directories: Vec::new() }
    }

    pub(super) fn extent(&self) -> Extent {
        self.extent
    }

    /// The cgroup's directory, which is opened once: the kernel looks at each step of a path to a cgroup anew.
    pub(super) fn directory(&mut self, hierarchy: &'a Hierarchy) -> Option<BorrowedFd<'_>> {
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

    /// The content of a file in a directory of which others are read too.
    pub(super) fn text(&mut self, hierarchy: Option<&'a Hierarchy>, counter: Counter<'_>) -> Option<&str> {
        if counter.extent > self.extent {
            return None;
        }
        let directory = self.directory(hierarchy?)?;
        let file = open_below(directory, counter.name, OFlag::O_RDONLY, Resolve::BeneathNoLinks).ok()?;
        self.content(file)
    }

    /// The content of a file in a directory of which mostly nothing else is read.
    pub(super) fn lone_text(
        &mut self,
        hierarchy: Option<&'a Hierarchy>,
        counter: Counter<'_>,
    ) -> Option<&str> {
        if counter.extent > self.extent {
            return None;
        }
        let path = format!("{}/{}", self.cgroup.path().relative(), counter.name);
        let file = self.open(hierarchy?, &path, OFlag::O_RDONLY)?;
        self.content(file)
    }

    /// The whole content. These files are one record to the kernel, so one read gives all if it fits.
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

    pub(super) fn lone_number(
        &mut self,
        hierarchy: Option<&'a Hierarchy>,
        counter: Counter<'_>,
    ) -> Option<u64> {
        self.lone_text(hierarchy, counter).and_then(parse::number)
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

    /// Calls `take` with each pair of the file's lines `key number`.
    pub(super) fn pairs(
        &mut self,
        hierarchy: Option<&'a Hierarchy>,
        counter: Counter<'_>,
        take: impl FnMut(&str, u64),
    ) {
        parse::pairs(self.text(hierarchy, counter).unwrap_or_default(), take);
    }
}
