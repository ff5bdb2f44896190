//! A command's life in a container as a machine without I/O.
//!
//! ```text
//! Starting ─Executed─▶ Running ─Exited─▶ Gone
//!     ├─Failed, Expired─▶ NotStarted ─Exited─▶ Gone
//!     └─NotSpawned─▶ Gone
//! ```
//!
//! Who asked is answered once: when the program was executed, or could not be. Its end is told in any case, after that.
//! There is no record of it: a daemon that goes takes its commands with it.

use wharf_types::Exit;

use super::Failure;
use crate::link::{self, RequestId};

/// Where a command is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A process is on its way into the container. The request has not been answered.
    Starting { request: RequestId },
    /// The program runs.
    Running,
    /// The program was not executed; the process is about to be gone.
    NotStarted,
    /// Nothing is left of it.
    Gone,
}

impl Phase {
    /// The request that it is being started for.
    pub(crate) fn request(self) -> Option<RequestId> {
        match self {
            Self::Starting { request } => Some(request),
            Self::Running | Self::NotStarted | Self::Gone => None,
        }
    }
}

/// What happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is no process.
    NotSpawned(Failure),
    /// The process reported a failure.
    Failed(Failure),
    /// The program was executed: the reports have ended without a failure.
    Executed,
    /// The deadline of its request has come.
    Expired,
    /// The daemon wants it dead.
    Kill,
    /// The process is gone, and reaped.
    Exited(Exit),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Answer that the program runs.
    ReplyExecuted { request: RequestId },
    /// Answer with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Kill it and all that it started.
    Kill,
    /// Let go of everything that is held of it.
    Forget,
    /// Tell the daemon how it ended.
    TellExited(Exit),
}

/// Takes one step.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, Vec<Action>) {
    match (phase, event) {
        (Phase::Starting { request }, Event::NotSpawned(failure)) => {
            (Phase::Gone, vec![Action::ReplyFailure { request, failure }])
        }
        (Phase::Starting { request }, Event::Failed(failure)) => {
            (Phase::NotStarted, vec![Action::ReplyFailure { request, failure }])
        }
        // Nobody waits for it any more. It may have executed its program: it is ended all the same.
        (Phase::Starting { request }, Event::Expired) => {
            let failure = link::expired();
            (Phase::NotStarted, vec![Action::ReplyFailure { request, failure }, Action::Kill])
        }
        (Phase::Starting { request }, Event::Executed) => {
            (Phase::Running, vec![Action::ReplyExecuted { request }])
        }
        // A short program may be over before the process that it was born of has let go of the line.
        (Phase::Starting { request }, Event::Exited(exit)) => {
            (Phase::Gone, vec![Action::ReplyExecuted { request }, Action::TellExited(exit), Action::Forget])
        }
        // Told first: to remove its cgroup takes long, and a caller waits.
        (Phase::Running | Phase::NotStarted, Event::Exited(exit)) => {
            (Phase::Gone, vec![Action::TellExited(exit), Action::Forget])
        }
        (Phase::Starting { .. } | Phase::Running | Phase::NotStarted, Event::Kill) => {
            (phase, vec![Action::Kill])
        }
        (phase, _) => (phase, Vec::new()),
    }
}
