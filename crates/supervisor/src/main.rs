//! `wharf-shim DIRECTORY`: the supervisor of one pod, whose directory it is given. The daemon's connection is its
//! standard input.
//!
//! It is the parent of every process of the pod and lives as long as the pod, whatever happens to the daemon. It has
//! one thread and one loop ([`shim::Shim::run`]); what a container's events mean is decided in [`lifecycle`], which
//! does no I/O.

mod attach;
mod audience;
mod clock;
mod container;
mod kill;
mod lifecycle;
mod link;
mod log;
mod output;
mod pod_reaper;
mod requests;
mod shim;
mod spawn;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else { return ExitCode::from(2) };
    // There is nobody to tell an error to but the daemon, which sees the connection end.
    match shim::Shim::start(PathBuf::from(directory)) {
        Ok(shim) => shim.run(),
        Err(_unreported) => ExitCode::FAILURE,
    }
}
