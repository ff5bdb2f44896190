//! How many files a process may open: as many as it can itself, and what it starts as many as it was given.
//!
//! A low soft limit is a service to programs: those that use select(2) break with more, and those that close whatever they
//! may have open take long. Who needs more raises its own, as the runtime of Go does for every program, and hands on what
//! it found.

use std::sync::OnceLock;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::limits;

/// The types of the two C libraries differ.
const NOFILE: u32 = libc::RLIMIT_NOFILE as _;

/// What this process was given, once it has raised it.
static GIVEN: OnceLock<libc::rlimit64> = OnceLock::new();

/// Raises this process's soft limit to its hard one, and returns that.
///
/// # Errors
/// The kernel's.
pub fn raise() -> Result<u64> {
    let now = limit()?;
    let given = GIVEN.get_or_init(|| now);
    if given.rlim_cur < given.rlim_max {
        limits::set(NOFILE, given.rlim_max, given.rlim_max)?;
    }
    Ok(given.rlim_max)
}

/// In a child, before it becomes another program: the limit is again what the parent was given. Allocates nothing.
///
/// # Errors
/// The kernel's.
pub fn hand_on() -> Result<()> {
    match GIVEN.get() {
        Some(given) => limits::set(NOFILE, given.rlim_cur, given.rlim_max),
        None => Ok(()),
    }
}

fn limit() -> Result<libc::rlimit64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call, no new limit is given, and pid 0 is this process.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, NOFILE, std::ptr::null::<libc::rlimit64>(), &raw mut limit)
    };
    Errno::result(result)
        .map(|_done| limit)
        .map_err(|errno| Error::new("prlimit64", "RLIMIT_NOFILE".to_owned(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since the limit is the whole process's.
    #[test]
    fn a_raised_limit_is_handed_on_as_it_was() {
        let before = limit().unwrap();
        hand_on().unwrap();
        limits::set(NOFILE, 512, before.rlim_max).unwrap();
        assert_eq!(raise().unwrap(), before.rlim_max);
        assert_eq!(limit().unwrap().rlim_cur, before.rlim_max);
        hand_on().unwrap();
        assert_eq!((limit().unwrap().rlim_cur, limit().unwrap().rlim_max), (512, before.rlim_max));
        assert_eq!(raise().unwrap(), before.rlim_max);
        assert_eq!(
            limit().unwrap().rlim_cur,
            before.rlim_max,
            "what was given first stays what is handed on"
        );
    }
}
