//! Every decision of the supervisor, without I/O: events go in, actions come out in order. One is the driver's, because
//! it depends on processes: whether a container that may trace can join now (`driver/making.rs`).
//!
//! A pod consists of its containers ([`container`]), the execs in them ([`exec`]) and the clients attached to them
//! ([`client`]). Each is a machine of its own, and this one connects them: it passes a request to the machine that it
//! is for, ends execs and clients together with their container, and lets time pass for all. It holds no descriptor and
//! no process, and knows only what it has been told. [`crate::driver`] holds these and reports the result of each
//! action. So every history of a pod can be played without any I/O, which is what `simulation` does.

pub(crate) mod client;
pub(crate) mod container;
pub(crate) mod exec;
mod requests;
#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;

use wharf_types::ContainerId;
use wharf_wire::v1;

use crate::failure::Failure;
use crate::link::RequestId;
use container::{Missing, Phase};

/// How long the end of a container waits for its last output to be in its log. A disk that stalls may hold up the
/// lines, but not the clients that wait for the end.
const FLUSH_PATIENCE_NS: u64 = 3_000_000_000;
/// How often an exit record is retried after the disk refused it.
const RETRY_AFTER_NS: u64 = 1_000_000_000;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time has passed; this is the monotonic clock. It comes first whenever the loop has been woken, so that nothing
    /// counts as a success after its deadline.
    Time { now_ns: u64 },
    /// A daemon has connected, whether the one before had disconnected or not.
    Connected,
    /// The daemon has disconnected.
    Disconnected,
    /// The daemon has sent a request.
    Request(RequestId, Request),
    /// Something happened to a container.
    Container(ContainerId, container::Event),
    /// Something happened to an exec, given by its number.
    Exec(u64, exec::Event),
    /// Something happened to an attached client, given by its number.
    Client(u64, client::Event),
    /// The machine is being shut down or restarted, or systemd ends the supervisors.
    MachineEnds,
    /// What was done for a request alone has succeeded or failed.
    Settled { request: RequestId, outcome: Result<(), Failure> },
    /// The pod's sandbox has ended, and has no successor.
    SandboxEnded,
}

/// A request of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// The state of everything.
    State,
    Create {
        container: ContainerId,
        /// What it waits for before it is created.
        missing: Missing,
        /// The container whose PID namespace it joins.
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
    /// A copy of a descriptor that is held for the pod.
    Lend {
        held: v1::Held,
    },
    Shutdown,
    /// It cannot be understood, or its descriptors are missing.
    Malformed(Failure),
}

/// The recipient of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Every process of the container, with SIGKILL.
    KillAll,
    /// The container's first process.
    First(i32),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Reply that it is done.
    ReplyDone { request: RequestId },
    /// Reply with a failure.
    ReplyFailure { request: RequestId, failure: Failure },
    /// Reply with the state of everything.
    ReplyState { request: RequestId, containers: Vec<(ContainerId, Phase)> },
    /// Reply with a copy of a descriptor that is held for the pod.
    Lend { request: RequestId, held: v1::Held },
    /// Create the container's first process from the plan beside the request; `NotSpawned` follows if that fails.
    Spawn(ContainerId),
    /// Send a signal to the container's first process; `Settled` follows.
    Signal { request: RequestId, container: ContainerId, number: i32 },
    /// Reopen the container's log; `Settled` follows.
    ReopenLog { request: RequestId, container: ContainerId },
    /// Create a process in the container for the command beside the request; `NotSpawned` follows if that fails.
    Enter { exec: u64, container: ContainerId },
    /// Attach a client to the container through the pipes beside the request; `Admitted` or `Refused` follows.
    Admit { client: u64, container: ContainerId },
    /// An action on a container.
    Container(ContainerId, container::Action),
    /// An action on an exec.
    Exec(u64, exec::Action),
    /// An action on a client of a container.
    Client(ContainerId, u64, client::Action),
    /// Kill the first process of the pod's PID namespace, and its sandbox.
    EndNamespaces,
}

/// A pod, as far as its supervisor's decisions need it.
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
    /// Since when it has been in this phase, or when it was last retried in it.
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

/// The daemon's knowledge of the pod.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// The one that started this supervisor. It asks for the state before it tells anyone about the pod.
    #[default]
    Maker,
    /// One that knows the pod, or a later one.
    Knows,
    /// The first one is gone without having asked: nobody will ever ask.
    NeverKnew,
}

/// How long the supervisor lives.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// As long as its pod.
    #[default]
    Serving,
    /// Until no process of its pod is left, since the machine is said to end. Until then it serves.
    Leaving,
    /// Until every process is gone, as a request may wait for; nobody does if the sandbox has ended.
    Ending(Option<RequestId>),
    Over,
}

