//! What processes report, and how they end.

use std::os::fd::{AsFd, OwnedFd};

use wharf_isolation::Report;
use wharf_sys::process;
use wharf_types::{ContainerId, Exit};

use super::Driver;
use crate::container::{Exec, First};
use crate::link;
use crate::machine::{client, container, exec};
use crate::spawn::{Child, Kin, Line, Spent};
use crate::trouble::OrTell as _;
use crate::watch::{Out, Source, Watch};

impl Driver {
    /// The next report of a container's first process, if one has arrived.
    pub(crate) fn container_report(&mut self, id: &ContainerId) -> Option<container::Event> {
        loop {
            let container =
                self.containers.get_mut(id).filter(|container| container.child.line == Line::Open)?;
            match container.child.hear() {
                Ok(Report::Ready { identity, terminal }) => {
                    container.identity = identity;
                    terminal.into_iter().for_each(|terminal| self.adopt_terminal(id, terminal));
                    return Some(container::Event::Ready);
                }
                Ok(Report::Line { line, .. }) => {
                    listen_at(&mut container.child, line, (&mut self.watch, Source::Report(id.clone())));
                }
                Ok(Report::Born { process, .. }) => {
                    let watch = (&mut self.watch, Source::Exit(id.clone()));
                    if !go_on_as(&mut container.child, process, watch, &mut self.spent) {
                        return None;
                    }
                    self.reap_strays();
                }
                Ok(Report::Failed { kind, message }) => {
                    silence(&mut container.child, &mut self.watch, &Source::Report(id.clone()));
                    return Some(container::Event::Failed(link::failure(kind.into(), message)));
                }
                // If the process ends before it was told to execute the program, the machine does not take this for a
                // start.
                Ok(Report::Closed) => {
                    silence(&mut container.child, &mut self.watch, &Source::Report(id.clone()));
                    return Some(container::Event::Executed { now_ns: wharf_sys::clock::now_ns() });
                }
                Err(_later) => return None,
            }
        }
    }

    fn adopt_terminal(&mut self, id: &ContainerId, terminal: OwnedFd) {
        let Some(container) = self.containers.get_mut(id) else { return };
        crate::spawn::set_nonblocking(&terminal)
            .and_then(|()| self.watch.add(terminal.as_fd(), Source::Output(id.clone(), Out::Stdout)))
            .or_tell(format_args!("the terminal of container {id} will not be read"));
        container.add_output(Out::Stdout, terminal);
    }

    /// How a container's first process ended, if it is a zombie by now. The rest of the container is killed and its
    /// last output read. The clients that did not keep up with that output are returned as well.
    pub(crate) fn container_end(&mut self, id: &ContainerId) -> Option<(Exit, Vec<(u64, client::Event)>)> {
        let container = self.containers.get_mut(id)?;
        if matches!(container.first, First::Ended | First::Reaped) {
            return None;
        }
        let exit = container.ended()?;
        container.first = First::Ended;
        container.kill_rest();
        self.watch.remove(container.child.pidfd.as_fd(), &Source::Exit(id.clone()));
        self.drain_outputs(id);
        Some((exit, self.lost_clients(id)))
    }

    /// The next report of an exec's process, if one has arrived.
    pub(crate) fn exec_report(&mut self, number: u64) -> Option<exec::Event> {
        loop {
            let exec = self.execs.get_mut(&number).filter(|exec| exec.child.line == Line::Open)?;
            match exec.child.hear() {
                Ok(Report::Ready { terminal, .. }) => exec.terminal = terminal,
                Ok(Report::Line { line, .. }) => {
                    listen_at(&mut exec.child, line, (&mut self.watch, Source::ExecReport(number)));
                }
                Ok(Report::Born { process, .. }) => {
                    let watch = (&mut self.watch, Source::ExecExit(number));
                    if !go_on_as(&mut exec.child, process, watch, &mut self.spent) {
                        return None;
                    }
                    self.reap_strays();
                }
                Ok(Report::Failed { kind, message }) => {
                    silence(&mut exec.child, &mut self.watch, &Source::ExecReport(number));
                    return Some(exec::Event::Failed(link::failure(kind.into(), message)));
                }
                // Only when the reports have ended without a failure is it known that the program runs.
                Ok(Report::Closed) => {
                    silence(&mut exec.child, &mut self.watch, &Source::ExecReport(number));
                    return Some(exec::Event::Executed);
                }
                Err(_later) => return None,
            }
        }
    }

    /// How an exec's process ended, once it has; this reaps it.
    pub(crate) fn exec_end(&self, number: u64) -> Option<Exit> {
        self.execs.get(&number).and_then(Exec::ended)
    }

    /// Reaps processes that their own parents have left to this process.
    pub(crate) fn reap_strays(&mut self) {
        self.spent.reap();
        let execs = || self.execs.values().map(|exec| &exec.child);
        let containers = || self.containers.values();
        let starting = containers().filter(|container| container.first == First::Told);
        let mut births = starting.map(|container| &container.child).chain(execs());
        if births.any(|child| child.kin == Kin::Parent) {
            // An unknown dead child may be one whose birth has not been reported yet. It is looked at again afterwards.
            return;
        }
        let own = containers().filter(|container| container.first != First::Reaped);
        let own = own.map(|container| &container.child);
        let known: Vec<i32> = own.chain(execs()).map(|child| child.pid).collect();
        let reaper = self.reaper.as_ref().map(|reaper| reaper.pid);
        process::reap_strays(|pid| reaper == Some(pid) || known.contains(&pid));
    }

    /// All containers in its namespace end with it; the next one gets a new namespace.
    pub(crate) fn reaper_ended(&mut self) {
        if let Some(reaper) = self.reaper.take_if(|reaper| reaper.has_ended()) {
            self.watch.remove(reaper.pidfd.as_fd(), &Source::Reaper);
        }
    }
}

/// Stops listening to a child: nothing more is expected, and others that hold the line could fill it without end.
fn silence(child: &mut Child, watch: &mut Watch, source: &Source) {
    child.line = Line::Over;
    watch.remove(child.report.as_fd(), source);
}

/// Takes a child's reports from another line. A child that cannot be watched there is killed.
fn listen_at(child: &mut Child, line: OwnedFd, (watch, source): (&mut Watch, Source)) {
    let watched = crate::spawn::set_nonblocking(&line)
        .and_then(|()| watch.replace(child.report.as_fd(), line.as_fd(), source));
    if watched.is_err() {
        child.abandon();
    }
    watched.or_tell("a process is ended whose reports cannot be heard");
    child.report = line;
}

/// Takes the new process in place of the child; `false` if it cannot be its successor. One that cannot be watched is
/// killed.
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
