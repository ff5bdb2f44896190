//! What must stay free on the disk of images, whoever writes to it: a full disk would stop all that run from it.

/// How much must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reserve {
    /// In bytes.
    pub bytes: u64,
    /// In inodes.
    pub inodes: u64,
}

/// A file system's size, and how much of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// In bytes.
    pub bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// All inodes; 0 if they are made as needed.
    pub inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

/// Only the reserve is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the disk of the images has fewer than {reserve} {what} free; remove images or enlarge the disk")]
pub struct OnlyReserve {
    /// `bytes` or `inodes`.
    pub what: &'static str,
    /// How many must stay free.
    pub reserve: u64,
}

impl Reserve {
    /// It is never more than the disk's size divided by this.
    const SHARE: u64 = 20;

    /// Checks that the reserve is still there when so many bytes more have been written.
    ///
    /// # Errors
    /// Which part of it would not be.
    pub fn check(self, disk: Disk, more_bytes: u64) -> Result<(), OnlyReserve> {
        let Self { bytes, inodes } = self.of(disk);
        if disk.free_bytes.saturating_sub(more_bytes) < bytes {
            return Err(OnlyReserve { what: "bytes", reserve: bytes });
        }
        if disk.inodes > 0 && disk.free_inodes < inodes {
            return Err(OnlyReserve { what: "inodes", reserve: inodes });
        }
        Ok(())
    }

    /// What must stay free of this file system; no inodes if it does not count them.
    #[must_use]
    pub fn of(self, disk: Disk) -> Self {
        let [bytes, inodes] = [disk.bytes, disk.inodes].map(|all| all / Self::SHARE);
        Self { bytes: self.bytes.min(bytes), inodes: self.inodes.min(inodes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_and_no_more_than_a_part_of_a_small_disk() {
        let reserve = Reserve { bytes: 100, inodes: 10 };
        let disk = |free_bytes, free_inodes| Disk { bytes: 10_000, free_bytes, inodes: 1000, free_inodes };
        let refused = |disk, more| reserve.check(disk, more).err().map(|error| (error.what, error.reserve));
        assert_eq!(refused(disk(150, 10), 50), None);
        assert_eq!(refused(disk(150, 10), 51), Some(("bytes", 100)));
        assert_eq!(refused(disk(150, 10), u64::MAX), Some(("bytes", 100)));
        assert_eq!(refused(disk(150, 9), 0), Some(("inodes", 10)));
        let small = Disk { bytes: 1000, free_bytes: 50, inodes: 0, free_inodes: 0 };
        assert_eq!(refused(small, 0), None);
        assert_eq!(refused(small, 1), Some(("bytes", 50)));
    }
}
