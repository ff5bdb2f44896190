//! The supervisor's side of the log writer, for which it never waits.
//!
//! A write to a regular file never reports that it would block, and a disk that stalls blocks the writer. So a separate
//! process has the files. It is forked when a container has output, and exits when none has had any for a while. Orders
//! that the connection does not accept are queued. While anything is queued, no output that is logged is read, so its
//! writers wait as for any slow reader, and nothing is lost. Only the output of a container that has ended is queued up
//! to a limit; output beyond it is counted, and the log says so.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::epoll::EpollFlags;
use wharf_isolation::LogFile;
use wharf_sys::clone::{Clone, SingleThreaded, clone};
use wharf_sys::{process, socket};
use wharf_types::ContainerId;

use super::frame::{self, HEADER_BYTES, Header, Opening, Order, Refusal};
use super::{Stream, writer};
use crate::link::{RequestId, is_want_of_memory};
use crate::trouble;

/// The most bytes in the queue: two outputs, each as long as the kernel lets a pipe be, and orders.
const QUEUE_LIMIT_BYTES: usize = 4 << 20;
/// The token of an opening for which nobody waits.
const NOBODY: u64 = 0;
/// How long there must be no output before the writer is asked to exit.
const REST_AFTER: Duration = Duration::from_secs(10);

/// The log writer, and the orders for it.
#[derive(Debug, Default)]
pub(crate) struct LogWriter {
    connection: Option<OwnedFd>,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    places: BTreeMap<u64, Place>,
    waiting: BTreeMap<u64, Waiting>,
    /// The last number that was given to a log or to an order.
    number: u64,
    sent: u64,
    last_used: Option<Instant>,
    told: Vec<Told>,
    course: Course,
}

/// The state of the connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Course {
    #[default]
    Fine,
    /// The kernel had no memory or no process to give; it is retried within a second.
    Starved,
    /// It has ended or must end: the loop closes it.
    Over,
}

/// An order that has not been accepted yet.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    directory: Option<Rc<OwnedFd>>,
}

/// What is needed to open a log in another writer.
#[derive(Debug)]
struct Place {
    file: LogFile,
    /// Present once the log has been opened, or if the daemon opened it.
    directory: Option<Rc<OwnedFd>>,
    /// The tokens of unanswered openings: the log may be rotated again before the first answer.
    openings: Vec<u64>,
    /// Whether anything was written to it through the present writer.
    is_used: bool,
    lost_records: u64,
}

/// What waits for an answer.
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

/// The result of an order.
#[derive(Debug)]
pub(crate) enum Told {
    Opened(ContainerId, Result<(), Refusal>),
    Reopened(RequestId, Result<(), Refusal>),
    Flushed(ContainerId),
}

