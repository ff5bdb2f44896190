//! The daemon's side of a pod's supervisor: its program and its process, the connection to it and whether that is up, what
//! it can be asked for, and who waits for what it will tell. Of pods and of what they are made of it knows nothing.

mod calls;
mod cgroup;
mod connection;
mod error;
mod exec;
mod features;
mod held;
mod link;
mod log;
mod process;
mod program;
mod waiters;

use std::time::Duration;

pub use calls::Signal;
pub use cgroup::cgroup;
pub use connection::Connection;
pub use error::SupervisorError;
pub use exec::ExecStreams;
pub use features::Features;
pub use held::Held;
pub use link::{Link, Links};
pub use log::last_lines;
pub use process::Process;
pub use program::Program;
pub use waiters::{Waiters, number};

/// How long a supervisor may take to receive a request and to answer it; each is one of a program's execution, on a slow
/// disk at worst.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a supervisor may take for what it does at once: to greet, to kill, to forget. One that does not answer for so
/// long may be stopped, or wait for a disk; it is still there.
pub const BRIEF_PATIENCE: Duration = Duration::from_secs(5);
