//! Threads that a caller waits for. Where the kernel has no room for one more, that is an error, not a panic.
//!
//! They end within the call that starts them, and may borrow from it. Threads that outlive a call, and bounds on how
//! many there are, are in `tasks/src/thread.rs`.

use std::thread::{Builder, Scope, ScopedJoinHandle, scope};

use nix::errno::Errno;

use crate::error::Named as _;
use crate::{Error, Result};

/// Starts a thread of a scope.
///
/// # Errors
/// The kernel's error; EAGAIN if a limit on processes was reached.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work).named("clone", || "a thread".into())
}

/// Does work in a thread of its own, which ends with it: for work that changes what is a thread's.
///
/// # Errors
/// The work's error, or that of [`start`]; EIO if the work panics.
pub fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let panicked = |_panic| Err(Error::new("clone", "a thread, which panicked", Errno::EIO));
    scope(|scope| start(scope, work)?.join().unwrap_or_else(panicked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Call, refuse};

    #[test]
    fn without_room_for_a_thread_there_is_an_error() {
        let told = apart(|| {
            // A C library uses one of them.
            refuse(Call::CLONE, Errno::EAGAIN)?;
            refuse(Call::CLONE3, Errno::EAGAIN)?;
            Ok(apart(|| Ok(())).unwrap_err())
        });
        let told = told.expect("these tests need root");
        assert!(told.errno == Errno::EAGAIN && told.to_string().contains("TasksMax"), "{told}");
        assert_eq!(apart(|| Ok(7)).unwrap(), 7);
        assert_eq!(apart(|| -> Result<()> { panic!("it fails") }).unwrap_err().errno, Errno::EIO);
    }
}
