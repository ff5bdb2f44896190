//! The bounds on what one layer may cost.
//!
//! An archive is hostile: a few bytes may become a full disk, or as many inodes. Each bound is checked while a layer is
//! unpacked, never afterwards, and the error names it.

use std::os::fd::AsFd;

use wharf_sys::error::Named;
use wharf_types::{Disk, Reserve};

use crate::unpack::UnpackError;

/// Bounds on one layer. An image that exceeds one is refused with an error that names the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest archive of one layer when unpacked, in bytes; its files with holes together may not be larger
    /// either.
    pub layer_bytes: u64,
    /// The most bytes that one compressed byte may become…
    pub ratio: u64,
    /// …once the archive is longer than this.
    pub ratio_free_bytes: u64,
    /// The most entries of an archive, and the most inodes that it may make.
    pub entries: u64,
    /// The most components of a path.
    pub depth: usize,
    /// The largest window of one Zstandard decompressor, in bytes; several run at a time.
    pub zstd_window_bytes: u64,
    /// Bytes that must stay free on the disk, but never more than a twentieth of it.
    pub reserve_bytes: u64,
    /// Inodes that must stay free on the disk, if it counts them, but never more than a twentieth of them.
    pub reserve_inodes: u64,
}

impl Default for Limits {
    /// Generous for every image that is not an attack: 64 GiB, 200:1 beyond 512 MiB, 2 million entries, 256 levels,
    /// windows of 64 MiB, and 512 MiB and 10,000 inodes free on the disk.
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            ratio: 200,
            ratio_free_bytes: 512 << 20,
            entries: 2_000_000,
            depth: 256,
            zstd_window_bytes: 64 << 20,
            reserve_bytes: 512 << 20,
            reserve_inodes: 10_000,
        }
    }
}

impl Limits {
    /// `blob_bytes` is the size of the whole blob: a layer may begin with its most compressible part.
    pub(crate) fn check_content(&self, content_bytes: u64, blob_bytes: u64) -> Result<(), UnpackError> {
        if content_bytes > self.layer_bytes {
            return Err(UnpackError::Limit { what: "bytes of an unpacked layer", limit: self.layer_bytes });
        }
        if content_bytes > self.ratio_free_bytes && content_bytes / self.ratio > blob_bytes {
            return Err(UnpackError::Limit {
                what: "times the size of the compressed layer",
                limit: self.ratio,
            });
        }
        Ok(())
    }

    /// Checks that the file system of `directory` still has its reserve, and returns that.
    pub(crate) fn check_disk(&self, directory: impl AsFd) -> Result<Reserve, UnpackError> {
        let failed = |source| UnpackError::System { path: String::new(), source };
        let disk = nix::sys::statvfs::fstatvfs(directory)
            .named("fstatvfs", || "the directory of layers".into())
            .map_err(failed)?;
        let disk = Disk {
            bytes: disk.blocks().saturating_mul(disk.fragment_size()),
            free_bytes: disk.blocks_available().saturating_mul(disk.fragment_size()),
            inodes: disk.files(),
            free_inodes: disk.files_available(),
        };
        self.reserve().check(disk, 0)?;
        Ok(self.reserve().of(disk))
    }

    /// How much may be written or made before the disk is looked at again: no more than `most`, and no more than a
    /// quarter of what must stay free of it. A disk that does not count its inodes has none in reserve.
    pub(crate) fn due(most: u64, reserve: u64) -> u64 {
        match reserve / 4 {
            0 => most,
            share => most.min(share),
        }
    }

    /// What must stay free on the disk.
    #[must_use]
    pub fn reserve(&self) -> Reserve {
        Reserve { bytes: self.reserve_bytes, inodes: self.reserve_inodes }
    }
}
