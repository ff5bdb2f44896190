//! The sandbox of a pod: its keeper makes it for the pod's first container, and ends it with the supervisor.
//!
//! What stands for it is a container whose program does nothing. All that the runtime leaves behind on the host becomes
//! the keeper's child, so nothing of it outlives the keeper, and the keeper ends with the sandbox.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use wharf_isolation::bundle::Bundle;
use wharf_isolation::{Error, Runtime, Sandbox, Stage as _};
use wharf_sys::clone::Child;
use wharf_sys::process::{self, exit_now};

use crate::SPEC;
use crate::call::{Call, Stdio};
use crate::guard::{become_subreaper, kill_all};
use crate::process::Made;

/// The file beside the runtime's state with the reason why there is no sandbox.
const FAILURE: &str = "failure";
/// How much of that is told, in bytes.
const FAILURE_LIMIT_BYTES: usize = 4096;
/// How long a container waits for its sandbox: for a creation and a start at their slowest.
const PATIENCE: Duration = Duration::from_secs(24);
const STAGE: &str = "keeping the pod's sandbox";

/// Makes a sandbox, says so by closing `made`, and keeps it until the other end of `line` is closed or the sandbox has
/// ended. Runs in a child of the supervisor, and never returns.
pub fn keep(runtime: &Runtime, sandbox: &Sandbox, (line, made): (OwnedFd, OwnedFd), alone: &Child) -> ! {
    let keeping = make(runtime, sandbox, &line, alone).inspect_err(|error| {
        let failure = runtime.state_directory.as_path().join(FAILURE);
        // Then it is only known that there is no sandbox.
        let _unsaid = fs::write(failure, error.line());
    });
    drop(made);
    if let Ok(process) = keeping {
        // Whichever ends first, nothing more can be done than to end the rest.
        let _ended = process::await_end_or(process.process.as_fd(), line.as_fd(), None, Duration::ZERO);
    }
    kill_all();
    exit_now(1)
}

fn make(runtime: &Runtime, sandbox: &Sandbox, line: &OwnedFd, alone: &Child) -> Result<Made, Error> {
    become_subreaper().stage(STAGE)?;
    let bundle = Bundle::of_sandbox(runtime)?;
    bundle.write(SPEC, &sandbox.spec)?;
    let call =
        Call { runtime, bundle: &bundle, container: &sandbox.id, cgroup: Some(&sandbox.cgroup), alone };
    call.create(Stdio::None, line.as_fd())?;
    call.start(Stdio::None, line.as_fd())?;
    Made::find(&bundle)
}

/// Waits until the sandbox is made; for a moment at most once something can be read from the line.
pub(crate) fn await_made(runtime: &Runtime, made: BorrowedFd<'_>, line: BorrowedFd<'_>) -> Result<(), Error> {
    let deadline = Some(Instant::now() + PATIENCE);
    let failed =
        |message| Error::Runtime { runtime: runtime.program.to_string(), command: "create", message };
    if !process::await_end_or(made, line, deadline, Duration::ZERO).stage(STAGE)? {
        return Err(failed("the pod's sandbox is not made yet".to_owned()));
    }
    let failure = runtime.state_directory.as_path().join(FAILURE);
    match wharf_sys::fs::read_regular(&failure, FAILURE_LIMIT_BYTES) {
        Ok(why) => {
            let why = String::from_utf8_lossy(&why);
            Err(failed(format!("the pod's sandbox could not be made: {why}")))
        }
        Err(_none) => Ok(()),
    }
}
