//! The machine's surroundings: processes, a disk, a log writer, daemons. The world carries out each action at once and
//! checks it against the supervisor's promises, from the viewpoint of an observer right after that action, because a
//! crash may come there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wharf_types::signal::SIGKILL;
use wharf_types::{ContainerId, Exit};

use super::random::Random;
use crate::failure::Failure;
use crate::link::RequestId;
use crate::machine::container::{self, Phase};
use crate::machine::{Action, Event, FLUSH_PATIENCE_NS, client, exec};

/// Whether every promise was kept, or which was not.
pub(super) type Kept = Result<(), String>;

macro_rules! must {
    ($holds:expr, $($promise:tt)+) => {
        if !$holds {
            return Err(format!($($promise)+));
        }
    };
}
pub(super) use must;

/// A container's first process, and what is known about its container.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) at: At,
    pub(super) dying: Dying,
    has_log: bool,
    /// Since when its end has waited for the log.
    flushing_since_ns: Option<u64>,
    pub(super) claim: Claim,
    started: u32,
    exited: u32,
}

impl Process {
    fn is_over(&self) -> bool {
        matches!(self.at, At::Zombie | At::Reaped)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    SettingUp,
    Waits,
    Started,
    Runs,
    Zombie,
    Reaped,
}

/// Whether anybody may still ask how a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody was told about it.
    Unknown,
    Created,
    /// Its removal was requested.
    Unwanted,
}

/// Whether it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dying {
    No,
    Soon,
}

/// An exec's process.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) at: At,
    pub(super) dying: Dying,
}

/// Whether the disk accepts writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Takes,
    Full,
}

/// Everything outside the machine.
#[derive(Debug)]
pub(super) struct World {
    pub(super) random: Random,
    pub(super) now_ns: u64,
    pub(super) disk: Disk,
    pub(super) processes: BTreeMap<ContainerId, Process>,
    pub(super) commands: BTreeMap<u64, Command>,
    pub(super) clients: BTreeSet<u64>,
    /// The exit records on disk.
    pub(super) records: BTreeSet<ContainerId>,
    /// The orders that the log writer has not answered.
    pub(super) logs: VecDeque<Order>,
    /// The unanswered requests of the present connection, if there is one.
    pub(super) daemon: Option<BTreeSet<u64>>,
    /// The requests of connections that have ended.
    pub(super) forgotten: BTreeSet<u64>,
    lost: BTreeSet<u64>,
    pub(super) pod: Pod,
}

/// Whether the pod's end was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pod {
    Stays,
    Ends,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    Open(ContainerId),
    Reopen(RequestId),
    Flush(ContainerId),
}

impl World {
    pub(super) fn new(random: Random) -> Self {
        Self {
            random,
            now_ns: 1,
            disk: Disk::Takes,
            processes: BTreeMap::new(),
            commands: BTreeMap::new(),
            clients: BTreeSet::new(),
            records: BTreeSet::new(),
            logs: VecDeque::new(),
            daemon: Some(BTreeSet::new()),
            forgotten: BTreeSet::new(),
            lost: BTreeSet::new(),
            pod: Pod::Stays,
        }
    }

    /// A client has not kept up.
    pub(super) fn lose(&mut self, client: u64) {
        self.lost.insert(client);
    }

    /// The connection ends, and nobody waits for its replies any longer.
    pub(super) fn disconnect(&mut self) {
        self.forgotten.extend(self.daemon.take().unwrap_or_default());
    }

    /// Carries out an action, and returns its result.
    pub(super) fn act(&mut self, action: Action) -> Result<Option<Event>, String> {
        match action {
            Action::ReplyDone { request }
            | Action::ReplyFailure { request, .. }
            | Action::Lend { request, .. } => self.answered(request)?,
            Action::ReplyState { request, containers } => self.check_state(request, &containers)?,
            Action::Spawn(id) => return self.spawn(id),
            Action::Signal { request, container, .. } => return self.signal(request, &container).map(Some),
            Action::ReopenLog { request, container } => self.reopen_log(request, &container)?,
            Action::Enter { exec, .. } => return self.enter(exec),
            Action::Admit { client, .. } => return self.admit(client),
            Action::Container(id, action) => {
                let event = self.act_on_container(&id, action)?;
                return Ok(event.map(|event| Event::Container(id, event)));
            }
            Action::Exec(number, action) => self.act_on_exec(number, action)?,
            Action::Client(_, number, action) => self.act_on_client(number, action)?,
            Action::EndNamespaces => self.pod = Pod::Ends,
        }
        Ok(None)
    }

