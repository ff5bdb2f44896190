//! A container's life as a machine without I/O: events in, actions out.
//!
//! ```text
//! Creating ─Ready─▶ Created ─Start─▶ Starting ─Executed─▶ Running ─Exited─▶ Exited
//!     └────Failed, Exited──▶ Failed      └──Failed, then Exited: NotStarted──▶ Exited
//! ```

use wharf_types::Exit;

/// Where a container is in its life. A request in it has not been answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its first process sets things up.
    Creating { request: u64 },
    /// Its first process waits for the start.
    Created,
    /// Its first process was told to execute the program.
    Starting { request: u64 },
    /// The program runs.
    Running { started_at_ns: i64 },
    /// The program could not be executed; the process is about to be gone.
    NotStarted,
    /// It could not be made; the process is about to be gone.
    Failed,
    /// The first process is gone, and its exit is on disk.
    Exited,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first process has set everything up.
    Ready,
    /// The first process reported a failure.
    Failed { message: Failure },
    /// The first process executed the program.
    Executed { now_ns: i64 },
    /// The daemon wants it started.
    Start { request: u64 },
    /// The first process is gone, but not reaped.
    Exited { exit: Exit, now_ns: i64 },
}

/// A failure to be passed on to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: wharf_wire::v1::failure::Kind,
    pub(crate) message: String,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Answer that the container was made.
    ReplyCreated { request: u64 },
    /// Answer that the program runs.
    ReplyStarted { request: u64, started_at_ns: i64 },
    /// Answer with a failure.
    ReplyFailure { request: u64, failure: Failure },
    /// Tell the first process to execute the program.
    TellStart,
    /// Write the exit record; only then reap, and tell the daemon.
    RecordExit { exit: Exit, started_at_ns: i64, finished_at_ns: i64 },
    /// Reap without a record: the container was never made.
    Forget,
}

/// Takes one step.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, Vec<Action>) {
    match (phase, event) {
        (Phase::Creating { request }, Event::Ready) => {
            (Phase::Created, vec![Action::ReplyCreated { request }])
        }
        (Phase::Creating { request }, Event::Failed { message }) => {
            (Phase::Failed, vec![Action::ReplyFailure { request, failure: message }])
        }
        (Phase::Creating { request }, Event::Exited { .. }) => {
            let failure = Failure {
                kind: wharf_wire::v1::failure::Kind::Internal,
                message: "the container's first process was killed while it was set up".to_owned(),
            };
            (Phase::Exited, vec![Action::ReplyFailure { request, failure }, Action::Forget])
        }
        (Phase::Failed, Event::Exited { .. }) => (Phase::Exited, vec![Action::Forget]),
        (Phase::Created, Event::Start { request }) => (Phase::Starting { request }, vec![Action::TellStart]),
        (Phase::Starting { request }, Event::Executed { now_ns }) => {
            let reply = Action::ReplyStarted { request, started_at_ns: now_ns };
            (Phase::Running { started_at_ns: now_ns }, vec![reply])
        }
        (Phase::Starting { request }, Event::Failed { message }) => {
            (Phase::NotStarted, vec![Action::ReplyFailure { request, failure: message }])
        }
        (Phase::Starting { request }, Event::Exited { exit, now_ns }) => {
            let failure = Failure {
                kind: wharf_wire::v1::failure::Kind::Internal,
                message: "the container's first process was killed before it executed the program".to_owned(),
            };
            (Phase::Exited, vec![Action::ReplyFailure { request, failure }, record(exit, 0, now_ns)])
        }
        (Phase::NotStarted, Event::Exited { now_ns, .. }) => {
            (Phase::Exited, vec![record(Exit::NotStarted, 0, now_ns)])
        }
        (Phase::Created, Event::Exited { exit, now_ns }) => (Phase::Exited, vec![record(exit, 0, now_ns)]),
        (Phase::Running { started_at_ns }, Event::Exited { exit, now_ns }) => {
            (Phase::Exited, vec![record(exit, started_at_ns, now_ns)])
        }
        // A new daemon repeats a request whose answer the old one never got.
        (Phase::Starting { request: old }, Event::Start { request }) => {
            let failure = Failure {
                kind: wharf_wire::v1::failure::Kind::Precondition,
                message: "the container's start was asked for again".to_owned(),
            };
            (Phase::Starting { request }, vec![Action::ReplyFailure { request: old, failure }])
        }
        (Phase::Running { started_at_ns }, Event::Start { request }) => {
            (phase, vec![Action::ReplyStarted { request, started_at_ns }])
        }
        (phase, Event::Start { request }) => {
            let failure = Failure {
                kind: wharf_wire::v1::failure::Kind::Precondition,
                message: format!("the container is {}, not created", name(phase)),
            };
            (phase, vec![Action::ReplyFailure { request, failure }])
        }
        // A late or doubled report changes nothing.
        (phase, _) => (phase, Vec::new()),
    }
}