impl Machine {
    /// Takes one step.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Action> {
        let refused = |request, failure| vec![Action::ReplyFailure { request, failure }];
        let mut actions = match event {
            Event::Time { now_ns } => self.advance(now_ns),
            Event::Connected => self.kill_execs(),
            Event::Disconnected => self.disconnected(),
            Event::Request(id, _) if id.is_late(self.now_ns) => refused(id, Failure::expired()),
            Event::Request(id, request) => {
                self.request(id, request).unwrap_or_else(|failure| refused(id, failure))
            }
            Event::Container(id, event) => self.container(&id, event),
            Event::Exec(number, event) => self.exec(number, event),
            Event::Client(number, event) => self.client(number, event),
            Event::MachineEnds => self.machine_ends(),
            Event::Settled { request, outcome: Ok(()) } => vec![Action::ReplyDone { request }],
            Event::Settled { request, outcome: Err(failure) } => refused(request, failure),
            Event::SandboxEnded => self.sandbox_ended(),
        };
        actions.extend(self.finish());
        actions
    }

    fn sandbox_ended(&mut self) -> Vec<Action> {
        if matches!(self.life, Life::Serving | Life::Leaving) { self.end(None) } else { Vec::new() }
    }

    /// Whoever ends the machine has told all processes to exit. What may be wrong, as somebody else can have the signal
    /// sent, harms no pod that has processes.
    fn machine_ends(&mut self) -> Vec<Action> {
        if self.life == Life::Serving {
            self.life = Life::Leaving;
        }
        Vec::new()
    }

    /// Ends the supervisor's life if only that is left to do.
    fn finish(&mut self) -> Option<Action> {
        let request = match self.life {
            Life::Ending(request) => request,
            Life::Leaving => None,
            Life::Serving | Life::Over => return None,
        };
        if !self.is_quiet() {
            return None;
        }
        self.life = Life::Over;
        Some(request.map_or(Action::EndNamespaces, |request| Action::ReplyDone { request }))
    }

    /// Whether the supervisor may exit.
    pub(crate) fn is_over(&self) -> bool {
        self.life == Life::Over || self.daemon == Daemon::NeverKnew
    }

    /// Whether it must be told the time within a second.
    pub(crate) fn waits(&self) -> bool {
        let waits = |phase| matches!(phase, Phase::Ended(_) | Phase::Unrecorded(_));
        self.containers.values().any(|container| waits(container.phase))
            || self.requests().any(RequestId::can_be_late)
    }

    /// The requests for which containers and execs are being made or started.
    fn requests(&self) -> impl Iterator<Item = RequestId> {
        let containers = self.containers.values().filter_map(|container| container.phase.deadline_of());
        containers.chain(self.execs.values().filter_map(|exec| exec.phase.request()))
    }

    /// Whether no process is left. An exit that could not be recorded does not hold up the end of the pod.
    fn is_quiet(&self) -> bool {
        let is_over = |phase| matches!(phase, Phase::Exited(_) | Phase::Unrecorded(_));
        self.execs.is_empty() && self.containers.values().all(|container| is_over(container.phase))
    }

    /// Lets time pass: ends what was not done in time, and retries what is due.
    fn advance(&mut self, now_ns: u64) -> Vec<Action> {
        self.now_ns = now_ns;
        let is_late = |exec: &Exec| exec.phase.request().is_some_and(|request| request.is_late(now_ns));
        let late = self.execs.iter().filter(|(_, exec)| is_late(exec));
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        let due =
            self.containers.iter().filter_map(|(id, container)| Some((id.clone(), container.due(now_ns)?)));
        let due: Vec<_> = due.collect();
        let expired = late.into_iter().flat_map(|number| self.exec(number, exec::Event::Expired));
        let mut actions: Vec<Action> = expired.collect();
        actions.extend(due.into_iter().flat_map(|(id, event)| self.container(&id, event)));
        actions
    }

    /// Nobody waits for its execs any longer. Containers are not touched.
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
        let is_retry = event == container::Event::Retry;
        let (phase, done) = container::step(container.phase, event);
        if is_retry || phase != container.phase {
            container.since_ns = self.now_ns;
        }
        container.phase = phase;
        if phase == Phase::Gone {
            self.containers.remove(id);
        }
        let mut actions = if was_live && !phase.is_live() { self.end_dependents(id) } else { Vec::new() };
        actions.extend(done.into_iter().map(|action| Action::Container(id.clone(), action)));
        actions
    }

    /// Ends what depends on a container: execs that are still on their way in, and so were not in its cgroup, and its
    /// clients.
    fn end_dependents(&mut self, id: &ContainerId) -> Vec<Action> {
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
    /// The event that the passing of time alone causes for a container.
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
