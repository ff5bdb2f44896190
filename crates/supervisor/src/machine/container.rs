//! The life of a container, as a machine without I/O: events in, actions out.
//!
//! ```text
//! Creating ─Ready, LogOpened─▶ Created ─Start─▶ Starting ─Executed─▶ Running ─Exited─▶ Ended
//!     └────Failed, Exited──▶ Gone                   └──Failed: NotStarted ──Exited──▶ Ended
//!     (Expired is a failure, too, after which the process is killed)
//!
//! Ended ─Flushed─▶ Recording ─Recorded─▶ Exited ─Remove─▶ Gone
//!                      └─Refused─▶ Unrecorded ─Recorded─▶ Exited
//! ```
//!
//! A removal is accepted in every phase: what is alive is killed first, in `Removing`. The exit record stays for the
//! daemon, which removes it last of all: if it is killed before, the next one must find how the container ended.

use wharf_state::ExitRecord;
use wharf_types::Exit;
use wharf_wire::v1::failure::Kind;

use crate::failure::Failure;
use crate::link::RequestId;

/// The phase of a container's life. A request in it has not been answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its first process is setting up the container, and its log is being opened.
    Creating { request: RequestId, missing: Missing },
    /// Its first process waits for the start.
    Created,
    /// Its first process has been told to execute the program.
    Starting { request: RequestId },
    /// The program runs.
    Running { started_at_ns: i64 },
    /// The program could not be executed in time, or at all; the process is exiting.
    NotStarted,
    /// It could not be created; the process is exiting.
    Failed,
    /// It is being removed; the process has been killed.
    Removing { request: RequestId },
    /// The first process is a zombie; its last output is on its way to the log.
    Ended(ExitRecord),
    /// Its exit record is being written.
    Recording(ExitRecord),
    /// Its exit record could not be written. The zombie stays, and writing is retried.
    Unrecorded(ExitRecord),
    /// The first process has been reaped, and its exit record is on disk.
    Exited(ExitRecord),
    /// Nothing is left of it.
    Gone,
}

/// What a container that is being created still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Process,
    Log,
    Both,
}

impl Phase {
    /// Whether its first process has not ended, as far as is known.
    pub(crate) fn is_live(self) -> bool {
        match self {
            Self::Ended(_) | Self::Recording(_) | Self::Unrecorded(_) | Self::Exited(_) | Self::Gone => false,
            Self::Creating { .. }
            | Self::Created
            | Self::Starting { .. }
            | Self::Running { .. }
            | Self::NotStarted
            | Self::Failed
            | Self::Removing { .. } => true,
        }
    }

    /// Whether it has streams: from its creation to its end.
    pub(crate) fn has_streams(self) -> bool {
        matches!(self, Self::Created | Self::Starting { .. } | Self::Running { .. })
    }

    /// The request whose deadline applies to the container. A removal has no deadline.
    pub(crate) fn deadline_of(self) -> Option<RequestId> {
        match self {
            Self::Creating { request, .. } | Self::Starting { request } => Some(request),
            _ => None,
        }
    }
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first process could not be created.
    NotSpawned(Failure),
    /// The first process has set everything up.
    Ready,
    /// The log is open.
    LogOpened,
    /// The first process has reported a failure.
    Failed(Failure),
    /// The log could not be opened.
    LogFailed(Failure),
    /// The first process has executed the program.
    Executed { now_ns: i64 },
    /// The daemon has requested its start.
    Start { request: RequestId },
    /// The daemon has requested its removal.
    Remove { request: RequestId },
    /// The deadline of the request for its creation or start has passed.
    Expired,
    /// The first process has exited and has not been reaped.
    Exited { exit: Exit, now_ns: i64 },
    /// The output is in the log, or the wait for that has been long enough.
    Flushed,
    /// The exit record is on disk.
    Recorded,
    /// The exit record could not be written.
    Refused,
    /// It is time to retry.
    Retry,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Reply that the container has been created.
    ReplyCreated { request: RequestId },
    /// Reply that the program runs.
    ReplyStarted { request: RequestId, started_at_ns: i64 },
    /// Reply that the container has been removed.
    ReplyRemoved { request: RequestId },
    /// Reply with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Tell the first process to execute the program.
    Start,
    /// Tell the daemon that the program runs, whether or not it has asked.
    NotifyStarted { started_at_ns: i64 },
    /// Kill all its processes.
    Kill,
    /// Get its output into the log; `Flushed` follows.
    Flush,
    /// Write the exit record: `Recorded` or `Refused` follows.
    Record(ExitRecord),
    /// Tell the daemon how it ended.
    NotifyExited(ExitRecord),
    /// Reap the first process.
    Reap,
    /// Drop everything that is held for it.
    Forget,
}

