//! The supervisor's side of the log writer, for which it never waits.
//!
//! A write to a regular file never reports that it would block, and a disk that stalls blocks the writer. So a separate
//! process ([`process`]) has the files. It is forked when a container has output, and exits when none has had any for a
//! while. Orders that the connection does not accept are queued ([`queue`]). While anything is queued, no output that
//! is logged is read, so its writers wait as for any slow reader, and nothing is lost. Only the output of a container
//! that has ended is queued up to a limit; output beyond it is counted, and the log says so.

mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::epoll::EpollFlags;
use wharf_isolation::LogFile;
use wharf_sys::clone::{Clone, SingleThreaded, clone};
use wharf_sys::socket;
use wharf_types::ContainerId;

use super::frame::{self, HEADER_BYTES, Header, Opening, Order, Refusal};
use super::{Stream, process};
use crate::diagnostics;
use crate::link::RequestId;
use queue::{End, Queue};

/// The token of an opening for which nobody waits.
const NOBODY: u64 = 0;
/// How long there must be no output before the writer is asked to exit.
const REST_AFTER: Duration = Duration::from_secs(10);

/// The log writer, the logs that it has or will have open, and what it has not answered yet.
#[derive(Debug, Default)]
pub(crate) struct LogWriter {
    queue: Queue,
    logs: BTreeMap<u64, KnownLog>,
    waiting: BTreeMap<u64, Waiting>,
    /// The last number that was given to a log or to an order.
    number: u64,
    events: Vec<LogEvent>,
}

/// A container's log: what is needed to open it in another writer, and what this one has done with it.
#[derive(Debug)]
struct KnownLog {
    file: LogFile,
    /// Present once the log has been opened, or if the daemon opened it.
    directory: Option<Rc<OwnedFd>>,
    /// The tokens of unanswered openings: the log may be rotated again before the first answer.
    openings: Vec<u64>,
    /// Whether anything was written to it through the present writer.
    is_used: bool,
    lost_records: u64,
}

impl KnownLog {
    /// The tokens with which a new writer is told to open it: those that somebody waits for, or one for nobody.
    fn tokens(&self) -> Vec<u64> {
        if self.openings.is_empty() { vec![NOBODY] } else { self.openings.clone() }
    }
}

/// What waits for a reply.
#[derive(Debug)]
enum Waiting {
    Open(ContainerId),
    Reopen(RequestId),
    Flush(ContainerId),
    /// With the number of orders that had been sent when it was asked.
    Rest {
        sent: u64,
    },
}

/// What has become of an order.
#[derive(Debug)]
pub(crate) enum LogEvent {
    Opened(ContainerId, Result<(), Refusal>),
    Reopened(RequestId, Result<(), Refusal>),
    Flushed(ContainerId),
}

impl LogWriter {
    /// Whether output may be read, because nothing is queued.
    pub(crate) fn is_clear(&self) -> bool {
        self.queue.is_clear()
    }

