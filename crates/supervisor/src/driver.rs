//! Carries out what the machine decides. Only this module has the pod's descriptors, processes and cgroups.
//!
//! It decides nothing about the life of a container, an exec or a client, and never calls the machine. It returns, as
//! events, the results of actions and what it finds when the loop has been woken.

mod making;
mod processes;
mod replies;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use wharf_state::{ExitRecord, Layout};
use wharf_types::ContainerId;

use crate::child::Creators;
use crate::container::{Container, Exec};
use crate::diagnostics::OrWarn as _;
use crate::failure::Failure;
use crate::held::PodDescriptors;
use crate::leaf;
use crate::link::Link;
use crate::log::writer::LogWriter;
use crate::machine::{Action, Event, client, container, exec};
use crate::pod_reaper::PodReaper;
use crate::requests::Payload;
use crate::sandbox::Keeper;
use crate::score::Score;
use crate::spawn::Spawner;
use crate::watch::{Out, Owner, Source, Watch};

/// What the supervisor holds.
#[derive(Debug)]
pub(crate) struct Driver {
    directory: PathBuf,
    pub(crate) watch: Watch,
    pub(crate) link: Link,
    pub(crate) log_writer: LogWriter,
    spawner: Spawner,
    held: PodDescriptors,
    // Boxed, because a map makes room for eleven values at once, and most pods have one container.
    containers: BTreeMap<ContainerId, Box<Container>>,
    execs: BTreeMap<u64, Box<Exec>>,
    /// The containers' inputs, for clients that are about to be answered.
    inputs: BTreeMap<u64, OwnedFd>,
    /// Outputs that are not read until the log writer has accepted what is queued.
    blocked: Vec<(ContainerId, Out)>,
    reaper: Option<PodReaper>,
    sandbox: Option<Keeper>,
    creators: Creators,
    /// This process's own.
    score: Score,
    /// What belongs to the request that is being handled.
    pub(crate) payload: Payload,
    /// The buffer for reading outputs; it exists while there is output.
    buffer: Vec<u8>,
}

impl Driver {
    /// The driver of a pod with this directory and this connection to a daemon.
    pub(crate) fn new(directory: PathBuf, watch: Watch, link: Link) -> wharf_sys::Result<Self> {
        Ok(Self {
            directory,
            watch,
            link,
            log_writer: LogWriter::default(),
            spawner: Spawner::new()?,
            held: PodDescriptors::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            blocked: Vec::new(),
            reaper: None,
            sandbox: None,
            creators: Creators::default(),
            score: Score::default(),
            payload: Payload::Empty,
            buffer: Vec::new(),
        })
    }

    /// Carries out one action, and returns its result if the machine waits for it.
    pub(crate) fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::ReplyDone { request } => self.reply_done(request),
            Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            Action::ReplyState { request, containers } => self.reply_state(request, &containers),
            Action::Lend { request, held } => self.lend(request, held),
            Action::Spawn(id) => return spawned(self.spawn(&id), id),
            Action::Enter { exec, container } => return entered(self.enter(exec, container), exec),
            Action::Admit { client, container } => return Some(self.admit(client, &container)),
            Action::Signal { request, container, number } => return self.signal(request, &container, number),
            Action::ReopenLog { request, container } => self.reopen_log(request, &container),
            Action::Container(id, action) => {
                return self.act_on_container(&id, action).map(|event| Event::Container(id, event));
            }
            Action::Exec(number, action) => self.act_on_exec(number, action),
            Action::Client(container, number, action) => self.act_on_client(&container, number, action),
            Action::EndNamespaces => self.end_namespaces(),
        }
        None
    }

    /// Replies and events go out even if nothing is held for the container any more, or yet.
    fn act_on_container(&mut self, id: &ContainerId, action: container::Action) -> Option<container::Event> {
        use container::Action;
        match action {
            Action::ReplyCreated { request } => self.reply_created(request, id),
            Action::ReplyStarted { request, started_at_ns } => {
                self.reply_started(request, id, started_at_ns);
            }
            Action::ReplyRemoved { request } => self.reply_done(request),
            Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            Action::NotifyStarted { started_at_ns } => self.notify_started(id, started_at_ns),
            Action::NotifyExited(record) => self.notify_exited(id, &record),
            Action::Start => self.start(id),
            Action::Kill => self.containers.get_mut(id).into_iter().for_each(|container| container.kill()),
            Action::Flush => return self.flush(id),
            Action::Record(record) => return Some(self.record(id, &record)),
            Action::Reap => self.reap(id),
            Action::Forget => self.forget(id),
        }
        None
    }

    fn act_on_exec(&mut self, number: u64, action: exec::Action) {
        match action {
            exec::Action::ReplyExecuted { request } => self.reply_executed(request, number),
            exec::Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            exec::Action::Kill => self.kill_exec(number),
            exec::Action::Forget => self.forget_exec(number),
            exec::Action::NotifyExited(exit) => self.notify_exec_exited(number, exit),
        }
    }

    fn act_on_client(&mut self, id: &ContainerId, number: u64, action: client::Action) {
        match action {
            client::Action::ReplyAttached { request } => self.reply_attached(request, number),
            client::Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            client::Action::NotifyDetached => self.notify_detached(number),
            client::Action::Dismiss => self.dismiss(id, number),
        }
    }

    /// What is held for a container.
    fn container(&self, id: &ContainerId) -> Result<&Container, Failure> {
        let container = self.containers.get(id).map(Box::as_ref);
        container.ok_or_else(|| Failure::fault(format!("container {id} is not held")))
    }

    fn exit_record(&self, id: &ContainerId) -> PathBuf {
        Layout::exits(&self.directory).join(id.as_str())
    }

    fn record(&self, id: &ContainerId, record: &ExitRecord) -> container::Event {
        let saved = record.save(&self.exit_record(id));
        let event = if saved.is_ok() { container::Event::Recorded } else { container::Event::Refused };
        saved.or_warn(format_args!("the exit of container {id} is not on disk yet"));
        event
    }

    /// Drops everything that is held for a container whose process has been reaped.
    fn forget(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.remove(id) else { return };
        container.child.unwatch(&mut self.watch, &Owner::Container(id.clone()));
        for (out, output) in &container.outputs {
            self.watch.remove(output.source.as_fd(), &Source::Output(id.clone(), *out));
        }
        if let Some(log) = container.log {
            self.log_writer.close(log);
        }
    }

    fn forget_exec(&mut self, number: u64) {
        let Some(exec) = self.execs.remove(&number) else { return };
        exec.child.unwatch(&mut self.watch, &Owner::Exec(number));
        match self.containers.get_mut(&exec.container) {
            Some(container) => container.remove_leaf(exec.leaf),
            None => leaf::discard(&exec.leaf),
        }
        self.reap_strays();
    }
}

/// Only a failure to create a container's process is an event; if it was created, it reports by itself.
fn spawned(result: Result<(), Failure>, id: ContainerId) -> Option<Event> {
    result.err().map(|failure| Event::Container(id, container::Event::NotSpawned(failure)))
}

/// The same for a process of an exec.
fn entered(result: Result<(), Failure>, exec: u64) -> Option<Event> {
    result.err().map(|failure| Event::Exec(exec, exec::Event::NotSpawned(failure)))
}