impl LogWriter {
    /// Whether output may be read, because nothing is queued.
    pub(crate) fn is_clear(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// Whether something must be done within a second.
    pub(crate) fn is_awake(&self) -> bool {
        self.connection.is_some() || self.is_needed()
    }

    fn is_needed(&self) -> bool {
        !self.queue.is_empty() || self.places.values().any(|place| !place.openings.is_empty())
    }

    /// The events that the loop must wait for.
    pub(crate) fn interest(&self) -> EpollFlags {
        let mut interest = EpollFlags::EPOLLIN;
        interest.set(EpollFlags::EPOLLOUT, !self.is_clear() && self.course != Course::Starved);
        interest
    }

    /// Opens a container's log, reports the result later, and returns the log's number. If a directory is given, the
    /// file exists already, and the first line is what needs a writer.
    pub(crate) fn open(&mut self, file: LogFile, directory: Option<OwnedFd>, container: ContainerId) -> u64 {
        let log = self.next_number();
        let directory = directory.map(Rc::new);
        let opening = match &directory {
            None => Some(self.await_answer(Waiting::Open(container))),
            // A running writer is told now, and any later one when it starts.
            Some(_) => {
                self.told.push(Told::Opened(container, Ok(())));
                self.connection.is_some().then(|| self.next_number())
            }
        };
        let openings = Vec::from_iter(opening);
        self.places.insert(log, Place { file, directory, openings, is_used: false, lost_records: 0 });
        opening.into_iter().for_each(|token| self.order_open(log, token));
        log
    }

    /// Reopens the file of a log, and reports the result later.
    pub(crate) fn reopen(&mut self, log: u64, request: RequestId) {
        let token = self.await_answer(Waiting::Reopen(request));
        if let Some(place) = self.places.get_mut(&log) {
            place.openings.push(token);
        }
        self.order_open(log, token);
    }

    /// Writes output: the `count` bytes after the room for a header.
    pub(crate) fn write(&mut self, log: u64, stream: Stream, buffer: &mut [u8], count: usize) {
        let Some(place) = self.places.get_mut(&log) else { return };
        place.is_used = true;
        if self.queued_bytes + count > QUEUE_LIMIT_BYTES {
            let lines = buffer[HEADER_BYTES..][..count].iter().filter(|&&byte| byte == b'\n').count();
            place.lost_records += (lines as u64).max(1);
            return;
        }
        let number = wharf_sys::clock::now_ns().cast_unsigned();
        let header = Header { order: Order::Write(stream), log, number };
        buffer[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        let frame = &buffer[..HEADER_BYTES + count];
        if !self.is_clear() || !self.send(frame, None) {
            self.enqueue(frame.to_vec(), None);
        }
    }

    /// Writes what is held back of a stream that has ended.
    pub(crate) fn finish(&mut self, log: u64, stream: Stream) {
        if self.places.get(&log).is_some_and(|place| place.is_used) {
            let number = wharf_sys::clock::now_ns().cast_unsigned();
            self.order(Header { order: Order::Finish(stream), log, number });
        }
    }

    /// Reports when everything of a container's log has been written; at once if nothing is on its way.
    pub(crate) fn flush(&mut self, log: u64, container: &ContainerId) {
        self.tell_lost(log);
        if self.places.get(&log).is_some_and(|place| place.is_used) {
            let token = self.await_answer(Waiting::Flush(container.clone()));
            self.order(Header { order: Order::Flush, log, number: token });
        } else {
            self.told.push(Told::Flushed(container.clone()));
        }
    }

    /// Forgets a log once everything has been written.
    pub(crate) fn close(&mut self, log: u64) {
        self.tell_lost(log);
        let known = self.places.remove(&log).is_some();
        if known && self.is_awake() {
            self.order(Header { order: Order::Close, log, number: 0 });
        }
    }

    /// The results of orders since the last call.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Receives answers.
    pub(crate) fn receive(&mut self) {
        let mut buffer = [0; 2048];
        while let Some(connection) = &self.connection {
            match socket::receive(connection.as_fd(), &mut buffer) {
                Ok((count @ 1.., descriptors)) => {
                    if let Some((token, outcome)) = frame::parse_answer(&buffer[..count]) {
                        self.answered(token, outcome, descriptors.into_iter().next());
                    }
                }
                Err(error) if error.errno == Errno::EAGAIN => return,
                Err(error) if error.errno == Errno::EINTR => {}
                Ok((0, _)) | Err(_) => {
                    self.course = Course::Over;
                    return;
                }
            }
        }
    }

    fn answered(&mut self, token: u64, outcome: Result<(), Refusal>, directory: Option<OwnedFd>) {
        if let Some(place) = self.places.values_mut().find(|place| place.openings.contains(&token)) {
            place.openings.retain(|opening| *opening != token);
            place.directory = place.directory.take().or(directory.map(Rc::new));
        }
        match self.waiting.remove(&token) {
            Some(Waiting::Open(container)) => self.told.push(Told::Opened(container, outcome)),
            Some(Waiting::Reopen(request)) => self.told.push(Told::Reopened(request, outcome)),
            Some(Waiting::Flush(container)) => self.told.push(Told::Flushed(container)),
            // An order sent in the meantime is for this writer.
            Some(Waiting::Rest { sent }) if outcome.is_ok() && self.sent == sent && self.is_clear() => {
                self.course = Course::Over;
                self.places.values_mut().for_each(|place| place.is_used = false);
            }
            Some(Waiting::Rest { .. }) => {}
            None => {
                if let Err(refusal) = outcome {
                    trouble::tell(format_args!("a log could not be opened again: {}", refusal.message));
                }
            }
        }
    }

    /// Called each second: asks a writer without work whether it can exit.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.course == Course::Starved {
            self.course = Course::Fine;
        }
        let idle = self.last_used.is_some_and(|used| now.duration_since(used) > REST_AFTER);
        if idle && self.connection.is_some() && self.is_clear() && self.waiting.is_empty() {
            let token = self.await_answer(Waiting::Rest { sent: self.sent + 1 });
            self.order(Header { order: Order::Rest, log: 0, number: token });
        }
    }

    /// The connection, if it has ended and the loop must forget it first.
    pub(crate) fn take_over(&mut self) -> Option<OwnedFd> {
        if self.course != Course::Over {
            return None;
        }
        self.course = Course::Fine;
        let over = self.connection.take();
        if over.is_some() && !self.waiting.is_empty() {
            trouble::tell("the log writer ended, and what it had not written is lost");
            let openings: Vec<u64> =
                self.places.values().flat_map(|place| place.openings.iter().copied()).collect();
            // Openings are sent again to the next writer.
            let lost = self.waiting.extract_if(.., |token, _| !openings.contains(token));
            self.told.extend(lost.filter_map(|(_, waiting)| match waiting {
                Waiting::Flush(container) => Some(Told::Flushed(container)),
                Waiting::Reopen(request) => Some(Told::Reopened(request, Ok(()))),
                Waiting::Open(_) | Waiting::Rest { .. } => None,
            }));
        }
        over
    }