    pub(crate) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.queue.connection()
    }

    /// Whether something must be done within a second.
    pub(crate) fn is_awake(&self) -> bool {
        self.is_running() || self.is_needed()
    }

    fn is_running(&self) -> bool {
        self.connection().is_some()
    }

    fn is_needed(&self) -> bool {
        !self.is_clear() || self.logs.values().any(|known| !known.openings.is_empty())
    }

    /// The events that the loop must wait for.
    pub(crate) fn interest(&self) -> EpollFlags {
        self.queue.interest()
    }

    /// Opens a container's log, reports the result later, and returns the log's number. If a directory is given, the
    /// file already exists, and the first line is what needs a writer.
    pub(crate) fn open(&mut self, file: LogFile, directory: Option<OwnedFd>, container: ContainerId) -> u64 {
        let log = self.next_number();
        let directory = directory.map(Rc::new);
        let opening = match &directory {
            None => Some(self.await_reply(Waiting::Open(container))),
            // A running writer is told now, and any later one when it starts.
            Some(_) => {
                self.events.push(LogEvent::Opened(container, Ok(())));
                self.is_running().then(|| self.next_number())
            }
        };
        let openings = Vec::from_iter(opening);
        self.logs.insert(log, KnownLog { file, directory, openings, is_used: false, lost_records: 0 });
        opening.into_iter().for_each(|token| self.order_open(log, token));
        log
    }

    /// Reopens the file of a log, and reports the result later.
    pub(crate) fn reopen(&mut self, log: u64, request: RequestId) {
        let token = self.await_reply(Waiting::Reopen(request));
        if let Some(known) = self.logs.get_mut(&log) {
            known.openings.push(token);
        }
        self.order_open(log, token);
    }

    /// Writes output: the `count` bytes after the room for a header.
    pub(crate) fn write(&mut self, log: u64, stream: Stream, buffer: &mut [u8], count: usize) {
        let Some(known) = self.logs.get_mut(&log) else { return };
        known.is_used = true;
        if !self.queue.has_room_for(count) {
            let lines = buffer[HEADER_BYTES..][..count].iter().filter(|&&byte| byte == b'\n').count();
            known.lost_records += (lines as u64).max(1);
            return;
        }
        let number = wharf_sys::clock::now_ns().cast_unsigned();
        let header = Header { order: Order::Write(stream), log, number };
        buffer[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        self.queue.send(&buffer[..HEADER_BYTES + count], None);
    }

    /// Writes what is held back of a stream that has ended.
    pub(crate) fn finish(&mut self, log: u64, stream: Stream) {
        if self.is_used(log) {
            let number = wharf_sys::clock::now_ns().cast_unsigned();
            self.order(Header { order: Order::Finish(stream), log, number });
        }
    }

    /// Reports when everything of a container's log has been written; at once if nothing is on its way.
    pub(crate) fn flush(&mut self, log: u64, container: &ContainerId) {
        self.order_loss(log);
        if self.is_used(log) {
            let token = self.await_reply(Waiting::Flush(container.clone()));
            self.order(Header { order: Order::Flush, log, number: token });
        } else {
            self.events.push(LogEvent::Flushed(container.clone()));
        }
    }

    fn is_used(&self, log: u64) -> bool {
        self.logs.get(&log).is_some_and(|known| known.is_used)
    }

    /// Forgets a log once everything has been written.
    pub(crate) fn close(&mut self, log: u64) {
        self.order_loss(log);
        let is_known = self.logs.remove(&log).is_some();
        if is_known && self.is_awake() {
            self.order(Header { order: Order::Close, log, number: 0 });
        }
    }

    /// What has happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<LogEvent> {
        std::mem::take(&mut self.events)
    }

    /// Receives replies.
    pub(crate) fn receive(&mut self) {
        let mut buffer = [0; 2048];
        while let Some((count, directory)) = self.queue.receive(&mut buffer) {
            if let Some((token, outcome)) = frame::parse_reply(&buffer[..count]) {
                self.note_opening(token, directory);
                self.replied(token, outcome);
            }
        }
    }

    /// Notes that an opening is answered, whoever waits for it, and keeps the directory that was opened.
    fn note_opening(&mut self, token: u64, directory: Option<OwnedFd>) {
        if let Some(known) = self.logs.values_mut().find(|known| known.openings.contains(&token)) {
            known.openings.retain(|opening| *opening != token);
            known.directory = known.directory.take().or(directory.map(Rc::new));
        }
    }

    fn replied(&mut self, token: u64, outcome: Result<(), Refusal>) {
        match (self.waiting.remove(&token), outcome) {
            (Some(Waiting::Open(container)), outcome) => {
                self.events.push(LogEvent::Opened(container, outcome));
            }
            (Some(Waiting::Reopen(request)), outcome) => {
                self.events.push(LogEvent::Reopened(request, outcome));
            }
            (Some(Waiting::Flush(container)), _) => self.events.push(LogEvent::Flushed(container)),
            // An order sent in the meantime is for this writer.
            (Some(Waiting::Rest { sent }), Ok(())) if self.queue.sent() == sent && self.is_clear() => {
                self.queue.dismiss();
                self.logs.values_mut().for_each(|known| known.is_used = false);
            }
            (Some(Waiting::Rest { .. }), _) | (None, Ok(())) => {}
            (None, Err(refusal)) => {
                diagnostics::warn(format_args!("a log could not be opened again: {}", refusal.message));
            }
        }
    }

    /// Called each second: asks a writer without work whether it can exit.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.queue.tick();
        if self.waiting.is_empty() && self.queue.is_idle(now, REST_AFTER) {
            let token = self.await_reply(Waiting::Rest { sent: self.queue.sent() + 1 });
            self.order(Header { order: Order::Rest, log: 0, number: token });
        }
    }

    /// The connection, if it has ended and the loop must forget it first.
    pub(crate) fn take_ended(&mut self) -> Option<OwnedFd> {
        let (connection, end) = self.queue.take_ended()?;
        if end == End::Broken {
            diagnostics::warn("the log writer ended, and what it had not written is lost");
            self.settle_lost();
        }
        Some(connection)
    }

    /// Keeps nobody waiting for a writer that is gone. Openings are sent again to the next one.
    fn settle_lost(&mut self) {
        let logs = &self.logs;
        let is_opening = |token: &u64| logs.values().any(|known| known.openings.contains(token));
        let lost = self.waiting.extract_if(.., |token, _| !is_opening(token));
        self.events.extend(lost.filter_map(|(_, waiting)| match waiting {
            Waiting::Flush(container) => Some(LogEvent::Flushed(container)),
            Waiting::Reopen(request) => Some(LogEvent::Reopened(request, Ok(()))),
            Waiting::Open(_) | Waiting::Rest { .. } => None,
        }));
    }

    /// Starts a writer if one is needed and none runs; returns whether there is a new one.
    pub(crate) fn start(&mut self, witness: &SingleThreaded) -> bool {
        if self.is_running() || self.queue.is_starved() || !self.is_needed() {
            return false;
        }
        match fork(witness) {
            Ok(connection) => {
                self.take_up(connection);
                true
            }
            Err(error) => {
                self.queue.starve();
                diagnostics::warn(format_args!("a log writer could not be started: {error}"));
                false
            }
        }
    }

    /// Takes the connection to a new writer, and has it open the logs before everything that is queued.
    fn take_up(&mut self, connection: OwnedFd) {
        self.queue.connect(connection);
        let later = self.queue.set_aside();
        let tokens = self.logs.iter().map(|(log, known)| (*log, known.tokens()));
        for (log, tokens) in Vec::from_iter(tokens) {
            tokens.into_iter().for_each(|token| self.order_open(log, token));
        }
        self.queue.put_back(later);
    }

    /// Sends queued orders as far as they are accepted.
    pub(crate) fn pump(&mut self) {
        self.queue.pump();
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn await_reply(&mut self, waiting: Waiting) -> u64 {
        let token = self.next_number();
        self.waiting.insert(token, waiting);
        token
    }

    /// Has the log say how much of its output was not queued.
    fn order_loss(&mut self, log: u64) {
        let Some(known) = self.logs.get_mut(&log) else { return };
        let number = std::mem::take(&mut known.lost_records);
        if number > 0 {
            self.order(Header { order: Order::Lose, log, number });
        }
    }

    /// Sends the order to open a log. Without a writer, it is the next writer's first order anyway.
    fn order_open(&mut self, log: u64, token: u64) {
        let (Some(known), true) = (self.logs.get(&log), self.is_running()) else { return };
        let LogFile { directory, name, limits } = &known.file;
        let deadline_ns = match self.waiting.get(&token) {
            Some(Waiting::Reopen(request)) => request.deadline_ns(),
            _ => 0,
        };
        let header = Header { order: Order::Open, log, number: token }.to_bytes();
        let opening = Opening { deadline_ns, limits: *limits, name, directory: directory.as_str() };
        let bytes = [&header[..], &opening.to_bytes()].concat();
        self.queue.send(&bytes, known.directory.as_ref());
    }

    fn order(&mut self, header: Header) {
        self.queue.send(&header.to_bytes(), None);
    }
}

/// Forks a writer and returns the connection to it. Unlike every other child, it keeps the supervisor's own log as its
/// standard error.
fn fork(witness: &SingleThreaded) -> wharf_sys::Result<OwnedFd> {
    let (ours, orders) = socket::pair()?;
    crate::spawn::set_nonblocking(&ours)?;
    if let Clone::Child(child) = clone(witness, CloneFlags::empty(), None)? {
        match wharf_sys::descriptors::close_others(&child, 3, &[orders.as_fd()]) {
            Ok(()) => process::run(&orders),
            Err(error) => diagnostics::warn(format_args!("the log writer cannot start: {error}")),
        }
        wharf_sys::process::exit_now(0)
    }
    Ok(ours)
}