/// Takes one step.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, Vec<Action>) {
    match event {
        Event::Ready | Event::LogOpened => created(phase, &event),
        Event::NotSpawned(failure) => match phase {
            Phase::Creating { request, .. } => (Phase::Gone, vec![Action::ReplyFailure { request, failure }]),
            phase => (phase, Vec::new()),
        },
        Event::Failed(failure) => failed(phase, failure),
        Event::LogFailed(failure) => match phase {
            Phase::Creating { request, .. } => {
                (Phase::Failed, vec![Action::ReplyFailure { request, failure }, Action::Kill])
            }
            phase => (phase, Vec::new()),
        },
        Event::Executed { now_ns } => executed(phase, now_ns),
        Event::Start { request } => start(phase, request),
        Event::Expired => expired(phase),
        Event::Remove { request } => remove(phase, request),
        Event::Exited { exit, now_ns } => exited(phase, exit, now_ns),
        Event::Flushed | Event::Recorded | Event::Refused | Event::Retry => settled(phase, &event),
    }
}

fn created(phase: Phase, event: &Event) -> (Phase, Vec<Action>) {
    let Phase::Creating { request, missing } = phase else { return (phase, Vec::new()) };
    let missing = match (missing, event) {
        (Missing::Both, Event::Ready) => Missing::Log,
        (Missing::Both, Event::LogOpened) => Missing::Process,
        (Missing::Process, Event::Ready) | (Missing::Log, Event::LogOpened) => {
            return (Phase::Created, vec![Action::ReplyCreated { request }]);
        }
        // A repeated report changes nothing.
        _ => missing,
    };
    (Phase::Creating { request, missing }, Vec::new())
}

fn failed(phase: Phase, failure: Failure) -> (Phase, Vec<Action>) {
    match phase {
        Phase::Creating { request, .. } => (Phase::Failed, vec![Action::ReplyFailure { request, failure }]),
        Phase::Starting { request } => (Phase::NotStarted, vec![Action::ReplyFailure { request, failure }]),
        phase => (phase, Vec::new()),
    }
}

fn executed(phase: Phase, started_at_ns: i64) -> (Phase, Vec<Action>) {
    match phase {
        Phase::Starting { request } => {
            (Phase::Running { started_at_ns }, started(request, started_at_ns).to_vec())
        }
        phase => (phase, Vec::new()),
    }
}

/// The daemon learns of the start even if the one that requested it is gone.
fn started(request: RequestId, started_at_ns: i64) -> [Action; 2] {
    [Action::NotifyStarted { started_at_ns }, Action::ReplyStarted { request, started_at_ns }]
}

fn start(phase: Phase, request: RequestId) -> (Phase, Vec<Action>) {
    let state = match phase {
        Phase::Created => return (Phase::Starting { request }, vec![Action::Start]),
        // A new daemon repeats a request that was not answered to the old one.
        Phase::Starting { request: old } => {
            let again = refusal(old, "the start of the container was requested again");
            return (Phase::Starting { request }, vec![again]);
        }
        Phase::Running { started_at_ns } => {
            return (phase, vec![Action::ReplyStarted { request, started_at_ns }]);
        }
        Phase::Creating { .. } => "being created",
        Phase::Removing { .. } => "being removed",
        _ => "exited",
    };
    (phase, vec![refusal(request, format!("the container is {state}, not created"))])
}

