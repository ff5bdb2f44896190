//! Everything the supervisor decides, without I/O: what happened goes in, what is to be done comes out, in order.
//!
//! A pod is its containers ([`container`]), the commands in them ([`exec`]) and the clients that watch them ([`client`]); each
//! is a machine of its own, and this one is what connects them: a request finds the one it is for, the end of a container
//! is that of its commands and clients, and time passes for all. It holds no descriptor and no process, and knows only
//! what it was told; [`crate::driver`] has those, and tells what became of each action. So every history of a pod can be
//! played without one, which `simulation` does.

mod asked;
pub(crate) mod client;
pub(crate) mod container;
pub(crate) mod exec;
#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;

use wharf_types::ContainerId;
use wharf_wire::v1;
use wharf_wire::v1::failure::Kind;

use crate::link::RequestId;
use container::Phase;

/// How long the end of a container waits for its last output to be in its log: a disk that stalls keeps the lines, and
/// not whoever waits for the end.
const FLUSH_PATIENCE_NS: u64 = 3_000_000_000;
/// How often an exit record is tried that the disk has refused.
const RETRY_AFTER_NS: u64 = 1_000_000_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time has passed: this is the monotonic clock's now. It comes first whenever the loop was woken, so that nothing is
    /// taken for a success after its deadline.
    Time { now_ns: u64 },
    /// A daemon took over, whether the one before had gone or not.
    Connected,
    /// The daemon has gone.
    Disconnected,
    /// The daemon wants something.
    Asked { request: RequestId, ask: Ask },
    /// Of a container.
    Container(ContainerId, container::Event),
    /// Of a command, by its number.
    Exec(u64, exec::Event),
    /// Of an attached client, by its number.
    Client(u64, client::Event),
    /// What was done for a request alone is done, or has failed.
    Settled { request: RequestId, outcome: Result<(), Failure> },
}

/// What the daemon can want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    State,
    Create {
        container: ContainerId,
        has_log: bool,
        /// The container whose PID namespace it is to be in.
        target: Option<ContainerId>,
    },
    Start {
        container: ContainerId,
    },
    Signal {
        container: ContainerId,
        signal: Signal,
    },
    Exec {
        container: ContainerId,
        exec: u64,
    },
    KillExec {
        exec: u64,
    },
    Remove {
        container: ContainerId,
    },
    Attach {
        container: ContainerId,
        client: u64,
        watches: client::Watches,
    },
    ReopenLog {
        container: ContainerId,
    },
    Lend {
        held: v1::Held,
    },
    Shutdown,
    /// The request cannot be understood, or lacks what has to be beside it.
    Nonsense(Failure),
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGKILL for every process of the container.
    KillAll,
    /// For its first process.
    First(i32),
}

/// A failure to be passed on to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Answer that it is done.
    ReplyDone { request: RequestId },
    /// Answer with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Answer with everything that is held.
    ReplyState { request: RequestId, containers: Vec<(ContainerId, Phase)> },
    /// Answer with a copy of what is held for the pod.
    Lend { request: RequestId, held: v1::Held },
    /// Make the container's first process of the plan beside the request; `NotSpawned` follows if that fails.
    Spawn(ContainerId),
    /// Send a signal to the container's first process; `Settled` follows.
    Signal { request: RequestId, container: ContainerId, number: i32 },
    /// Open the container's log anew; `Settled` follows.
    ReopenLog { request: RequestId, container: ContainerId },
    /// Make a process in the container of the command beside the request; `NotSpawned` follows if that fails.
    Enter { exec: u64, container: ContainerId },
    /// Let a client watch the container by the pipes beside the request; `Admitted` or `Refused` follows.
    Admit { client: u64, container: ContainerId },
    /// For a container.
    Container(ContainerId, container::Action),
    /// For a command.
    Exec(u64, exec::Action),
    /// For a client of a container.
    Client(ContainerId, u64, client::Action),
    /// End the first process of the pod's PID namespace.
    EndReaper,
}

/// A pod, as far as its supervisor has to decide anything.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    containers: BTreeMap<ContainerId, Container>,
    execs: BTreeMap<u64, Exec>,
    clients: BTreeMap<u64, Client>,
    now_ns: u64,
    daemon: Daemon,
    life: Life,
}

#[derive(Debug)]
struct Container {
    phase: Phase,
    /// Since when it is in this phase, or was tried again in it.
    since_ns: u64,
    has_log: bool,
}

#[derive(Debug)]
struct Exec {
    container: ContainerId,
    phase: exec::Phase,
}

#[derive(Debug)]
struct Client {
    container: ContainerId,
    phase: client::Phase,
}

/// Who may ask for something.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// The one that started this supervisor, which has told nobody of the pod yet: it asks for the state before that.
    #[default]
    Maker,
    /// One that knows the pod, or another after it.
    Knows,
    /// The maker has gone before that: nobody will ever ask.
    NeverKnew,
}

/// How long the supervisor is to live.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// As long as its pod.
    #[default]
    Wanted,
    /// Until every process is gone.
    Ending(RequestId),
    Over,
}

