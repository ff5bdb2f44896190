//! The capabilities of this process: capabilities(7).

use nix::errno::Errno;

use crate::error::{Named, Result};
use crate::process::prctl;

/// The five capability sets, one bit per capability number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// What can ever be had.
    pub bounding: u64,
    /// What is checked.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What a program with file capabilities may inherit.
    pub inheritable: u64,
    /// What survives the exec of a plain program as another user than root.
    pub ambient: u64,
}

/// The capabilities this process may hand on: its bounding set.
///
/// # Errors
/// The kernel's, if `/proc` cannot be read.
pub fn bounding() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").named("read", || "/proc/self/status".into())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Ok(line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0))
}

/// Drops every capability outside `keep` from the bounding set; needs `CAP_SETPCAP`.
///
/// # Errors
/// The kernel's.
pub fn bound(keep: u64) -> Result<()> {
    for number in 0..64_u64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            // Past the last capability of this kernel.
            Err(error) if error.errno == Errno::EINVAL => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Sets the effective, permitted and inheritable sets.
///
/// # Errors
/// EPERM if more is asked for than permitted.
pub fn set(sets: &Capabilities) -> Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).named("capset", || format!("{sets:?}"))
}

/// The option of prctl(2) by which [`set_ambient`] does its work.
pub const AMBIENT: u64 = libc::PR_CAP_AMBIENT.cast_unsigned() as u64;

/// Clears the ambient set, then raises what is in `ambient`.
///
/// # Errors
/// EPERM for one that is not both permitted and inheritable.
pub fn set_ambient(ambient: u64) -> Result<()> {
    let none = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0);
    none?;
    for number in (0..64_u64).filter(|number| ambient & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE.cast_unsigned().into(), number)?;
    }
    Ok(())
}

/// Keeps the permitted capabilities over a change of user.
///
/// # Errors
/// The kernel's.
pub fn keep() -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)
}
