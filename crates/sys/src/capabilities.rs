//! The capabilities of this process: capabilities(7).
//!
//! To the kernel each thread has its own sets, and these functions change those of the calling one, so whoever changes
//! them has a single thread. Which capabilities stay is decided elsewhere. So is the order, because one step takes what
//! another needs: `isolation/src/confine.rs` has it.

use nix::errno::Errno;

use crate::error::{Error, Named, Result};
use crate::process::prctl;

/// The five capability sets, one bit per capability number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// The limit on what can ever be gained.
    pub bounding: u64,
    /// What the kernel checks.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What a program with file capabilities may inherit.
    pub inheritable: u64,
    /// What survives the exec of a plain program by a user other than root.
    pub ambient: u64,
}

/// The capabilities that this process may pass on: its bounding set.
///
/// # Errors
/// The kernel's error if `/proc` cannot be read; EBADMSG if it does not say.
pub fn bounding() -> Result<u64> {
    let status = crate::fs::kernel_text("/proc/self/status").named("read", || "/proc/self/status".into())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.ok_or_else(|| Error::new("read", "CapBnd in /proc/self/status", Errno::EBADMSG))
}

/// Drops every capability outside `keep` from the bounding set; needs `CAP_SETPCAP`.
///
/// # Errors
/// The kernel's error.
pub fn bound(keep: u64) -> Result<()> {
    for number in 0..64_u64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            // This is past the last capability of this kernel.
            Err(error) if error.errno == Errno::EINVAL => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Sets the effective, permitted and inheritable sets.
///
/// # Errors
/// EPERM if they exceed the permitted set.
pub fn set(sets: &Capabilities) -> Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).named("capset", || format!("{sets:?}"))
}

/// Makes every permitted capability effective.
///
/// # Errors
/// The kernel's error.
pub fn regain() -> Result<()> {
    let mut sets = rustix::thread::capabilities(None).named("capget", || "of this thread".into())?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).named("capset", || format!("{sets:?}"))
}

/// The prctl(2) option that [`set_ambient`] uses.
pub const AMBIENT: u64 = libc::PR_CAP_AMBIENT.cast_unsigned() as u64;

/// Clears the ambient set, then raises the capabilities in `ambient`.
///
/// # Errors
/// EPERM for a capability that is not both permitted and inheritable.
pub fn set_ambient(ambient: u64) -> Result<()> {
    let none = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0);
    none?;
    for number in (0..64_u64).filter(|number| ambient & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE.cast_unsigned().into(), number)?;
    }
    Ok(())
}

/// Keeps the permitted capabilities across a change of user.
///
/// # Errors
/// The kernel's error.
pub fn keep() -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)
}
