//! Replies and notifications for the daemon, in the form of the protocol.
//!
//! They are queued on the connection, never waited for. A reply goes to the daemon that asked and to no later one; an
//! event goes to whichever is connected.

use std::os::fd::AsFd;

use wharf_state::ExitRecord;
use wharf_types::{ContainerId, Exit};
use wharf_wire::v1::{self, message::Body, reply};

use super::Driver;
use crate::container::wire_identity;
use crate::failure::Failure;
use crate::link::RequestId;
use crate::machine::container::Phase;

impl Driver {
    pub(super) fn reply_done(&mut self, request: RequestId) {
        self.link.reply(request, reply::Result::Done(v1::Done {}), &[]);
    }

    /// The first greeting may bring what is to be held from now on.
    pub(super) fn reply_state(&mut self, request: RequestId, phases: &[(ContainerId, Phase)]) {
        self.payload.take_held().into_iter().for_each(|held| self.held.hold(held));
        let status = |(id, phase): &(ContainerId, Phase)| Some(self.containers.get(id)?.status(*phase));
        let state = v1::State {
            version: wharf_wire::VERSION,
            containers: phases.iter().filter_map(status).collect(),
            pid: std::process::id().cast_signed(),
            reaper_pid: self.reaper.as_ref().map_or(0, |reaper| reaper.pid),
            features: wharf_wire::FEATURES.map(str::to_owned).to_vec(),
            held: self.held.numbers(),
        };
        self.link.reply(request, reply::Result::State(state), &[]);
    }

    pub(super) fn lend(&mut self, request: RequestId, held: v1::Held) {
        match self.held.get(held) {
            Some(lent) => self.link.reply(request, reply::Result::Done(v1::Done {}), &[lent]),
            None => {
                let missing = Failure::precondition(format!("the pod has no {held:?} of its own"));
                self.link.fail(request, missing);
            }
        }
    }

    pub(super) fn reply_created(&mut self, request: RequestId, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (pid, identity) = (container.child.pid, Some(wire_identity(&container.identity)));
        let created = v1::Created { pid, identity, stages: container.stages.take_creation() };
        self.link.reply(request, reply::Result::Created(created), &[]);
    }

    pub(super) fn reply_started(&mut self, request: RequestId, id: &ContainerId, started_at_ns: i64) {
        let container = self.containers.get_mut(id);
        let (pid, stage) = container.map_or((0, None), |it| (it.child.pid, it.stages.take_start()));
        self.link.reply(request, reply::Result::Started(v1::Started { started_at_ns, pid, stage }), &[]);
    }

    pub(super) fn reply_executed(&mut self, request: RequestId, number: u64) {
        let terminal = self.execs.get_mut(&number).and_then(|exec| exec.terminal.take());
        let terminal: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
        self.link.reply(request, reply::Result::Done(v1::Done {}), &terminal);
    }

    pub(super) fn reply_attached(&mut self, request: RequestId, number: u64) {
        let input = self.inputs.remove(&number);
        let input: Vec<_> = input.iter().map(AsFd::as_fd).collect();
        self.link.reply(request, reply::Result::Done(v1::Done {}), &input);
    }

    pub(super) fn notify_started(&mut self, id: &ContainerId, started_at_ns: i64) {
        let container = id.to_string();
        self.link.notify(Body::ContainerStarted(v1::ContainerStarted { container, started_at_ns }));
    }

    pub(super) fn notify_exited(&mut self, id: &ContainerId, record: &ExitRecord) {
        let &ExitRecord { exit, finished_at_ns, .. } = record;
        let (container, exit) = (id.to_string(), Some(exit.into()));
        self.link.notify(Body::ContainerExited(v1::ContainerExited { container, exit, finished_at_ns }));
    }

    pub(super) fn notify_exec_exited(&mut self, number: u64, exit: Exit) {
        self.link.notify(Body::ExecExited(v1::ExecExited { exec: number, exit: Some(exit.into()) }));
    }

    pub(super) fn notify_detached(&mut self, number: u64) {
        self.link.notify(Body::Detached(v1::Detached { attach: number }));
    }
}
