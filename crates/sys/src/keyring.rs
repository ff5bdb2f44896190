//! The session keyring: keyrings(7).
//!
//! A process inherits the session keyring of whoever started it: it would be wharfd's, with the keys in it, and all
//! containers would share it. The keyrings of users and of processes are others, and are not touched.

use nix::errno::Errno;

use crate::clone::Child;
use crate::error::{Error, Result};

/// Replaces the inherited session keyring with a new, empty one. A kernel without keys has none to replace.
///
/// # Errors
/// The kernel's error; EDQUOT if the user has too many keys.
pub fn leave(_child: &Child) -> Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: an integer, and a null name: the new keyring has none.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match Errno::result(result) {
        Err(Errno::ENOSYS) => Ok(()),
        other => other.map(drop).map_err(|errno| Error::new("keyctl", "JOIN_SESSION_KEYRING", errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::clone::{Clone, clone3};
    use crate::process::{Ended, Reap, await_end, exit_now, wait};

    /// The id of this process's session keyring.
    fn session_keyring() -> i64 {
        const GET_KEYRING_ID: libc::c_int = 0;
        const SESSION_KEYRING: libc::c_int = -3;
        // SAFETY: three integers; nothing is made.
        unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 0) }
    }

    #[test]
    fn a_child_leaves_the_session_keyring_of_its_parent() {
        let before = session_keyring();
        assert!(before > 0, "{before}");
        match clone3(0, None).unwrap() {
            Clone::Child(child) => {
                let inherited = session_keyring() == before;
                let left = leave(&child).is_ok() && session_keyring() > 0;
                exit_now(i32::from(!inherited || !left || session_keyring() == before))
            }
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
                assert_eq!(session_keyring(), before);
            }
        }
    }
}
