//! The daemon's side of a pod's supervisor: its program and process, the connection to it and whether there is contact,
//! the requests, and who waits for its reports; and the end of cgroups in which processes may be left. It knows nothing
//! about pods and their content.

mod calls;
mod cgroup;
mod connection;
mod contact;
mod ending;
mod error;
mod exec;
mod features;
mod held;
mod log;
mod orphans;
mod output;
mod pipes;
mod process;
mod program;
mod stages;
mod waiters;

use std::time::Duration;

pub use calls::Signal;
pub use connection::Connection;
pub use contact::{Contact, ContactWatch, STANDINGS, patiently};
pub use ending::{KILL_PATIENCE, kill_cgroup, remove_cgroup};
pub use error::{ExecError, SupervisorError};
pub use exec::ExecStreams;
pub use features::Features;
pub use held::HeldPaths;
pub use log::last_lines;
pub use output::{Output, OutputMemory};
pub use pipes::{CLIENT_PIPE_BYTES, Outputs, input_pipe, null, pipe};
pub use process::Process;
pub use program::Program;
pub use waiters::{Waiters, number};

/// How long a supervisor may take to accept a request and to reply. In the worst case, either takes as long as
/// executing a program from a slow disk.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a supervisor may take for what it does at once: to greet, to kill, to forget. One that does not respond
/// within this time may be stopped, or may be waiting for a disk; it still exists.
pub const BRIEF_PATIENCE: Duration = Duration::from_secs(5);
