//! Memory that is mapped for one purpose and unmapped with it.
//!
//! It is no allocation of the heap: a process that is cloned has its stack in it, or has nothing else of its parent's
//! memory (`bare`), so it must begin at a page and be whole pages that nothing else is in.

use std::ops::Range;

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Pages that can be read and written; initially zero.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: *mut u8,
    bytes: usize,
}

impl Mapping {
    /// # Errors
    /// ENOMEM, which may be due to the process's own limit on memory.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever there is room for it.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Error::new("mmap", format!("{bytes} bytes"), Errno::last()));
        }
        Ok(Self { base: base.cast(), bytes })
    }

    /// Its start.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    /// Its addresses.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = self.base.expose_provenance();
        start..start + self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made for this value, which nobody borrows any more. There is nothing to do if it
        // fails.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}
