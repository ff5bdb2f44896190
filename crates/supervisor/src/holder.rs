//! A process that does nothing. A scope of systemd's exists only as long as something runs in it, and a container's
//! cgroup is needed before its first process and after its last one.
//!
//! It executes the supervisor's program, because that is small, static, and there.

use std::process::ExitCode;

use crate::diagnostics::OrWarn as _;

/// The name under which the program runs as a holder. The daemon knows it, too.
pub(crate) const NAME: &std::ffi::CStr = c"wharf-holder";

/// Waits for the daemon to confirm that the scope is complete, and then for its own end. If the daemon ends before
/// that, so does this.
pub(crate) fn run() -> ExitCode {
    // So that it has the same name in lists of processes that show no arguments.
    nix::sys::prctl::set_name(NAME).or_warn("naming the holder of a scope");
    let input = std::io::stdin();
    let mut confirmation = [0];
    if !matches!(std::io::Read::read(&mut input.lock(), &mut confirmation), Ok(1)) {
        return ExitCode::FAILURE;
    }
    loop {
        nix::unistd::pause();
    }
}