fn record(exit: Exit, started_at_ns: i64, now_ns: i64) -> Action {
    // A clock that was set back must not make a container end before it began.
    Action::RecordExit { exit, started_at_ns, finished_at_ns: now_ns.max(started_at_ns) }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Creating { .. } => "being created",
        Phase::Created => "created",
        Phase::Starting { .. } | Phase::Running { .. } => "started",
        Phase::NotStarted | Phase::Failed | Phase::Exited => "exited",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let message = Failure { kind: wharf_wire::v1::failure::Kind::Invalid, message: "no".into() };
        vec![
            Event::Ready,
            Event::Failed { message },
            Event::Executed { now_ns: 5 },
            Event::Start { request: 2 },
            Event::Exited { exit: Exit::Code(3), now_ns: 4 },
        ]
    }

    /// Every sequence of six events: each request is answered at most once, and all that came before the exit are;
    /// the process is reaped exactly once, on its exit.
    #[test]
    fn every_short_history_keeps_the_promises() {
        let all = events();
        for code in 0..all.len().pow(6) {
            let mut phase = Phase::Creating { request: 1 };
            let (mut answered, mut reaped, mut exited, mut starts) = (vec![], 0, false, 0);
            for place in 0..6_u32 {
                let event = all[code / all.len().pow(place) % all.len()].clone();
                if exited && !matches!(event, Event::Start { .. }) {
                    continue;
                }
                exited |= matches!(event, Event::Exited { .. });
                starts += usize::from(matches!(event, Event::Start { .. }));
                let (next, actions) = step(phase, event);
                phase = next;
                for action in actions {
                    match action {
                        Action::ReplyCreated { request }
                        | Action::ReplyStarted { request, .. }
                        | Action::ReplyFailure { request, .. } => answered.push(request),
                        Action::RecordExit { started_at_ns, finished_at_ns, .. } => {
                            reaped += 1;
                            assert!(finished_at_ns >= started_at_ns);
                        }
                        Action::Forget => reaped += 1,
                        Action::TellStart => {}
                    }
                }
            }
            assert_eq!(reaped, usize::from(exited));
            assert!(answered.iter().filter(|&&request| request == 1).count() <= 1);
            if exited {
                assert_eq!(phase, Phase::Exited);
                assert_eq!(answered.len(), 1 + starts, "history {code}");
            }
        }
    }

    #[test]
    fn a_program_that_cannot_be_executed_exits_as_not_started() {
        let message =
            Failure { kind: wharf_wire::v1::failure::Kind::NotStarted, message: "no such file".into() };
        let (phase, actions) =
            step(Phase::Starting { request: 9 }, Event::Failed { message: message.clone() });
        assert_eq!(actions, vec![Action::ReplyFailure { request: 9, failure: message }]);
        let (_, actions) = step(phase, Event::Exited { exit: Exit::Code(128), now_ns: 7 });
        assert_eq!(
            actions,
            vec![Action::RecordExit { exit: Exit::NotStarted, started_at_ns: 0, finished_at_ns: 7 }]
        );
    }
}
