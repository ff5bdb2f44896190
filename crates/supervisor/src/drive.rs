//! What becomes of containers and execs: their events, and the actions that [`lifecycle`] decides.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use wharf_isolation::Report;
use wharf_state::{ExitRecord, Layout};
use wharf_types::ContainerId;
use wharf_wire::v1::{self, failure, message, reply};

use crate::attach;
use crate::container::{Container, Exec, wire_exit, wire_identity};
use crate::lifecycle::{self, Action, Event};
use crate::link::failure;
use crate::requests;
use crate::shim::Shim;
use crate::spawn::{Child, Spent};
use crate::trouble::OrTell as _;
use crate::watch::{Out, Source, Watch};

impl Shim {
    /// Takes a report, and says whether there may be another one.
    pub(crate) fn container_reported(&mut self, id: &ContainerId) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        let event = match container.child.hear() {
            Ok(Report::Ready { identity, terminal }) => {
                container.identity = identity;
                if let Some(terminal) = terminal {
                    self.adopt_terminal(id, terminal);
                }
                Event::Ready
            }
            Ok(Report::Born(process)) => {
                let watch = (&mut self.watch, Source::Exit(id.clone()));
                if !go_on_as(&mut container.child, process, watch, &mut self.spent) {
                    return false;
                }
                self.reap_strays();
                return true;
            }
            Ok(Report::Failed { kind, message }) => Event::Failed(failure(wire_kind(kind), message)),
            // The end of the reports is an exec only if the process lives on or ended after one.
            Ok(Report::Closed) => Event::Executed { now_ns: wharf_sys::clock::now_ns() },
            Err(_later) => return false,
        };
        let more = matches!(event, Event::Ready);
        if let (false, Some(container)) = (more, self.containers.get(id)) {
            // Nothing follows, and a line that others hold could be filled without end.
            self.watch.remove(container.child.report.as_fd(), &Source::Report(id.clone()));
        }
        self.step(id, event);
        more
    }

    fn adopt_terminal(&mut self, id: &ContainerId, terminal: OwnedFd) {
        let Some(container) = self.containers.get_mut(id) else { return };
        crate::spawn::set_nonblocking(&terminal)
            .and_then(|()| self.watch.add(terminal.as_fd(), Source::Output(id.clone(), Out::Stdout)))
            .or_tell(format_args!("the terminal of container {id} will not be read"));
        container.add_output(Out::Stdout, terminal);
    }

    /// The first process is a zombie: take its last reports and output, then let its life end.
    pub(crate) fn container_ended(&mut self, id: &ContainerId) {
        // What it said comes first: another process may go on as the container's.
        while self.container_reported(id) {}
        let exit = match self.containers.get(id) {
            Some(container) if container.is_live() => container.ended(),
            _ => return,
        };
        let Some(exit) = exit else { return };
        if self.containers.get(id).is_some_and(Container::is_starting) {
            // A short program may be over before the process that it was born of has let go of the line.
            self.step(id, Event::Executed { now_ns: wharf_sys::clock::now_ns() });
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.kill_rest();
            self.watch.remove(container.child.pidfd.as_fd(), &Source::Exit(id.clone()));
        }
        self.drain_outputs(id);
        // One that is on its way in was not in the container's cgroup yet.
        self.execs.values().filter(|exec| exec.container == *id).for_each(Exec::kill);
        attach::end(self, id);
        self.step(id, Event::Exited { exit, now_ns: wharf_sys::clock::now_ns() });
    }

    /// Takes the last output, and closes the ends: what anybody else writes to them is not the container's.
    fn drain_outputs(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for out in [Out::Stdout, Out::Stderr] {
            if let Some((output, mut sink)) = container.output(out, &mut self.log_writer) {
                output.drain(&mut sink, &mut self.buffer);
                self.watch.remove(output.source.as_fd(), &Source::Output(id.clone(), out));
            }
        }
        container.outputs.clear();
    }

    /// Lets an event move a container on, and does what follows.
    pub(crate) fn step(&mut self, id: &ContainerId, event: Event) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (phase, actions) = lifecycle::step(container.phase, event);
        container.phase = phase;
        for action in actions {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: &ContainerId, action: Action) {
        match action {
            Action::ReplyRemoved { request } => {
                return self.link.reply(request, reply::Result::Done(v1::Done {}), &[]);
            }
            Action::ReplyFailure { request, failure } => return self.link.fail(request, failure),
            _ => {}
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        match action {
            Action::ReplyCreated { request } => {
                let identity = Some(wire_identity(&container.identity));
                let created = v1::Created { pid: container.child.pid, identity };
                self.link.reply(request, reply::Result::Created(created), &[]);
            }
            Action::ReplyStarted { request, started_at_ns } => {
                self.link.reply(
                    request,
                    reply::Result::Started(v1::Started { started_at_ns, pid: container.child.pid }),
                    &[],
                );
            }
            Action::Start => {
                let told = wharf_sys::socket::send(container.child.report.as_fd(), b"S", &[]);
                // It is gone then, which is seen soon.
                told.or_tell(format_args!("starting container {id}"));
            }
            Action::TellStarted { started_at_ns } => {
                let started = v1::ContainerStarted { container: id.to_string(), started_at_ns };
                self.link.tell(message::Body::ContainerStarted(started));
            }
            Action::Kill => container.kill(),
            Action::Flush => {
                container.flushing = Some(Instant::now());
                match container.log {
                    Some(log) => self.log_writer.flush(log, id),
                    None => self.step(id, Event::Flushed),
                }
            }
            Action::Record(record) => self.record(id, &record),
            Action::TellExited(ExitRecord { exit, finished_at_ns, .. }) => {
                let exit = Some(wire_exit(exit));
                let exited = v1::ContainerExited { container: id.to_string(), exit, finished_at_ns };
                self.link.tell(message::Body::ContainerExited(exited));
            }
            Action::Reap => container.reap(),
            Action::Unrecord => {
                let path = Layout::exits(&self.directory).join(id.as_str());
                wharf_state::record::remove(&path).or_tell(format_args!("removing container {id}"));
            }
            Action::Forget => requests::forget(self, id),
            Action::ReplyRemoved { .. } | Action::ReplyFailure { .. } => {}
        }
    }

    fn record(&mut self, id: &ContainerId, record: &ExitRecord) {
        let saved = record.save(&Layout::exits(&self.directory).join(id.as_str()));
        let event = if saved.is_ok() { Event::Recorded } else { Event::Refused };
        saved.or_tell(format_args!("the exit of container {id} is not on disk yet"));
        self.step(id, event);
    }

    /// Takes a report, and says whether there may be another one.
    pub(crate) fn exec_reported(&mut self, id: u64) -> bool {
        let Some(exec) = self.execs.get_mut(&id) else { return false };
        match exec.child.hear() {
            Ok(Report::Ready { terminal, .. }) => exec.terminal = terminal,
            Ok(Report::Born(process)) => {
                let watch = (&mut self.watch, Source::ExecExit(id));
                if !go_on_as(&mut exec.child, process, watch, &mut self.spent) {
                    return false;
                }
                self.reap_strays();
            }
            Ok(Report::Failed { kind, message }) => {
                self.watch.remove(exec.child.report.as_fd(), &Source::ExecReport(id));
                if let Some(request) = exec.request.take() {
                    self.link.fail(request, failure(wire_kind(kind), message));
                }
                return false;
            }
            Ok(Report::Closed) => {
                self.watch.remove(exec.child.report.as_fd(), &Source::ExecReport(id));
                self.exec_runs(id);
                return false;
            }
            Err(_later) => return false,
        }
        true
    }

    /// Answers, once: only when the reports have ended without a failure it is known that the program runs.
    fn exec_runs(&mut self, id: u64) {
        let Some(exec) = self.execs.get_mut(&id) else { return };
        let terminal = exec.terminal.take();
        let Some(request) = exec.request.take() else { return };
        let terminal: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
        self.link.reply(request, reply::Result::Done(v1::Done {}), &terminal);
    }

    pub(crate) fn exec_ended(&mut self, id: u64) {
        // What it said comes first: another process may go on as the exec's.
        while self.exec_reported(id) {}
        let Some(exit) = self.execs.get(&id).and_then(Exec::ended) else { return };
        // A short program may be over before the process that it was born of has let go of the line.
        self.exec_runs(id);
        let Some(exec) = self.execs.remove(&id) else { return };
        self.watch.remove(exec.child.report.as_fd(), &Source::ExecReport(id));
        self.watch.remove(exec.child.pidfd.as_fd(), &Source::ExecExit(id));
        match self.containers.get_mut(&exec.container) {
            Some(container) => container.remove_leaf(exec.leaf),
            None => requests::remove_leaf(&exec.leaf),
        }
        let exited = v1::ExecExited { exec: id, exit: Some(wire_exit(exit)) };
        self.link.tell(message::Body::ExecExited(exited));
    }
}

/// Takes the process that was born for the child; `false` if it cannot be that one. One that cannot be watched is ended.
fn go_on_as(
    child: &mut Child,
    process: OwnedFd,
    (watch, source): (&mut Watch, Source),
    spent: &mut Spent,
) -> bool {
    let Ok(parent) = child.take_over(process) else { return false };
    let watched = watch.replace(parent.as_fd(), child.pidfd.as_fd(), source);
    spent.add(parent);
    if watched.is_err() {
        child.abandon();
    }
    watched.or_tell("a process is ended that cannot be watched");
    true
}

fn wire_kind(kind: wharf_isolation::Kind) -> failure::Kind {
    match kind {
        wharf_isolation::Kind::Internal => failure::Kind::Internal,
        wharf_isolation::Kind::Invalid => failure::Kind::Invalid,
        wharf_isolation::Kind::NotStarted => failure::Kind::NotStarted,
    }
}
