//! Whether there is space for the records of further pods.
//!
//! Without this, a full state directory would show only as failing calls, and the scheduler would send further pods to
//! the node.

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use wharf_state::Layout;

/// The space that one pod's records and files need at most, besides its containers' requests.
const ROOM_BYTES: u64 = 256 << 10;
const ROOM_INODES: u64 = 32;

/// Why no pod can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// What else is impossible.
    pub extent: Extent,
    /// The reason, as one word in camel case.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How much is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Existing pods can be stopped and removed.
    NewPods,
    /// Nothing can be changed.
    Everything,
}

/// Why no pod can be made now, if so: each needs a directory in the state directory.
#[must_use]
pub fn unready(layout: &Layout) -> Option<Unready> {
    let state = layout.state();
    let unready = |extent, reason, problem: &str| {
        let message = format!("the state directory {} {problem}", state.display());
        Some(Unready { extent, reason, message })
    };
    let everything = |reason, problem: &str| unready(Extent::Everything, reason, problem);
    match statvfs(&layout.pods()).map(|found| Room::of(&found)) {
        Ok(Room::Enough) => None,
        Ok(Room::ReadOnly) => everything("StateDirectoryReadOnly", "is read-only: mount it writable"),
        Ok(Room::Full) => {
            const PROBLEM: &str = "is full: remove pods, or other files from its file system";
            unready(Extent::NewPods, "StateDirectoryFull", PROBLEM)
        }
        Err(Errno::ENOENT) => everything(
            "StateDirectoryMissing",
            "has no pods directory: mount its file system again if it is not mounted; if it was removed, restart wharfd, \
             which ends its pods",
        ),
        Err(error) => everything("StateDirectoryUnusable", &format!("cannot be used: {error}")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Room {
    Enough,
    ReadOnly,
    Full,
}

impl Room {
    fn of(found: &nix::sys::statvfs::Statvfs) -> Self {
        if found.flags().contains(FsFlags::ST_RDONLY) {
            return Self::ReadOnly;
        }
        // A file system without limits reports no numbers.
        let bytes = found.blocks_available().saturating_mul(found.fragment_size());
        let bytes_gone = found.blocks() > 0 && bytes < ROOM_BYTES;
        let inodes_gone = found.files() > 0 && found.files_available() < ROOM_INODES;
        if bytes_gone || inodes_gone { Self::Full } else { Self::Enough }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_this_machine_has_room_and_proc_has_no_limit() {
        assert_eq!(Room::of(&statvfs(&std::env::temp_dir()).unwrap()), Room::Enough);
        assert_eq!(Room::of(&statvfs("/proc").unwrap()), Room::Enough);
    }

    #[test]
    fn a_state_directory_that_was_emptied_is_of_no_use() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("root"));
        let reason = || unready(&layout).map(|unready| (unready.extent, unready.reason));
        assert_eq!(reason(), Some((Extent::Everything, "StateDirectoryMissing")));
        std::fs::create_dir_all(layout.pods()).unwrap();
        assert_eq!(reason(), None);
        std::fs::remove_dir(layout.pods()).unwrap();
        let removed = unready(&layout).unwrap().message;
        assert!(removed.contains("if it was removed, restart wharfd, which ends its pods"), "{removed}");
        std::fs::remove_dir(layout.state()).unwrap();
        std::fs::write(layout.state(), "").unwrap();
        assert_eq!(reason(), Some((Extent::Everything, "StateDirectoryUnusable")));
    }
}
