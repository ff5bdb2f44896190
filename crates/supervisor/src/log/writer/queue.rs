//! The connection to a log writer, and the orders that it has not accepted yet.
//!
//! The connection never blocks. It takes an order whole or not at all, so one that it does not take waits behind those
//! before it, with the descriptor that goes with it. What an order says is not known here; whether there is room for
//! more output is asked before it is read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use wharf_sys::socket;

use crate::diagnostics;
use crate::link::is_want_of_memory;

/// The most bytes in the queue: two outputs, each as long as the kernel lets a pipe be, and orders.
pub(super) const LIMIT_BYTES: usize = 4 << 20;

/// The connection, if there is a log writer, and its queue. The queue outlives the connection: what is queued goes to
/// the next writer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    connection: Option<OwnedFd>,
    state: State,
    orders: VecDeque<Queued>,
    bytes: usize,
    sent: u64,
    last_used: Option<Instant>,
}

/// The state of the connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Usable,
    /// The kernel had no memory or no process to give; it is retried within a second.
    Starved,
    /// The writer has nothing left to do, so the loop closes the connection.
    Dismissed,
    /// The writer ended on its own; the loop closes the connection.
    Broken,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Everything had been written.
    Dismissed,
    /// What the writer had accepted and not written is lost.
    Broken,
}

/// An order that has not been accepted yet, and the descriptor beside it.
#[derive(Debug)]
pub(super) struct Queued {
    bytes: Vec<u8>,
    directory: Option<Rc<OwnedFd>>,
}

impl Queue {
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn connect(&mut self, connection: OwnedFd) {
        self.connection = Some(connection);
    }

    /// Whether nothing is queued.
    pub(super) fn is_clear(&self) -> bool {
        self.orders.is_empty()
    }

    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes + bytes <= LIMIT_BYTES
    }

    /// How many orders writers have accepted so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether there is a writer that has not been sent anything for this time.
    pub(super) fn is_idle(&self, now: Instant, after: Duration) -> bool {
        let rests = self.last_used.is_some_and(|used| now.duration_since(used) > after);
        rests && self.connection.is_some() && self.is_clear()
    }

    /// The events that the loop must wait for.
    pub(super) fn interest(&self) -> EpollFlags {
        let mut interest = EpollFlags::EPOLLIN;
        interest.set(EpollFlags::EPOLLOUT, !self.is_clear() && !self.is_starved());
        interest
    }

    /// Whether nothing can be had from the kernel before the next second.
    pub(super) fn is_starved(&self) -> bool {
        self.state == State::Starved
    }

    pub(super) fn starve(&mut self) {
        self.state = State::Starved;
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Dismissed | State::Broken)
    }

    /// Called each second.
    pub(super) fn tick(&mut self) {
        if self.is_starved() {
            self.state = State::Usable;
        }
    }

    /// Lets the writer exit.
    pub(super) fn dismiss(&mut self) {
        self.state = State::Dismissed;
    }

    /// The connection, if it has ended or must end.
    pub(super) fn take_ended(&mut self) -> Option<(OwnedFd, End)> {
        let end = match self.state {
            State::Usable | State::Starved => return None,
            State::Dismissed => End::Dismissed,
            State::Broken => End::Broken,
        };
        self.state = State::Usable;
        self.connection.take().map(|connection| (connection, end))
    }

    /// Sends an order, or queues it behind those that have not been accepted.
    pub(super) fn send(&mut self, bytes: &[u8], directory: Option<&Rc<OwnedFd>>) {
        if !self.is_clear() || !self.is_accepted(bytes, directory) {
            self.bytes += bytes.len();
            self.orders.push_back(Queued { bytes: bytes.to_vec(), directory: directory.cloned() });
        }
    }

    /// Sends queued orders as far as they are accepted.
    pub(super) fn pump(&mut self) {
        while let (Some(_), Some(order)) = (&self.connection, self.orders.pop_front()) {
            if !self.is_accepted(&order.bytes, order.directory.as_ref()) {
                self.orders.push_front(order);
                return;
            }
            self.bytes -= order.bytes.len();
        }
    }

    /// Takes out the queued orders, so that others come before them.
    pub(super) fn set_aside(&mut self) -> VecDeque<Queued> {
        std::mem::take(&mut self.orders)
    }

    /// Queues orders that were set aside.
    pub(super) fn put_back(&mut self, orders: VecDeque<Queued>) {
        self.orders.extend(orders);
    }

    /// Sends an order if the connection accepts it now.
    fn is_accepted(&mut self, bytes: &[u8], directory: Option<&Rc<OwnedFd>>) -> bool {
        // What comes after a dismissal is for the next writer.
        let Some(connection) = self.connection.as_ref().filter(|_| !self.has_ended()) else { return false };
        let descriptors: Vec<_> = directory.into_iter().map(AsFd::as_fd).collect();
        match socket::send(connection.as_fd(), bytes, &descriptors) {
            Ok(()) => {
                self.sent += 1;
                self.last_used = Some(Instant::now());
                return true;
            }
            Err(error) if error.errno == Errno::EAGAIN => {}
            Err(error) if is_want_of_memory(error.errno) => self.starve(),
            Err(error) => self.give_up(&error),
        }
        false
    }

    /// Receives a reply, if one has arrived: its length, and the descriptor beside it.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Option<(usize, Option<OwnedFd>)> {
        loop {
            match socket::receive(self.connection()?, buffer) {
                Ok((count @ 1.., descriptors)) => return Some((count, descriptors.into_iter().next())),
                Err(error) if error.errno == Errno::EAGAIN => return None,
                Err(error) if error.errno == Errno::EINTR => {}
                Ok((0, _)) => {
                    self.state = State::Broken;
                    return None;
                }
                Err(error) => {
                    self.give_up(&error);
                    return None;
                }
            }
        }
    }

    /// Takes the writer for gone. If it has closed the connection, its own last words say why.
    fn give_up(&mut self, error: &wharf_sys::Error) {
        if !matches!(error.errno, Errno::EPIPE | Errno::ECONNRESET) {
            diagnostics::warn(format_args!("the connection to the log writer: {error}"));
        }
        self.state = State::Broken;
    }
}