    /// Starts a writer if one is needed and none runs; returns whether there is a new one.
    pub(crate) fn start(&mut self, witness: &SingleThreaded) -> bool {
        if self.connection.is_some() || self.course == Course::Starved || !self.is_needed() {
            return false;
        }
        match fork(witness) {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => {
                self.course = Course::Starved;
                trouble::tell(format_args!("a log writer could not be started: {error}"));
                return false;
            }
        }
        self.order_openings();
        true
    }

    /// A new writer has no log open, and the queued orders are for logs of the last one.
    fn order_openings(&mut self) {
        let later = std::mem::take(&mut self.queue);
        let openings = self.places.iter().flat_map(|(log, place)| openings(*log, place));
        Vec::from_iter(openings).into_iter().for_each(|(log, token)| self.order_open(log, token));
        self.queue.extend(later);
    }

    /// Sends queued orders as far as they are accepted.
    pub(crate) fn pump(&mut self) {
        while let (Some(_), Some(frame)) = (&self.connection, self.queue.pop_front()) {
            if !self.send(&frame.bytes, frame.directory.as_deref()) {
                self.queue.push_front(frame);
                return;
            }
            self.queued_bytes -= frame.bytes.len();
        }
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn await_answer(&mut self, waiting: Waiting) -> u64 {
        let token = self.next_number();
        self.waiting.insert(token, waiting);
        token
    }

    fn tell_lost(&mut self, log: u64) {
        let Some(place) = self.places.get_mut(&log) else { return };
        let number = std::mem::take(&mut place.lost_records);
        if number > 0 {
            self.order(Header { order: Order::Lose, log, number });
        }
    }

    /// Sends the order to open a log. Without a writer, it is the next writer's first order anyway.
    fn order_open(&mut self, log: u64, token: u64) {
        let (Some(place), true) = (self.places.get(&log), self.connection.is_some()) else { return };
        let directory = place.directory.clone();
        let LogFile { directory: path, name } = &place.file;
        let deadline_ns = match self.waiting.get(&token) {
            Some(Waiting::Reopen(request)) => request.deadline_ns(),
            _ => 0,
        };
        let header = Header { order: Order::Open, log, number: token }.to_bytes();
        let opening = Opening { deadline_ns, name, directory: path.as_str() };
        let bytes = [&header[..], &opening.to_bytes()].concat();
        if !self.is_clear() || !self.send(&bytes, directory.as_deref()) {
            self.enqueue(bytes, directory);
        }
    }

    fn order(&mut self, header: Header) {
        let bytes = header.to_bytes();
        if !self.is_clear() || !self.send(&bytes, None) {
            self.enqueue(bytes.to_vec(), None);
        }
    }

    fn enqueue(&mut self, bytes: Vec<u8>, directory: Option<Rc<OwnedFd>>) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Frame { bytes, directory });
    }

    /// Whether the connection accepted it.
    fn send(&mut self, bytes: &[u8], directory: Option<&OwnedFd>) -> bool {
        let Some(connection) = &self.connection else { return false };
        let descriptors: Vec<_> = directory.into_iter().map(AsFd::as_fd).collect();
        match socket::send(connection.as_fd(), bytes, &descriptors) {
            Ok(()) => {
                self.sent += 1;
                self.last_used = Some(Instant::now());
                true
            }
            Err(error) => {
                self.course = match error.errno {
                    Errno::EAGAIN => self.course,
                    errno if is_want_of_memory(errno) && self.course == Course::Fine => Course::Starved,
                    _ => Course::Over,
                };
                false
            }
        }
    }
}

/// The openings of a log that a new writer must be sent, with their tokens: those that somebody waits for, or one for
/// nobody.
fn openings(log: u64, place: &Place) -> Vec<(u64, u64)> {
    match &place.openings[..] {
        [] => vec![(log, NOBODY)],
        openings => openings.iter().map(|token| (log, *token)).collect(),
    }
}

/// Forks a writer and returns the connection to it.
fn fork(witness: &SingleThreaded) -> wharf_sys::Result<OwnedFd> {
    let (ours, orders) = socket::pair()?;
    crate::spawn::set_nonblocking(&ours)?;
    if let Clone::Child(child) = clone(witness, CloneFlags::empty(), None)? {
        if wharf_sys::descriptors::keep_only(&child, &[orders.as_fd()]).is_ok() {
            writer::run(&orders);
        }
        process::exit_now(0)
    }
    Ok(ours)
}

#[cfg(test)]
mod tests;