    fn signal(&mut self, request: RequestId, id: &ContainerId) -> Result<Event, String> {
        let at = self.process(id)?.at;
        must!(!matches!(at, At::Zombie | At::Reaped), "{id} gets a signal as it is {at:?}");
        Ok(Event::Settled { request, outcome: Ok(()) })
    }

    fn reopen_log(&mut self, request: RequestId, id: &ContainerId) -> Kept {
        must!(self.process(id)?.has_log, "a log is opened again that was never opened");
        self.logs.push_back(Order::Reopen(request));
        Ok(())
    }

    /// Each request is answered once, or its connection has ended.
    fn answered(&mut self, request: RequestId) -> Kept {
        let number = request.number_of_test();
        let was_open = self.daemon.as_mut().is_some_and(|open| open.remove(&number));
        must!(was_open || self.forgotten.remove(&number), "request {number} is answered twice");
        Ok(())
    }

    /// Nothing succeeds for a caller that was told of its failure: another one may have been made in its place.
    fn succeeded(&mut self, request: RequestId) -> Kept {
        let number = request.number_of_test();
        must!(!request.is_late(self.now_ns), "request {number} is done after its deadline");
        self.answered(request)
    }

    fn check_state(&mut self, request: RequestId, containers: &[(ContainerId, Phase)]) -> Kept {
        self.answered(request)?;
        let told: Vec<&ContainerId> = containers.iter().map(|(id, _)| id).collect();
        let held: Vec<&ContainerId> = self.processes.keys().collect();
        must!(told == held, "the state names {told:?}, and held are {held:?}");
        for (id, phase) in containers {
            must!(phase.is_live() != self.processes[id].is_over(), "the state says that {id} is {phase:?}");
        }
        Ok(())
    }

    fn process(&mut self, id: &ContainerId) -> Result<&mut Process, String> {
        self.processes.get_mut(id).ok_or_else(|| format!("container {id} is not held any more"))
    }

    fn spawn(&mut self, id: ContainerId) -> Result<Option<Event>, String> {
        must!(!self.processes.contains_key(&id), "container {id} is made twice");
        if self.random.one_in(8) {
            return Ok(Some(Event::Container(id, container::Event::NotSpawned(no()))));
        }
        let has_log = super::has_log(&id);
        if has_log {
            self.logs.push_back(Order::Open(id.clone()));
        }
        let (at, dying) = (At::SettingUp, Dying::No);
        let (claim, flushing_since_ns) = (Claim::Unknown, None);
        let process = Process { at, dying, has_log, flushing_since_ns, claim, started: 0, exited: 0 };
        // The daemon has removed its predecessor's.
        self.records.remove(&id);
        self.processes.insert(id, process);
        Ok(None)
    }

    fn enter(&mut self, number: u64) -> Result<Option<Event>, String> {
        must!(!self.commands.contains_key(&number), "command {number} is made twice");
        if self.random.one_in(8) {
            return Ok(Some(Event::Exec(number, exec::Event::NotSpawned(no()))));
        }
        self.commands.insert(number, Command { at: At::Started, dying: Dying::No });
        Ok(None)
    }

    fn admit(&mut self, number: u64) -> Result<Option<Event>, String> {
        must!(!self.clients.contains(&number), "client {number} is admitted twice");
        if self.random.one_in(8) {
            return Ok(Some(Event::Client(number, client::Event::Refused(no()))));
        }
        self.clients.insert(number);
        Ok(Some(Event::Client(number, client::Event::Admitted)))
    }

    fn act_on_container(
        &mut self,
        id: &ContainerId,
        action: container::Action,
    ) -> Result<Option<container::Event>, String> {
        use container::Action;
        match action {
            Action::ReplyFailure { request, .. } => self.answered(request)?,
            Action::ReplyRemoved { request } => {
                let is_gone = !self.processes.contains_key(id);
                must!(is_gone, "{id} is said to be removed, and something is left of it");
                self.answered(request)?;
            }
            Action::ReplyCreated { request } => {
                self.process(id)?.claim = Claim::Created;
                self.succeeded(request)?;
            }
            Action::ReplyStarted { request, .. } => {
                must!(
                    self.process(id)?.started == 1,
                    "the start of {id} is replied to before the notification"
                );
                self.succeeded(request)?;
            }
            Action::Record(_) => return self.record(id).map(Some),
            Action::Forget => self.forget(id)?,
            action => return self.act_on_process(id, &action),
        }
        Ok(None)
    }