/// Ends the container: its caller has been told that the request failed, and may have made another one in its place, so
/// it must not run. This also ends one that has executed its program without anybody having been told.
fn expired(phase: Phase) -> (Phase, Vec<Action>) {
    let failed = |request| vec![Action::ReplyFailure { request, failure: Failure::expired() }, Action::Kill];
    match phase {
        Phase::Creating { request, .. } => (Phase::Failed, failed(request)),
        Phase::Starting { request } => (Phase::NotStarted, failed(request)),
        phase => (phase, Vec::new()),
    }
}

fn remove(phase: Phase, request: RequestId) -> (Phase, Vec<Action>) {
    let removed = Action::ReplyRemoved { request };
    let pending = match phase {
        Phase::Exited(_) => return (Phase::Gone, vec![Action::Forget, removed]),
        Phase::Ended(_) | Phase::Recording(_) | Phase::Unrecorded(_) => {
            return (Phase::Gone, vec![Action::Reap, Action::Forget, removed]);
        }
        Phase::Gone => return (phase, vec![removed]),
        Phase::Creating { request, .. } | Phase::Starting { request } | Phase::Removing { request } => {
            Some(refusal(request, "the container is being removed"))
        }
        Phase::Created | Phase::Running { .. } | Phase::NotStarted | Phase::Failed => None,
    };
    (Phase::Removing { request }, pending.into_iter().chain([Action::Kill]).collect())
}

fn exited(phase: Phase, exit: Exit, now_ns: i64) -> (Phase, Vec<Action>) {
    let (phase, mut actions) = match phase {
        Phase::Creating { request, .. } => {
            let killed =
                "the container's first process was killed while it was set up: is its memory limit too low?";
            return gone(Some(refusal_of(request, Kind::Internal, killed)));
        }
        Phase::Failed => return gone(None),
        Phase::Removing { request } => return gone(Some(Action::ReplyRemoved { request })),
        Phase::Created => (ended(exit, 0, now_ns), Vec::new()),
        // A short program may exit before the process that created it has closed the line.
        Phase::Starting { request } => (ended(exit, now_ns, now_ns), started(request, now_ns).to_vec()),
        Phase::NotStarted => (ended(Exit::NotStarted, 0, now_ns), Vec::new()),
        Phase::Running { started_at_ns } => (ended(exit, started_at_ns, now_ns), Vec::new()),
        phase => return (phase, Vec::new()),
    };
    actions.push(Action::Flush);
    (phase, actions)
}

/// The end of a container that nobody will ask about. By the reply, nothing is left of it.
fn gone(reply: Option<Action>) -> (Phase, Vec<Action>) {
    (Phase::Gone, [Action::Reap, Action::Forget].into_iter().chain(reply).collect())
}

/// A clock that was set back must not make a container end before it started.
fn ended(exit: Exit, started_at_ns: i64, now_ns: i64) -> Phase {
    Phase::Ended(ExitRecord { exit, started_at_ns, finished_at_ns: now_ns.max(started_at_ns) })
}

/// Writes the record before the process is reaped: whoever sees the process gone finds its exit. The daemon is told as
/// soon as writing has been tried. So a full disk keeps the zombie, which is then the record, but does not hold up the
/// clients that wait for the end.
fn settled(phase: Phase, event: &Event) -> (Phase, Vec<Action>) {
    match (phase, event) {
        (Phase::Ended(record), Event::Flushed) => (Phase::Recording(record), vec![Action::Record(record)]),
        (Phase::Recording(record), Event::Recorded) => {
            (Phase::Exited(record), vec![Action::Reap, Action::NotifyExited(record)])
        }
        (Phase::Recording(record), Event::Refused) => {
            (Phase::Unrecorded(record), vec![Action::NotifyExited(record)])
        }
        (Phase::Unrecorded(record), Event::Retry) => (phase, vec![Action::Record(record)]),
        (Phase::Unrecorded(record), Event::Recorded) => (Phase::Exited(record), vec![Action::Reap]),
        (phase, _) => (phase, Vec::new()),
    }
}

fn refusal(request: RequestId, message: impl Into<String>) -> Action {
    refusal_of(request, Kind::Precondition, message)
}

