//! Signal dispositions and masks: what a program expects to find at its start.
//!
//! A signal that is ignored and one that is blocked stay so across an exec, so what suits the supervisor would be the
//! container's, too. A caught one does not. Actions belong to a process and a mask to a thread: who changes the mask
//! shows that it has a single one (`Child`). Signals are sent in [`crate::process`].

use nix::errno::Errno;

use crate::clone::Child;
use crate::error::{Error, Named, Result};

/// Resets every signal to its default action and unblocks all, as a program expects at its start.
///
/// # Errors
/// The kernel's error.
pub fn reset(child: &Child) -> Result<()> {
    reset_actions()?;
    unblock(child)
}

/// Resets every signal to its default action, which children inherit. An ignored signal would stay ignored across their
/// exec: SIGPIPE, which Rust's runtime ignores, or SIGHUP because of nohup.
///
/// # Errors
/// The kernel's error.
pub fn reset_actions() -> Result<()> {
    // C libraries keep some signals for themselves, so this is the bare system call. An all-zero kernel sigaction is
    // the default action.
    let default = [0_u64; 4];
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: `default` is at least as long as a kernel's sigaction and lives through the call; the old one is not
        // asked for, and the default action is no handler whose code would have to be safe.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), old, 8) };
        Errno::result(result).map_err(|errno| Error::new("rt_sigaction", number.to_string(), errno))?;
    }
    Ok(())
}

/// Unblocks all signals.
///
/// # Errors
/// The kernel's error.
pub fn unblock(_child: &Child) -> Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask().named("sigprocmask", || "SIG_SETMASK, none".into())
}
