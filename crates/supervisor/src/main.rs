//! `wharf-shim DIRECTORY`: the supervisor of one pod, which has that directory. Its standard input is the connection to
//! the daemon. `wharf-shim --version` says which release it is of. When a supervisor executes the program under
//! another name, it is the pod's reaper ([`pod_reaper`]), also in a sandbox of another runtime's ([`sandbox`]); when
//! the daemon does, it keeps a scope of systemd's ([`holder`]).
//!
//! It is the parent of every process of the pod and lives as long as the pod, whatever happens to the daemon. It has
//! one thread and one loop, which waits for nobody: what the daemon or the disk of the logs does not accept is queued.
//! Control flows one way. The loop ([`supervisor`]) finds out what has happened; the machine ([`machine`]) decides what
//! to do, without I/O; the driver ([`driver`]) does it and holds all descriptors and processes. What can be told to
//! nobody goes to standard error, which is the pod's `shim.log` ([`diagnostics`]).
//!
//! The program keeps the name that people know from their process lists, and the socket keeps the name that daemons of
//! every release look for. Everything else says supervisor.

mod child;
mod clients;
mod clock;
mod container;
mod diagnostics;
mod driver;
mod failure;
mod held;
mod holder;
mod kill;
mod leaf;
mod link;
mod log;
mod machine;
mod output;
mod pod_reaper;
#[cfg(test)]
mod refusing;
mod requests;
mod sandbox;
mod score;
mod spawn;
mod stages;
mod supervisor;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use diagnostics::OrWarn as _;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    match arguments.next().as_ref().map(|name| name.as_encoded_bytes()) {
        Some(name) if name == pod_reaper::NAME.to_bytes() => return pod_reaper::run(),
        Some(name) if name == holder::NAME.to_bytes() => return holder::run(),
        Some(name) if name == wharf_isolation::bundle::PAUSE.as_bytes() => return pod_reaper::reap(),
        _ => {}
    }
    let Some(directory) = arguments.next() else { return ExitCode::from(2) };
    if directory == "--version" {
        let said = writeln!(std::io::stdout(), "wharf-shim {}", env!("CARGO_PKG_VERSION"));
        return if said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // With fewer open files it can supervise less, which is no reason not to start.
    wharf_sys::open_files::raise().map(drop).or_warn("raising the limit of open files");
    match supervisor::Supervisor::start(PathBuf::from(directory)) {
        Ok(supervisor) => supervisor.run(),
        // The daemon sees the connection end.
        Err(error) => {
            diagnostics::warn(format_args!("the supervisor cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}
