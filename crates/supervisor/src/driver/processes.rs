//! What processes are told, what they report, and how they end.
//!
//! A report or an end becomes an event for the machine, and what follows from it is the machine's to decide. A process
//! that has ended stays a zombie until the machine has its exit on disk.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use wharf_isolation::{Identity, Report};
use wharf_sys::process;
use wharf_types::{ContainerId, Exit};

use super::Driver;
use crate::child::Role;
use crate::container::{Container, First};
use crate::diagnostics::OrWarn as _;
use crate::failure::Failure;
use crate::link::RequestId;
use crate::machine::{Event, container, exec};
use crate::pod_reaper::PodReaper;
use crate::sandbox::Keeper;
use crate::watch::{Out, Owner, Source};

/// What a child has reported, as far as its container or exec is concerned.
enum ChildReport {
    Ready { identity: Identity, terminal: Option<OwnedFd>, ends_ns: Vec<u64> },
    Failed(Failure),
    Executed,
}

impl Driver {
    /// Tells a container's first process to execute the program.
    pub(super) fn start(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        // Since it was created, others may have come.
        let others = self.others(&container.plan, container.home.as_ref());
        let Some(container) = self.containers.get_mut(id) else { return };
        container.first = First::Started;
        container.stages.ordered();
        let told = wharf_isolation::order_start(container.child.report.as_fd(), others);
        // The process is gone, which will be seen soon.
        told.or_warn(format_args!("starting container {id}"));
    }

    pub(super) fn signal(&mut self, request: RequestId, id: &ContainerId, number: i32) -> Option<Event> {
        let outcome = match self.containers.get_mut(id)?.signal(number) {
            // The process is gone by now, which is not a failure of the signal.
            Err(error) if error.errno != Errno::ESRCH => Err(Failure::of(error)),
            _ => Ok(()),
        };
        Some(Event::Settled { request, outcome })
    }

    /// What a child's next report means, if one has arrived.
    pub(crate) fn report(&mut self, owner: &Owner) -> Option<Event> {
        match owner {
            Owner::Container(id) => {
                let event = self.container_report(id, owner)?;
                Some(Event::Container(id.clone(), event))
            }
            Owner::Exec(number) => self.exec_report(*number, owner).map(|event| Event::Exec(*number, event)),
        }
    }

    fn container_report(&mut self, id: &ContainerId, owner: &Owner) -> Option<container::Event> {
        match self.child_report(owner)? {
            ChildReport::Ready { identity, terminal, ends_ns } => {
                let container = self.containers.get_mut(id)?;
                container.identity = identity;
                container.stages.created(&ends_ns);
                terminal.into_iter().for_each(|fd| container.add_terminal(fd, &mut self.watch));
                Some(container::Event::Ready)
            }
            ChildReport::Failed(failure) => Some(container::Event::Failed(self.explained(failure, id))),
            // If the process ends before it was told to execute the program, the machine does not take this for a
            // start.
            ChildReport::Executed => Some(container::Event::Executed { now_ns: wharf_sys::clock::now_ns() }),
        }
    }

    /// A failure to make a container, with what its runtime has written to the container's standard error.
    fn explained(&mut self, failure: Failure, id: &ContainerId) -> Failure {
        // The last of it may not have been read. A client that is behind now is still so at its next turn.
        let _found_again = self.pump_output(id, Out::Stderr);
        let said = self.containers.get(id).map(|container| container.said.line()).unwrap_or_default();
        // Most runtimes write the same to their log, from where it is in the message.
        if said.is_empty() || failure.message.contains(&said) { failure } else { failure.with(&said) }
    }

    fn exec_report(&mut self, number: u64, owner: &Owner) -> Option<exec::Event> {
        loop {
            match self.child_report(owner)? {
                ChildReport::Ready { terminal, .. } => self.execs.get_mut(&number)?.terminal = terminal,
                ChildReport::Failed(failure) => return Some(exec::Event::Failed(failure)),
                // Only when the reports have ended without a failure is it known that the program runs.
                ChildReport::Executed => return Some(exec::Event::Executed),
            }
        }
    }

    /// The next report of a child that its container or exec has to know. On the way the child may change its line, and
    /// name its successor.
    fn child_report(&mut self, owner: &Owner) -> Option<ChildReport> {
        loop {
            let Self { containers, execs, watch, creators, .. } = self;
            let child = match owner {
                Owner::Container(id) => &mut containers.get_mut(id)?.child,
                Owner::Exec(number) => &mut execs.get_mut(number)?.child,
            };
            match child.receive_report()? {
                Report::Ready { identity, terminal, ends_ns } => {
                    return Some(ChildReport::Ready { identity, terminal, ends_ns });
                }
                Report::Line { line, .. } => child.listen_at(line, watch, owner),
                Report::Born { number, .. } => {
                    creators.add(child.continue_as(number, watch, owner)?);
                    self.kill_condemned(owner);
                    self.reap_strays();
                }
                Report::Executed => {
                    child.silence(watch, owner);
                    return Some(ChildReport::Executed);
                }
                Report::Failed { class, message } => {
                    child.silence(watch, owner);
                    return Some(ChildReport::Failed(Failure::reported(class, message)));
                }
                Report::Closed => {
                    child.silence(watch, owner);
                    let Err(failure) = child.role.end_of_line() else { return Some(ChildReport::Executed) };
                    // Nobody would ever start it, or say that it runs.
                    self.kill(owner);
                    return Some(ChildReport::Failed(failure));
                }
            }
        }
    }

