//! Resource limits, given by the kernel's number.
//!
//! A plan names a resource by this number, and its values have 64 bits on every machine: so these are the bare system
//! calls, in which no C library has a say. They are the limits of the whole process, whichever thread asks. The one on
//! open files has a life of its own, in [`crate::open_files`].

use nix::errno::Errno;

use crate::error::{Error, Result};

/// Sets the soft and the hard value of one resource limit.
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

/// This process's own hard limit.
///
/// # Errors
/// EINVAL if there is no such resource.
pub fn hard(resource: u32) -> Result<u64> {
    own(resource).map(|limit| limit.rlim_max)
}

pub(crate) fn own(resource: u32) -> Result<libc::rlimit64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call, no new limit is given, and pid 0 is this process.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut limit)
    };
    Errno::result(result)
        .map(|_done| limit)
        .map_err(|errno| Error::new("prlimit64", resource.to_string(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_not_raised_is_taken() {
        let own = own(libc::RLIMIT_CORE as _).unwrap();
        set(libc::RLIMIT_CORE as _, own.rlim_cur, own.rlim_max).unwrap();
        assert_eq!(hard(libc::RLIMIT_CORE as _).unwrap(), own.rlim_max);
        assert_eq!(hard(1000).unwrap_err().errno, Errno::EINVAL);
    }
}
