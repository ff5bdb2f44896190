//! Whether pods can be made on this node, as far as wharf itself goes.

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::engine::Engine;

/// What one pod's records and files take at most beside its containers' requests.
const ROOM_BYTES: u64 = 256 << 10;
const ROOM_INODES: u64 = 32;

/// Why no pod can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// One word, in camel case.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Engine {
    /// Why no pod can be made now, if so: each needs a directory of its own in the state directory. Blocking.
    #[must_use]
    pub fn unready(&self) -> Option<Unready> {
        let path = self.parts.layout.state();
        let unready = |reason, problem: &str| {
            Some(Unready { reason, message: format!("the state directory {} {problem}", path.display()) })
        };
        match statvfs(path).map(|found| Room::of(&found)) {
            Ok(Room::Enough) => None,
            Ok(Room::ReadOnly) => unready("StateDirectoryReadOnly", "is read-only: mount it writable"),
            Ok(Room::Full) => {
                unready("StateDirectoryFull", "is full: remove other files from its file system")
            }
            Err(error) => unready("StateDirectoryUnusable", &format!("cannot be used: {error}")),
        }
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
        // A file system without limits has no numbers at all.
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
}
