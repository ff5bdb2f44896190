//! The life of an exec, a command in a container, as a machine without I/O.
//!
//! ```text
//! Starting ─Executed─▶ Running ─Exited─▶ Gone
//!     ├─Failed, Expired─▶ NotStarted ─Exited─▶ Gone
//!     └─NotSpawned─▶ Gone
//! ```
//!
//! Its request is answered once: when the program has been executed or could not be. Its end is reported in any case,
//! and after that. It has no record: a daemon that disconnects takes its execs with it.

use wharf_types::Exit;

use crate::failure::Failure;
use crate::link::RequestId;

/// The phase of an exec's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A process is on its way into the container. The request has not been answered.
    Starting { request: RequestId },
    /// The program runs.
    Running,
    /// The program was not executed; the process is exiting.
    NotStarted,
    /// Nothing is left of it.
    Gone,
}

impl Phase {
    /// The request for its start.
    pub(crate) fn request(self) -> Option<RequestId> {
        match self {
            Self::Starting { request } => Some(request),
            Self::Running | Self::NotStarted | Self::Gone => None,
        }
    }
}

/// What has happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The process could not be created.
    NotSpawned(Failure),
    /// The process has reported a failure.
    Failed(Failure),
    /// The program has been executed: the reports have ended without a failure.
    Executed,
    /// The deadline of its request has passed.
    Expired,
    /// The daemon has requested its end.
    Kill,
    /// The process has exited and been reaped.
    Exited(Exit),
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Reply that the program runs.
    ReplyExecuted { request: RequestId },
    /// Reply with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Kill it and everything that it started.
    Kill,
    /// Drop everything that is held for it.
    Forget,
    /// Tell the daemon how it ended.
    NotifyExited(Exit),
}

/// Takes one step.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, Vec<Action>) {
    match (phase, event) {
        (Phase::Starting { request }, event) => starting(request, event),
        // Reported first: removing the cgroup takes long, and a caller is waiting.
        (Phase::Running | Phase::NotStarted, Event::Exited(exit)) => {
            (Phase::Gone, vec![Action::NotifyExited(exit), Action::Forget])
        }
        (Phase::Running | Phase::NotStarted, Event::Kill) => (phase, vec![Action::Kill]),
        (phase, _) => (phase, Vec::new()),
    }
}

fn starting(request: RequestId, event: Event) -> (Phase, Vec<Action>) {
    let failed = |failure| Action::ReplyFailure { request, failure };
    match event {
        Event::NotSpawned(failure) => (Phase::Gone, vec![failed(failure)]),
        Event::Failed(failure) => (Phase::NotStarted, vec![failed(failure)]),
        // Nobody waits for it any longer. It is killed even if it has executed its program.
        Event::Expired => (Phase::NotStarted, vec![failed(Failure::expired()), Action::Kill]),
        Event::Executed => (Phase::Running, vec![Action::ReplyExecuted { request }]),
        Event::Kill => (Phase::Starting { request }, vec![Action::Kill]),
        // A short program may exit before the process that created it has closed the line.
        Event::Exited(exit) => {
            (Phase::Gone, vec![Action::ReplyExecuted { request }, Action::NotifyExited(exit), Action::Forget])
        }
    }
}