    /// Kills a command that was not wanted any more before it was known.
    fn kill_condemned(&mut self, owner: &Owner) {
        let Owner::Exec(number) = owner else { return };
        if self.execs.get(number).is_some_and(|exec| exec.condemned) {
            self.kill_exec(*number);
        }
    }

    pub(super) fn kill_exec(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let container = self.containers.get(&exec.container);
        exec.kill(container.map(|container| &container.plan.cgroup));
    }

    fn kill(&mut self, owner: &Owner) {
        match owner {
            Owner::Container(id) => self.containers.get_mut(id).into_iter().for_each(|it| it.kill()),
            Owner::Exec(number) => self.kill_exec(*number),
        }
    }

    /// What a child's end means, once it has ended.
    pub(crate) fn end(&mut self, owner: &Owner) -> Vec<Event> {
        match owner {
            Owner::Container(id) => self.container_end(id, owner).unwrap_or_default(),
            Owner::Exec(number) => self.exec_end(*number).unwrap_or_default(),
        }
    }

    /// A process that was to name another and has not done so has failed, whatever its line says.
    fn exec_end(&self, number: u64) -> Option<Vec<Event>> {
        let exec = self.execs.get(&number)?;
        let exit = exec.ended()?;
        let maker = Some(exec.child.role).filter(|role| role.is_maker());
        let failed = maker.and_then(|role| role.end_of_line().err()).map(exec::Event::Failed);
        let events = failed.into_iter().chain([exec::Event::Exited(exit)]);
        Some(events.map(|event| Event::Exec(number, event)).collect())
    }

    /// The rest of the container is killed and its last output read. Clients that do not keep up with that output come
    /// first.
    fn container_end(&mut self, id: &ContainerId, owner: &Owner) -> Option<Vec<Event>> {
        let container = self.containers.get_mut(id)?;
        if matches!(container.first, First::Ended | First::Reaped) {
            return None;
        }
        let exit = container.ended()?;
        // A process that was to name another and has not done so has started nothing, whatever its line says.
        let role = Some(container.child.role);
        let maker = role.filter(|role| role.is_maker() && container.first == First::Started);
        let failed = maker.and_then(|role| role.end_of_line().err());
        container.end();
        self.watch.remove(container.child.pidfd.as_fd(), &owner.exit());
        self.attended(role, exit);
        self.drain_outputs(id);
        let mut events = self.clients_behind(id);
        let now_ns = wharf_sys::clock::now_ns();
        events.extend(failed.map(|failure| Event::Container(id.clone(), container::Event::Failed(failure))));
        events.push(Event::Container(id.clone(), container::Event::Exited { exit, now_ns }));
        Some(events)
    }

    /// An attendant exits by itself. Without it, a program in the sandbox may go on, and nobody would know.
    fn attended(&self, role: Option<Role>, exit: Exit) {
        let is_lost = role == Some(Role::Attendant) && matches!(exit, Exit::Signal { oom: false, .. });
        self.sandbox.iter().filter(|_| is_lost).for_each(Keeper::end);
    }

    /// Reaps the first process of a container, behind which there may be others.
    pub(super) fn reap(&mut self, id: &ContainerId) {
        self.containers.get_mut(id).into_iter().for_each(|container| container.reap());
        self.reap_strays();
    }

    /// Reaps processes that their own parents have left to this process. A zombie that is claimed hides those after it,
    /// so they are looked for whenever one has been reaped.
    pub(crate) fn reap_strays(&mut self) {
        self.creators.reap();
        let execs = || self.execs.values().map(|exec| &exec.child);
        let containers = || self.containers.values().map(Box::as_ref);
        // Another runtime's process is named as soon as it is made.
        let is_starting =
            |container: &&Container| container.first == First::Started || container.plan.runtime.is_some();
        let starting = containers().filter(is_starting);
        let mut births = starting.map(|container| &container.child).chain(execs());
        if births.any(|child| child.role.is_maker()) {
            // An unknown dead child may be one whose birth has not been reported yet. It is looked at again afterwards.
            return;
        }
        let own = containers().filter_map(Container::number);
        let known: Vec<i32> = own.chain(execs().map(|child| child.pid)).collect();
        let reaper = self.reaper.as_ref().map(|reaper| reaper.pid);
        let keeper = self.sandbox.as_ref().map(|keeper| keeper.pid);
        process::reap_strays(|pid| [reaper, keeper].contains(&Some(pid)) || known.contains(&pid));
    }

    pub(super) fn end_namespaces(&self) {
        self.reaper.iter().for_each(PodReaper::end);
        self.sandbox.iter().for_each(Keeper::end);
    }

    /// All containers in the sandbox end with it.
    pub(crate) fn sandbox_ended(&mut self) -> Event {
        if let Some(keeper) = self.sandbox.take() {
            self.watch.remove(keeper.pidfd.as_fd(), &Source::Sandbox);
            keeper.end();
            self.reap_strays();
        }
        Event::SandboxEnded
    }

    /// All containers in its namespace end with it; the next one gets a new namespace.
    pub(crate) fn reaper_ended(&mut self) {
        if let Some(reaper) = self.reaper.take_if(|reaper| reaper.has_ended()) {
            self.watch.remove(reaper.pidfd.as_fd(), &Source::Reaper);
            self.reap_strays();
        }
    }
}