impl Machine {
    /// Takes one step.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = match event {
            Event::Time { now_ns } => self.pass(now_ns),
            Event::Connected => self.kill_execs(),
            Event::Disconnected => self.disconnected(),
            Event::Asked { request, ask } => self.asked(request, ask),
            Event::Container(id, event) => self.container(&id, event),
            Event::Exec(number, event) => self.exec(number, event),
            Event::Client(number, event) => self.client(number, event),
            Event::Settled { request, outcome: Ok(()) } => vec![Action::ReplyDone { request }],
            Event::Settled { request, outcome: Err(failure) } => {
                vec![Action::ReplyFailure { request, failure }]
            }
        };
        if let (Life::Ending(request), true) = (self.life, self.is_quiet()) {
            self.life = Life::Over;
            actions.push(Action::ReplyDone { request });
        }
        actions
    }

    /// Whether the supervisor's work is done.
    pub(crate) fn is_over(&self) -> bool {
        self.life == Life::Over || self.daemon == Daemon::NeverKnew
    }

    /// Whether it has to be told of the time, within a second.
    pub(crate) fn waits(&self) -> bool {
        let waits = |phase| matches!(phase, Phase::Ended(_) | Phase::Unrecorded(_));
        self.containers.values().any(|container| waits(container.phase))
            || self.requests().any(RequestId::can_be_late)
    }

    /// The requests that containers and commands are being made or started for.
    fn requests(&self) -> impl Iterator<Item = RequestId> {
        let containers = self.containers.values().filter_map(|container| container.phase.deadline_of());
        containers.chain(self.execs.values().filter_map(|exec| exec.phase.request()))
    }

    /// An exit that could not be recorded does not keep a pod whose end is wanted.
    fn is_quiet(&self) -> bool {
        let is_over = |phase| matches!(phase, Phase::Exited(_) | Phase::Unrecorded(_));
        self.execs.is_empty() && self.containers.values().all(|container| is_over(container.phase))
    }

    fn pass(&mut self, now_ns: u64) -> Vec<Action> {
        self.now_ns = now_ns;
        let is_late = |request: Option<RequestId>| request.is_some_and(|request| request.is_late(now_ns));
        let late = self.execs.iter().filter(|(_, exec)| is_late(exec.phase.request()));
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        let due =
            self.containers.iter().filter_map(|(id, container)| Some((id.clone(), container.due(now_ns)?)));
        let due: Vec<_> = due.collect();
        let expired = late.into_iter().flat_map(|number| self.exec(number, exec::Event::Expired));
        let mut actions: Vec<Action> = expired.collect();
        actions.extend(due.into_iter().flat_map(|(id, event)| self.container(&id, event)));
        actions
    }

    /// Nobody waits for its commands any more. Containers are not touched.
    fn disconnected(&mut self) -> Vec<Action> {
        if self.daemon == Daemon::Maker {
            self.daemon = Daemon::NeverKnew;
        }
        self.kill_execs()
    }

    fn kill_execs(&mut self) -> Vec<Action> {
        self.execs.keys().map(|number| Action::Exec(*number, exec::Action::Kill)).collect()
    }

    fn container(&mut self, id: &ContainerId, event: container::Event) -> Vec<Action> {
        let Some(container) = self.containers.get_mut(id) else { return Vec::new() };
        let was_live = container.phase.is_live();
        let done = container.take(event, self.now_ns);
        let is_live = container.phase.is_live();
        if container.phase == Phase::Gone {
            self.containers.remove(id);
        }
        let mut actions = if was_live && !is_live { self.left_behind(id) } else { Vec::new() };
        actions.extend(done.into_iter().map(|action| Action::Container(id.clone(), action)));
        actions
    }

    /// What ends with a container: commands that are on their way in, which were not in its cgroup yet, and its clients.
    fn left_behind(&mut self, id: &ContainerId) -> Vec<Action> {
        let execs = self.execs.iter().filter(|(_, exec)| exec.container == *id);
        let mut actions: Vec<Action> =
            execs.map(|(number, _)| Action::Exec(*number, exec::Action::Kill)).collect();
        let clients = self.clients.iter().filter(|(_, client)| client.container == *id);
        let clients: Vec<u64> = clients.map(|(number, _)| *number).collect();
        actions.extend(clients.into_iter().flat_map(|number| self.client(number, client::Event::Ended)));
        actions
    }

    fn exec(&mut self, number: u64, event: exec::Event) -> Vec<Action> {
        let Some(exec) = self.execs.get_mut(&number) else { return Vec::new() };
        let (phase, actions) = exec::step(exec.phase, event);
        exec.phase = phase;
        if phase == exec::Phase::Gone {
            self.execs.remove(&number);
        }
        actions.into_iter().map(|action| Action::Exec(number, action)).collect()
    }

    fn client(&mut self, number: u64, event: client::Event) -> Vec<Action> {
        let Some(client) = self.clients.get_mut(&number) else { return Vec::new() };
        let (phase, actions) = client::step(client.phase, event);
        client.phase = phase;
        let container = client.container.clone();
        if phase == client::Phase::Gone {
            self.clients.remove(&number);
        }
        actions.into_iter().map(|action| Action::Client(container.clone(), number, action)).collect()
    }
}

impl Container {
    fn take(&mut self, event: container::Event, now_ns: u64) -> Vec<container::Action> {
        let is_retry = event == container::Event::Retry;
        let (phase, actions) = container::step(self.phase, event);
        if is_retry || phase != self.phase {
            self.since_ns = now_ns;
        }
        self.phase = phase;
        actions
    }

    /// What time alone does to it.
    fn due(&self, now_ns: u64) -> Option<container::Event> {
        let past = |after_ns| now_ns.saturating_sub(self.since_ns) >= after_ns;
        match self.phase {
            Phase::Ended(_) if past(FLUSH_PATIENCE_NS) => Some(container::Event::Flushed),
            Phase::Unrecorded(_) if past(RETRY_AFTER_NS) => Some(container::Event::Retry),
            phase => phase
                .deadline_of()
                .filter(|request| request.is_late(now_ns))
                .map(|_| container::Event::Expired),
        }
    }
}
