//! A pod's supervisor, as the daemon knows it: its program and its process, the connection to it and whether that is up, what
//! it can be asked for, and who waits for what it will tell.

mod calls;
mod cgroup;
mod connection;
mod error;
mod features;
mod link;
mod log;
mod process;
mod program;
mod waiters;

use std::time::Duration;

pub(crate) use calls::Signal;
pub(crate) use cgroup::cgroup;
pub(crate) use connection::Connection;
pub(crate) use error::SupervisorError;
pub(crate) use link::{Link, Links};
pub(crate) use process::Process;
pub(crate) use program::Program;
pub(crate) use waiters::{Waiters, number};

/// How long a supervisor may take to receive a request and to answer it; each is one of a program's execution, on a slow
/// disk at worst.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a supervisor may take for what it does at once: to greet, to kill, to forget. One that does not answer for so
/// long may be stopped, or wait for a disk; it is still there.
pub(crate) const BRIEF_PATIENCE: Duration = Duration::from_secs(5);