    fn act_on_process(
        &mut self,
        id: &ContainerId,
        action: &container::Action,
    ) -> Result<Option<container::Event>, String> {
        use container::Action;
        match action {
            Action::Start => self.start(id)?,
            Action::Kill => self.kill(id)?,
            Action::NotifyStarted { .. } => {
                let process = self.process(id)?;
                must!(process.started == 0 && process.exited == 0, "{id} starts twice, or after its end");
                process.started = 1;
            }
            Action::NotifyExited(_) => {
                let process = self.process(id)?;
                must!(process.is_over() && process.exited == 0, "{id} ends twice, or before it did");
                process.exited = 1;
            }
            Action::Reap => self.reap(id)?,
            Action::Flush => return self.flush(id),
            other => return Err(format!("{other:?} is for no process")),
        }
        Ok(None)
    }

    fn start(&mut self, id: &ContainerId) -> Kept {
        let process = self.process(id)?;
        must!(process.at == At::Waits, "{id} is started as it is {:?}", process.at);
        process.at = At::Started;
        Ok(())
    }

    fn kill(&mut self, id: &ContainerId) -> Kept {
        let process = self.process(id)?;
        must!(!process.is_over(), "{id} is killed though it has ended: its number may be another's");
        process.dying = Dying::Soon;
        Ok(())
    }

    fn reap(&mut self, id: &ContainerId) -> Kept {
        let is_recorded = self.records.contains(id);
        let process = self.process(id)?;
        must!(process.at == At::Zombie, "{id} is reaped as it is {:?}", process.at);
        let nobody_asks = process.claim != Claim::Created;
        must!(is_recorded || nobody_asks, "{id} is reaped before its exit is on disk");
        process.at = At::Reaped;
        Ok(())
    }

    fn flush(&mut self, id: &ContainerId) -> Result<Option<container::Event>, String> {
        let now_ns = self.now_ns;
        let process = self.process(id)?;
        if !process.has_log {
            return Ok(Some(container::Event::Flushed));
        }
        process.flushing_since_ns = Some(now_ns);
        self.logs.push_back(Order::Flush(id.clone()));
        Ok(None)
    }

    /// The log has a container's last line before anyone can report its end, unless the disk of the logs stalls.
    fn record(&mut self, id: &ContainerId) -> Result<container::Event, String> {
        let is_flushed = !self.logs.contains(&Order::Flush(id.clone()));
        let (now_ns, disk) = (self.now_ns, self.disk);
        let process = self.process(id)?;
        must!(process.at == At::Zombie, "the exit of {id} is recorded as it is {:?}", process.at);
        let waited_ns = process.flushing_since_ns.map_or(0, |since_ns| now_ns - since_ns);
        must!(is_flushed || waited_ns >= FLUSH_PATIENCE_NS, "{id} ends before its last line");
        if disk == Disk::Full {
            return Ok(container::Event::Refused);
        }
        self.records.insert(id.clone());
        Ok(container::Event::Recorded)
    }

    /// Nothing is forgotten that would be a leak.
    fn forget(&mut self, id: &ContainerId) -> Kept {
        let process = self.process(id)?;
        must!(process.at == At::Reaped, "{id} is forgotten as it is {:?}", process.at);
        let is_known = process.exited == 1 || process.claim != Claim::Created;
        must!(is_known, "the end of {id} was never notified");
        self.processes.remove(id);
        Ok(())
    }

    fn act_on_exec(&mut self, number: u64, action: exec::Action) -> Kept {
        match action {
            exec::Action::ReplyExecuted { request } => self.succeeded(request)?,
            exec::Action::ReplyFailure { request, .. } => self.answered(request)?,
            exec::Action::Kill => {
                let command = self.commands.get_mut(&number).ok_or("a command is killed that is gone")?;
                command.dying = Dying::Soon;
            }
            exec::Action::Forget => {
                let command = self.commands.remove(&number).ok_or("a command is forgotten twice")?;
                must!(command.at == At::Reaped, "a command is forgotten that lives");
            }
            exec::Action::NotifyExited(_) => {
                let command =
                    self.commands.get(&number).ok_or("the end of a forgotten command is notified")?;
                must!(command.at == At::Reaped, "the end of a command is notified before it is gone");
            }
        }
        Ok(())
    }

    fn act_on_client(&mut self, number: u64, action: client::Action) -> Kept {
        match action {
            client::Action::ReplyAttached { request } => self.succeeded(request)?,
            client::Action::ReplyFailure { request, .. } => self.answered(request)?,
            client::Action::NotifyDetached => {
                must!(self.lost.remove(&number), "client {number} is detached although it kept up");
            }
            client::Action::Dismiss => {
                must!(self.clients.remove(&number), "client {number} is dismissed twice");
                self.lost.remove(&number);
            }
        }
        Ok(())
    }
}

/// Any failure.
pub(super) fn no() -> Failure {
    Failure::fault("no")
}

/// Any exit.
pub(super) fn exit(random: &mut Random) -> Exit {
    if random.one_in(2) { Exit::Code(0) } else { Exit::Signal { number: SIGKILL, oom: false } }
}
