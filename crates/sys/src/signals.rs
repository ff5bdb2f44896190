//! What signals do.

use nix::errno::Errno;

use crate::clone::Child;
use crate::error::{Error, Named, Result};

/// Gives every signal its default action and blocks none: what a program expects at its start.
///
/// # Errors
/// The kernel's.
pub fn reset(child: &Child) -> Result<()> {
    reset_actions()?;
    unblock(child)
}

/// Gives every signal its default action, which children inherit. An ignored one would stay ignored over their exec: SIGPIPE,
/// which Rust's runtime ignores, SIGHUP from nohup.
///
/// # Errors
/// The kernel's.
pub fn reset_actions() -> Result<()> {
    // C libraries keep some signals for themselves, so this is the bare call; all zero, the kernel's sigaction is the default
    // action.
    let default = [0_u64; 4];
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: `default` is at least as long as a kernel's sigaction and lives through the call; the old one is not asked
        // for, and the default action is no handler whose code would have to be safe.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), old, 8) };
        Errno::result(result).map_err(|errno| Error::new("rt_sigaction", number.to_string(), errno))?;
    }
    Ok(())
}

/// Blocks no signal.
///
/// # Errors
/// The kernel's.
pub fn unblock(_child: &Child) -> Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask().named("sigprocmask", || "SIG_SETMASK, none".into())
}
