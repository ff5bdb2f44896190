//! A kernel that refuses one call, for tests of what becomes of that.
//!
//! The refusal is real, by a seccomp filter, and not a mock: what follows is what the code does when the kernel says
//! no. It holds for a thread that ends with the test. Needs root.

use nix::errno::Errno;
use wharf_sys::seccomp::{self, Call};

/// Runs a part of a test in a thread of its own, for which the kernel refuses a call.
pub(crate) fn refusing(call: Call, errno: Errno, test: impl FnOnce() + Send) {
    let run = || {
        seccomp::refuse(call, errno).expect("these tests need root");
        test();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}
