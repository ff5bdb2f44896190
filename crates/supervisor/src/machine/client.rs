//! An attached client's stay as a machine without I/O: it arrives, watches, and leaves by itself, with the container, or
//! because it does not read. The container never waits for one.

use super::Failure;
use crate::link::RequestId;

/// Where a client is in its stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its pipes are being taken. The request has not been answered.
    Arriving { request: RequestId, watches: Watches },
    /// It gets the container's output.
    Watching,
    /// Nothing is left of it.
    Gone,
}

/// Whether a client wants output; one that wants none only gets the container's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watches {
    Output,
    Nothing,
}

/// What happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Admitted,
    Refused(Failure),
    /// It did not read in time, and missed something.
    Lost,
    /// It closed its ends.
    Left,
    /// The container's output has ended.
    Ended,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Answer with the container's input, if that is wanted and open.
    ReplyAttached { request: RequestId },
    /// Answer with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Tell the daemon that it did not keep up.
    TellDetached,
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
        (Phase::Watching, Event::Lost) => (Phase::Gone, vec![Action::TellDetached, Action::Dismiss]),
        (Phase::Watching, Event::Left | Event::Ended) => (Phase::Gone, vec![Action::Dismiss]),
        (phase, _) => (phase, Vec::new()),
    }
}
