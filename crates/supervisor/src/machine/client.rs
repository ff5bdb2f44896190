//! The life of an attached client, as a machine without I/O.
//!
//! ```text
//! Arriving ─Admitted─▶ Watching ─Left, Ended, FellBehind─▶ Gone
//!     └─Refused─▶ Gone
//! ```
//!
//! It leaves on its own, with the container, or because it does not read: the container never waits for a client. One
//! that receives no output is gone as soon as it has the container's input.

use crate::failure::Failure;
use crate::link::RequestId;

/// The phase of a client's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its pipes are being set up. The request has not been answered.
    Arriving { request: RequestId, watches: Watches },
    /// It receives the container's output.
    Watching,
    /// Nothing is left of it.
    Gone,
}

/// Whether a client receives output; one that does not only has the container's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watches {
    Output,
    Nothing,
}

/// What has happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its pipes are set up.
    Admitted,
    /// Its pipes could not be set up.
    Refused(Failure),
    /// It did not read in time and has missed output.
    FellBehind,
    /// It has closed its ends.
    Left,
    /// The container's output has ended.
    Ended,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Reply with the container's input, if that is wanted and open.
    ReplyAttached { request: RequestId },
    /// Reply with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Tell the daemon that it did not keep up.
    NotifyDetached,
    /// Close its pipes.
    Dismiss,
}

/// Takes one step.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, Vec<Action>) {
    match (phase, event) {
        (Phase::Arriving { request, watches: Watches::Output }, Event::Admitted) => {
            (Phase::Watching, vec![Action::ReplyAttached { request }])
        }
        (Phase::Arriving { request, watches: Watches::Nothing }, Event::Admitted) => {
            (Phase::Gone, vec![Action::ReplyAttached { request }, Action::Dismiss])
        }
        (Phase::Arriving { request, .. }, Event::Refused(failure)) => {
            (Phase::Gone, vec![Action::ReplyFailure { request, failure }])
        }
        (Phase::Watching, Event::FellBehind) => (Phase::Gone, vec![Action::NotifyDetached, Action::Dismiss]),
        (Phase::Watching, Event::Left | Event::Ended) => (Phase::Gone, vec![Action::Dismiss]),
        (phase, _) => (phase, Vec::new()),
    }
}
