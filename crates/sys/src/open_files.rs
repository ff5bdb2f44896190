//! The limit on open files: a process raises its own as far as it can, and what it starts gets the limit that it was
//! given.
//!
//! A low soft limit serves programs: those that use select(2) break with a higher one, and those that close every
//! possible descriptor take long. A program that needs more raises its own limit and passes on the one that it found,
//! as Go's runtime does for every program.

use std::sync::OnceLock;

use crate::error::Result;
use crate::limits;

/// The type differs between the two C libraries.
const NOFILE: u32 = libc::RLIMIT_NOFILE as _;

/// The limit that this process was given, once it has raised it.
static GIVEN: OnceLock<libc::rlimit64> = OnceLock::new();

/// Raises this process's soft limit to its hard limit, which is returned.
///
/// # Errors
/// The kernel's error.
pub fn raise() -> Result<u64> {
    let now = limit()?;
    let given = GIVEN.get_or_init(|| now);
    if given.rlim_cur < given.rlim_max {
        limits::set(NOFILE, given.rlim_max, given.rlim_max)?;
    }
    Ok(given.rlim_max)
}

/// Restores, in a child, the limit that the parent was given, before the child becomes another program. Allocates
/// nothing.
///
/// # Errors
/// The kernel's error.
pub fn hand_on() -> Result<()> {
    match GIVEN.get() {
        Some(given) => limits::set(NOFILE, given.rlim_cur, given.rlim_max),
        None => Ok(()),
    }
}

fn limit() -> Result<libc::rlimit64> {
    limits::own(NOFILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A single test, because the limit is the whole process's.
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
