//! Carries out what the machine decides. Only this module has the pod's descriptors, processes and cgroups.
//!
//! It decides nothing about the life of a container, an exec or a client, and never calls the machine. It returns, as
//! events, the results of actions and what it finds when the loop has been woken.

mod answers;
mod making;
mod processes;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use wharf_state::{ExitRecord, Layout};
use wharf_types::ContainerId;
use wharf_wire::v1::{self, message};

use crate::container::{Container, Exec, First};
use crate::held::Held;
use crate::link::{Link, RequestId};
use crate::log::queue::LogWriter;
use crate::machine::{Action, Event, client, container, exec};
use crate::pod_reaper::PodReaper;
use crate::requests::{Given, internal};
use crate::score::Score;
use crate::spawn::{Spawner, Spent};
use crate::trouble::OrTell as _;
use crate::watch::{Out, Source, Watch};

/// What the supervisor holds.
#[derive(Debug)]
pub(crate) struct Driver {
    directory: PathBuf,
    pub(crate) watch: Watch,
    pub(crate) link: Link,
    pub(crate) log_writer: LogWriter,
    spawner: Spawner,
    held: Held,
    containers: BTreeMap<ContainerId, Container>,
    execs: BTreeMap<u64, Exec>,
    /// The containers' inputs, for clients that are about to be answered.
    inputs: BTreeMap<u64, OwnedFd>,
    /// Outputs that are not read until the log writer has accepted what is queued.
    blocked: Vec<(ContainerId, Out)>,
    reaper: Option<PodReaper>,
    spent: Spent,
    /// This process's own.
    score: Score,
    /// What came beside the request that is being handled.
    pub(crate) given: Given,
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
            held: Held::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            blocked: Vec::new(),
            reaper: None,
            spent: Spent::default(),
            score: Score::default(),
            given: Given::Nothing,
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
            Action::Spawn(id) => {
                let not_spawned =
                    |failure| Event::Container(id.clone(), container::Event::NotSpawned(failure));
                return self.spawn(&id).err().map(not_spawned);
            }
            Action::Enter { exec, container } => {
                let entered = self.enter(exec, container);
                return entered.err().map(|failure| Event::Exec(exec, exec::Event::NotSpawned(failure)));
            }
            Action::Admit { client, container } => {
                let admitted = self.admit(client, &container);
                let event = admitted.map_or_else(client::Event::Refused, |()| client::Event::Admitted);
                return Some(Event::Client(client, event));
            }
            Action::Signal { request, container, number } => return self.signal(request, &container, number),
            Action::ReopenLog { request, container } => {
                let log = self.containers.get(&container).and_then(|container| container.log);
                log.into_iter().for_each(|log| self.log_writer.reopen(log, request));
            }
            Action::Container(id, action) => {
                return self.act_on_container(&id, action).map(|event| Event::Container(id, event));
            }
            Action::Exec(number, action) => self.act_on_exec(number, action),
            Action::Client(container, number, action) => self.act_on_client(&container, number, action),
            Action::EndReaper => self.reaper.iter().for_each(PodReaper::end),
        }
        None
    }

    fn signal(&mut self, request: RequestId, id: &ContainerId, number: i32) -> Option<Event> {
        let outcome = match self.containers.get_mut(id)?.signal(number) {
            // The process is gone by now, which is not a failure of the signal.
            Err(error) if error.errno != Errno::ESRCH => Err(internal(error)),
            _ => Ok(()),
        };
        Some(Event::Settled { request, outcome })
    }

    fn act_on_container(&mut self, id: &ContainerId, action: container::Action) -> Option<container::Event> {
        use container::Action;
        match action {
            // Replies and events go out even if nothing is held for the container any more, or yet.
            Action::ReplyCreated { .. }
            | Action::ReplyStarted { .. }
            | Action::ReplyRemoved { .. }
            | Action::ReplyFailure { .. }
            | Action::TellStarted { .. }
            | Action::TellExited(_) => self.tell_of_container(id, action),
            Action::Start => self.start(id),
            Action::Kill => self.containers.get_mut(id).into_iter().for_each(Container::kill),
            Action::Flush => match self.containers.get(id)?.log {
                Some(log) => self.log_writer.flush(log, id),
                None => return Some(container::Event::Flushed),
            },
            Action::Record(record) => return Some(self.record(id, &record)),
            Action::Reap => self.containers.get_mut(id).into_iter().for_each(Container::reap),
            Action::Unrecord => {
                let removed = wharf_state::record::remove(&self.exit_record(id));
                removed.or_tell(format_args!("removing the exit record of container {id}"));
            }
            Action::Forget => self.forget(id),
        }
        None
    }

    fn start(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.first = First::Told;
        let told = wharf_sys::socket::send(container.child.report.as_fd(), b"S", &[]);
        // The process is gone, which will be seen soon.
        told.or_tell(format_args!("starting container {id}"));
    }

    fn exit_record(&self, id: &ContainerId) -> PathBuf {
        Layout::exits(&self.directory).join(id.as_str())
    }

    fn record(&self, id: &ContainerId, record: &ExitRecord) -> container::Event {
        let saved = record.save(&self.exit_record(id));
        let event = if saved.is_ok() { container::Event::Recorded } else { container::Event::Refused };
        saved.or_tell(format_args!("the exit of container {id} is not on disk yet"));
        event
    }

    /// Drops everything that is held for a container whose process has been reaped.
    fn forget(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.remove(id) else { return };
        self.watch.remove(container.child.report.as_fd(), &Source::Report(id.clone()));
        self.watch.remove(container.child.pidfd.as_fd(), &Source::Exit(id.clone()));
        for (out, output) in &container.outputs {
            self.watch.remove(output.source.as_fd(), &Source::Output(id.clone(), *out));
        }
        if let Some(log) = container.log {
            self.log_writer.close(log);
        }
    }

    fn act_on_exec(&mut self, number: u64, action: exec::Action) {
        match action {
            exec::Action::ReplyExecuted { request } => self.reply_executed(request, number),
            exec::Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            exec::Action::Kill => self.execs.get(&number).into_iter().for_each(Exec::kill),
            exec::Action::Forget => self.forget_exec(number),
            exec::Action::TellExited(exit) => {
                let exited = v1::ExecExited { exec: number, exit: Some(exit.into()) };
                self.link.tell(message::Body::ExecExited(exited));
            }
        }
    }

    fn forget_exec(&mut self, number: u64) {
        let Some(exec) = self.execs.remove(&number) else { return };
        self.watch.remove(exec.child.report.as_fd(), &Source::ExecReport(number));
        self.watch.remove(exec.child.pidfd.as_fd(), &Source::ExecExit(number));
        match self.containers.get_mut(&exec.container) {
            Some(container) => container.remove_leaf(exec.leaf),
            None => making::remove_leaf(&exec.leaf),
        }
    }

    fn act_on_client(&mut self, id: &ContainerId, number: u64, action: client::Action) {
        match action {
            client::Action::ReplyAttached { request } => self.reply_attached(request, number),
            client::Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            client::Action::TellDetached => {
                self.link.tell(message::Body::Detached(v1::Detached { attach: number }));
            }
            client::Action::Dismiss => self.dismiss(id, number),
        }
    }
}