fn refusal_of(request: RequestId, kind: Kind, message: impl Into<String>) -> Action {
    Action::ReplyFailure { request, failure: Failure::new(kind, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: RequestId = RequestId::of_test(1);
    const EXIT: Exit = Exit::Code(3);

    fn failure() -> Failure {
        Failure::new(Kind::Invalid, "no")
    }

    /// Whether the disk accepts a record that is retried.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Disk {
        Takes,
        Refuses,
    }

    /// One history of a container, as its supervisor would see it.
    #[derive(Clone)]
    struct History {
        phase: Phase,
        events: Vec<Event>,
        asked: Vec<RequestId>,
        answered: Vec<RequestId>,
        deaths: u32,
        is_flushing: bool,
        recorded: u32,
        reaped: u32,
        told: (u32, u32),
        forgotten: u32,
    }

    impl History {
        fn new() -> Self {
            Self {
                phase: Phase::Creating { request: CREATE, missing: Missing::Both },
                events: vec![],
                asked: vec![CREATE],
                answered: vec![],
                deaths: 0,
                is_flushing: false,
                recorded: 0,
                reaped: 0,
                told: (0, 0),
                forgotten: 0,
            }
        }

        /// What can happen next.
        fn possible(&self) -> Vec<Event> {
            let request = RequestId::of_test(self.asked.len() as u64 + 1);
            if self.phase == Phase::Gone {
                return vec![];
            }
            if matches!(self.phase, Phase::Recording(_)) {
                return vec![Event::Recorded, Event::Refused];
            }
            let mut events =
                vec![Event::Start { request }, Event::Remove { request }, Event::Retry, Event::Expired];
            events.extend([Event::LogOpened, Event::LogFailed(failure())]);
            events.extend(self.is_flushing.then_some(Event::Flushed));
            if self.deaths == 0 {
                let exited = Event::Exited { exit: EXIT, now_ns: 4 };
                events.extend([
                    Event::Ready,
                    Event::Failed(failure()),
                    Event::Executed { now_ns: 5 },
                    exited,
                ]);
            }
            events
        }

        fn take(&mut self, event: Event, disk: Disk) {
            self.events.push(event.clone());
            match &event {
                Event::Start { request } | Event::Remove { request } => self.asked.push(*request),
                Event::Exited { .. } => self.deaths += 1,
                Event::Flushed => self.is_flushing = false,
                Event::Recorded => self.recorded = 1,
                _ => {}
            }
            let (phase, actions) = step(self.phase, event);
            self.phase = phase;
            for action in actions {
                self.act(action, disk);
            }
        }

        fn act(&mut self, action: Action, disk: Disk) {
            match action {
                Action::ReplyCreated { request }
                | Action::ReplyStarted { request, .. }
                | Action::ReplyRemoved { request }
                | Action::ReplyFailure { request, .. } => {
                    assert!(self.asked.contains(&request) && !self.answered.contains(&request));
                    self.answered.push(request);
                }
                Action::Record(record) => {
                    assert!(self.deaths == 1 && self.reaped == 0 && !self.is_flushing);
                    assert!(record.finished_at_ns >= record.started_at_ns);
                    if !matches!(self.phase, Phase::Recording(_)) {
                        let event = if disk == Disk::Takes { Event::Recorded } else { Event::Refused };
                        self.take(event, disk);
                    }
                }
                Action::NotifyStarted { .. } => {
                    assert_eq!(self.told, (0, 0));
                    self.told.0 += 1;
                }
                Action::NotifyExited(_) => self.told.1 += 1,
                Action::Reap => self.reaped += 1,
                Action::Forget => self.forgotten += 1,
                Action::Flush => self.is_flushing = true,
                Action::Kill | Action::Start => assert_eq!(self.deaths, 0),
            }
        }

        fn check(&self) {
            let why = &self.events;
            assert!(self.reaped <= 1 && self.told.1 <= 1 && self.forgotten <= 1, "{why:?}");
            let is_gone = self.phase == Phase::Gone;
            assert_eq!(self.forgotten == 1, is_gone, "{why:?}");
            // Before its exit is on disk, a process is reaped only for a caller that wants nothing to be left.
            assert!(self.reaped == 0 || self.recorded == 1 || is_gone, "{why:?}");
            assert!(!is_gone || (self.reaped == 1 && self.deaths == 1), "{why:?}");
            let owed: Vec<RequestId> =
                self.asked.iter().filter(|id| !self.answered.contains(id)).copied().collect();
            let pending = match self.phase {
                Phase::Creating { request, .. }
                | Phase::Starting { request }
                | Phase::Removing { request } => vec![request],
                _ => vec![],
            };
            assert_eq!(owed, pending, "{why:?}");
            let settled = matches!(self.phase, Phase::Exited(_) | Phase::Unrecorded(_));
            assert!(!settled || self.told.1 == 1, "{why:?}");
        }
    }

    /// Every history of seven events, with a disk that accepts records and one that does not. Each request is answered
    /// once, at the latest when nothing more can happen. The process is reaped once, after its exit was recorded or
    /// when the container is removed. The daemon is told of the start and of the end once each, in this order.
    #[test]
    fn every_short_history_keeps_the_promises() {
        let mut histories = vec![History::new()];
        for _ in 0..7 {
            let mut next = Vec::new();
            for history in histories {
                for event in history.possible() {
                    for disk in [Disk::Takes, Disk::Refuses] {
                        let mut longer = history.clone();
                        longer.take(event.clone(), disk);
                        longer.check();
                        next.push(longer);
                    }
                }
            }
            // The events are only for people: histories with the same result continue in the same way.
            next.sort_by_key(|history| format!("{:?}", history.key()));
            next.dedup_by_key(|history| history.key());
            histories = next;
        }
        assert!(histories.iter().any(|history| matches!(history.phase, Phase::Exited(_))));
    }

    impl History {
        /// Everything that decides how a history continues.
        fn key(&self) -> (Phase, Vec<RequestId>, Vec<RequestId>, bool, [u32; 6]) {
            let counts = [self.deaths, self.recorded, self.reaped, self.told.0, self.told.1, self.forgotten];
            (self.phase, self.asked.clone(), self.answered.clone(), self.is_flushing, counts)
        }
    }

    #[test]
    fn a_program_that_cannot_be_executed_exits_as_not_started() {
        let request = RequestId::of_test(9);
        let (phase, actions) = step(Phase::Starting { request }, Event::Failed(failure()));
        assert_eq!(actions, vec![Action::ReplyFailure { request, failure: failure() }]);
        let (phase, _) = step(phase, Event::Exited { exit: Exit::Code(128), now_ns: 7 });
        let (_, actions) = step(phase, Event::Flushed);
        let record = ExitRecord { exit: Exit::NotStarted, started_at_ns: 0, finished_at_ns: 7 };
        assert_eq!(actions, vec![Action::Record(record)]);
    }

    /// The daemon may be killed before it has removed the container, and the next one must find how it ended.
    #[test]
    fn the_end_of_a_removed_container_stays_on_disk() {
        let record = ExitRecord { exit: EXIT, started_at_ns: 1, finished_at_ns: 2 };
        let request = RequestId::of_test(9);
        let (phase, actions) = step(Phase::Exited(record), Event::Remove { request });
        assert_eq!((phase, actions), (Phase::Gone, vec![Action::Forget, Action::ReplyRemoved { request }]));
    }

    #[test]
    fn a_start_that_nobody_waits_for_any_more_is_no_start() {
        let request = RequestId::of_test(9).until(100);
        assert!(!request.is_late(99) && request.is_late(100) && !RequestId::of_test(9).is_late(u64::MAX));
        let (phase, actions) = step(Phase::Starting { request }, Event::Expired);
        assert_eq!(actions, [Action::ReplyFailure { request, failure: Failure::expired() }, Action::Kill]);
        let (phase, actions) = step(phase, Event::Executed { now_ns: 5 });
        assert_eq!((phase, actions), (Phase::NotStarted, vec![]));
    }
}
