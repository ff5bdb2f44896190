//! Resource limits.

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Sets the soft and the hard value of one resource limit, given by the kernel's number.
///
/// # Errors
/// EPERM for raising the hard limit without `CAP_SYS_RESOURCE`.
pub fn set(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives through the call, the old limit is not asked for, and pid 0 is this process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("prlimit64", format!("{resource}, {soft}, {hard}"), errno))
}
