//! Containers' outputs and logs, and the clients attached to them.
//!
//! Output is read only as fast as the log writer takes it, so that a disk that stalls holds up the container, as a full
//! pipe would, and nobody else. A client that does not keep up is dropped instead.

use std::os::fd::{AsFd, OwnedFd};

use wharf_isolation::Input;
use wharf_sys::error::Named as _;
use wharf_types::ContainerId;

use super::Driver;
use crate::container::Container;
use crate::diagnostics::OrWarn as _;
use crate::failure::Failure;
use crate::link::RequestId;
use crate::machine::{Event, client, container};
use crate::output::{BUFFER_BYTES, More};
use crate::requests::NewClient;
use crate::watch::{Out, Source};

impl Driver {
    /// Reads an output for one turn of the loop, and returns what that means for clients that do not keep up.
    pub(crate) fn pump_output(&mut self, id: &ContainerId, out: Out) -> Vec<Event> {
        let Some(container) = self.containers.get_mut(id) else { return Vec::new() };
        let Some((output, mut sink)) = container.output(out, &mut self.log_writer) else { return Vec::new() };
        let source = Source::Output(id.clone(), out);
        match output.pump(&mut sink, whole(&mut self.buffer)) {
            More::Later => {}
            More::Blocked => {
                self.watch.remove(output.source.as_fd(), &source);
                self.blocked.push((id.clone(), out));
            }
            More::Never => {
                self.watch.remove(output.source.as_fd(), &source);
                container.outputs.remove(&out);
            }
        }
        self.clients_behind(id)
    }

    /// Frees the buffer: most pods are silent most of the time, and even an untouched buffer takes two pages in each.
    pub(crate) fn let_buffer_go(&mut self) {
        self.buffer = Vec::new();
    }

    /// Starts a log writer if one is needed, drops one that has ended, and sends it what is queued.
    pub(crate) fn run_log_writer(&mut self) {
        if let Some(ended) = self.log_writer.take_ended() {
            self.watch.remove(ended.as_fd(), &Source::LogWriter);
        }
        if self.log_writer.start(self.spawner.witness())
            && let Some(connection) = self.log_writer.connection()
        {
            self.watch.add(connection, Source::LogWriter).or_warn("watching the log writer");
        }
        self.log_writer.pump();
    }

    /// Reads blocked outputs again once the log writer has accepted what was queued.
    pub(crate) fn resume_outputs(&mut self) {
        if self.log_writer.is_clear() {
            self.unblock_outputs();
        }
        let interest = self.log_writer.interest();
        if let Some(connection) = self.log_writer.connection() {
            self.watch.change(connection, &Source::LogWriter, interest).or_warn("watching the log writer");
        }
    }

    /// Reads the outputs that were blocked by the log writer.
    fn unblock_outputs(&mut self) {
        for (id, out) in std::mem::take(&mut self.blocked) {
            let output = self.containers.get(&id).and_then(|container| container.outputs.get(&out));
            if let Some(output) = output {
                let added = self.watch.add(output.source.as_fd(), Source::Output(id.clone(), out));
                added.or_warn(format_args!("an output of container {id} will not be read any more"));
            }
        }
    }

    /// Reads the last output and closes the pipes: what anybody else writes to them is not the container's.
    pub(super) fn drain_outputs(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for out in [Out::Stdout, Out::Stderr] {
            if let Some((output, mut sink)) = container.output(out, &mut self.log_writer) {
                output.drain(&mut sink, whole(&mut self.buffer));
                self.watch.remove(output.source.as_fd(), &Source::Output(id.clone(), out));
            }
        }
        container.outputs.clear();
    }

    /// Gets a container's output into its log.
    pub(super) fn flush(&mut self, id: &ContainerId) -> Option<container::Event> {
        match self.containers.get(id)?.log {
            Some(log) => {
                self.log_writer.flush(log, id);
                None
            }
            None => Some(container::Event::Flushed),
        }
    }

    pub(super) fn reopen_log(&mut self, request: RequestId, id: &ContainerId) {
        let log = self.containers.get(id).and_then(|container| container.log);
        log.into_iter().for_each(|log| self.log_writer.reopen(log, request));
    }

    pub(super) fn clients_behind(&self, id: &ContainerId) -> Vec<Event> {
        let container = self.containers.get(id);
        let behind = container.map(|container| container.clients.behind()).unwrap_or_default();
        behind.into_iter().map(|number| Event::Client(number, client::Event::FellBehind)).collect()
    }

    /// Attaches a client to a container.
    pub(super) fn admit(&mut self, number: u64, id: &ContainerId) -> Event {
        let admitted = self.admit_client(number, id);
        Event::Client(number, admitted.map_or_else(client::Event::Refused, |()| client::Event::Admitted))
    }

    /// The container's input is kept for the client until its request is answered.
    fn admit_client(&mut self, number: u64, id: &ContainerId) -> Result<(), Failure> {
        let NewClient { client, stdin } = self.payload.take_client()?;
        let Some(container) = self.containers.get_mut(id) else {
            return Err(Failure::fault(format!("container {id} is not held")));
        };
        let is_wanted = stdin || container.plan.stdio.terminal;
        let input = if is_wanted { input(container)? } else { None };
        if let Some(pipe) = client.watched_pipe() {
            let watched = self.watch.add_closed(pipe, Source::Client(id.clone(), number));
            watched?;
            container.clients.add(number, client);
        }
        if let Some(input) = input {
            self.inputs.insert(number, input);
        }
        Ok(())
    }

    pub(super) fn dismiss(&mut self, id: &ContainerId, number: u64) {
        let container = self.containers.get_mut(id);
        let Some(client) = container.and_then(|container| container.clients.remove(number)) else { return };
        if let Some(pipe) = client.watched_pipe() {
            self.watch.remove(pipe, &Source::Client(id.clone(), number));
        }
    }
}

/// The buffer, which is made if it does not exist.
fn whole(buffer: &mut Vec<u8>) -> &mut [u8] {
    if buffer.is_empty() {
        *buffer = vec![0; BUFFER_BYTES];
    }
    buffer
}

/// The terminal, which also has a size, or the input's pipe. An input that ends with its client is given away.
fn input(container: &mut Container) -> Result<Option<OwnedFd>, Failure> {
    let copy =
        |fd: &OwnedFd| fd.try_clone().named("dup", || "the container's input".into()).map_err(Failure::of);
    let stdio = &container.plan.stdio;
    if stdio.terminal {
        let terminal = container.outputs.get(&Out::Stdout);
        return terminal.map(|terminal| copy(&terminal.source)).transpose();
    }
    match &container.stdin {
        Some(_) if stdio.input == Input::Once => Ok(container.stdin.take()),
        Some(stdin) => copy(stdin).map(Some),
        None => Ok(None),
    }
}
