//! `wharf-shim DIRECTORY`: the supervisor of one pod, whose directory it is given. The daemon's connection is its
//! standard input. Called by another name, by a supervisor, it is the pod's reaper ([`pod_reaper`]).
//!
//! It is the parent of every process of the pod and lives as long as the pod, whatever happens to the daemon. It has one
//! thread and one loop that waits for nobody: what the daemon or the logs' disk does not take is queued. The code goes one
//! way: the loop ([`supervisor`]) finds out what happened, the machine ([`machine`]) decides what that means, and does no
//! I/O, and the driver ([`driver`]) does it, and has all descriptors and processes. What cannot be told to anyone is in
//! standard error, the pod's `shim.log` ([`trouble`]).
//!
//! The program keeps the name that people know from their process lists, and its socket the one that daemons of every
//! release look for; the rest says supervisor.

mod audience;
mod clock;
mod container;
mod driver;
mod held;
mod kill;
mod link;
mod log;
mod machine;
mod output;
mod pod_reaper;
mod requests;
mod spawn;
mod supervisor;
mod trouble;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use trouble::OrTell as _;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name.as_encoded_bytes() == pod_reaper::NAME.to_bytes()) {
        return pod_reaper::run();
    }
    let Some(directory) = arguments.next() else { return ExitCode::from(2) };
    // With fewer it can supervise less: no reason not to begin.
    wharf_sys::open_files::raise().map(drop).or_tell("raising the limit of open files");
    match supervisor::Supervisor::start(PathBuf::from(directory)) {
        Ok(supervisor) => supervisor.run(),
        // The daemon sees the connection end.
        Err(error) => {
            trouble::tell(format_args!("the supervisor cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}
