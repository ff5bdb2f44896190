//! The connection to the daemon, which the supervisor never waits for. It may end at any moment; the next daemon to
//! connect asks for the state.
//!
//! Messages that a daemon does not accept are queued. None is dropped while the connection lives, and yet the queue is
//! bounded: requests are not read while many messages wait, and the only unsolicited messages are one for each exec or
//! attached client that a request made, and two for each container. When the connection ends, so does the queue: a
//! reply is only for the daemon that sent the request, the execs of a daemon that is gone are killed, and containers
//! are in the state.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use wharf_wire::Datagram;
use wharf_wire::v1::{Message, Reply, Request, message, reply};

use crate::diagnostics::{self, OrWarn as _};
use crate::failure::Failure;

/// How many messages may wait before no more requests are read.
const QUEUE_LIMIT: usize = 256;

/// A request on one connection. Its reply goes nowhere else, whatever numbers another daemon uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId {
    connection: u64,
    number: u64,
    /// When its caller stops waiting and takes it for failed; 0 if the caller waits forever.
    deadline_ns: u64,
}

impl RequestId {
    /// Whether its caller has stopped waiting for it. Whatever is done for it now would be done in addition to the
    /// caller's next attempt.
    pub(crate) fn is_late(self, monotonic_ns: u64) -> bool {
        self.deadline_ns != 0 && monotonic_ns >= self.deadline_ns
    }

    /// When it becomes late, by the monotonic clock; 0 if never.
    pub(crate) fn deadline_ns(self) -> u64 {
        self.deadline_ns
    }

    /// Whether it must be looked at again at its deadline.
    pub(crate) fn can_be_late(self) -> bool {
        self.deadline_ns != 0
    }
}

#[cfg(test)]
impl RequestId {
    pub(crate) const fn of_test(number: u64) -> Self {
        Self { connection: 0, number, deadline_ns: 0 }
    }

    pub(crate) const fn number_of_test(self) -> u64 {
        self.number
    }

    pub(crate) const fn until(self, deadline_ns: u64) -> Self {
        Self { deadline_ns, ..self }
    }
}

/// A connection that may have ended.
#[derive(Debug, Default)]
pub(crate) struct Link {
    socket: Option<OwnedFd>,
    /// Its number among all connections so far.
    connection: u64,
    queue: VecDeque<Datagram>,
    /// The kernel had no memory for a message; sending is retried within a second.
    is_starved: bool,
}

/// What arrived on the connection.
#[derive(Debug)]
pub(crate) enum Received {
    Request(RequestId, Request, Vec<OwnedFd>),
    Nothing,
    Closed,
}

impl Link {
    /// Takes a connection in place of the last one.
    pub(crate) fn open(&mut self, socket: OwnedFd) -> wharf_sys::Result<()> {
        self.close();
        crate::spawn::set_nonblocking(&socket)?;
        self.connection += 1;
        self.socket = Some(socket);
        Ok(())
    }

    pub(crate) fn close(&mut self) {
        self.socket = None;
        self.queue.clear();
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Whether messages wait for more memory.
    pub(crate) fn is_starved(&self) -> bool {
        self.is_starved
    }

    /// The events that the loop must wait for.
    pub(crate) fn interest(&self) -> EpollFlags {
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, !self.is_full());
        interest.set(EpollFlags::EPOLLOUT, !self.queue.is_empty() && !self.is_starved);
        interest
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_LIMIT
    }

    /// Receives a request, unless too many messages are queued.
    pub(crate) fn receive(&mut self) -> Received {
        let Some(socket) = &self.socket else { return Received::Closed };
        if self.is_full() {
            return Received::Nothing;
        }
        match wharf_wire::receive::<Request>(socket.as_fd()) {
            Ok(Some((request, descriptors))) => {
                let id = RequestId {
                    connection: self.connection,
                    number: request.id,
                    deadline_ns: request.deadline_ns,
                };
                Received::Request(id, request, descriptors)
            }
            Err(error) if error.would_block() => Received::Nothing,
            Ok(None) => Received::Closed,
            Err(error) => {
                diagnostics::warn(format_args!("the daemon's connection: {}", wharf_types::chain(&error)));
                Received::Closed
            }
        }
    }

    /// Sends an event.
    pub(crate) fn notify(&mut self, body: message::Body) {
        self.send(body, &[]).or_warn("a message to the daemon");
    }

    /// Replies to a request if its connection still exists.
    pub(crate) fn reply(&mut self, id: RequestId, result: reply::Result, descriptors: &[BorrowedFd<'_>]) {
        if id.connection != self.connection {
            return;
        }
        let body = message::Body::Reply(Reply { id: id.number, result: Some(result) });
        if let Err(error) = self.send(body, descriptors) {
            // Without a reply the daemon would wait. One that is too long is not its fault.
            let failure = match error {
                wharf_wire::Error::TooLong { .. } => Failure::fault(error.to_string()),
                other => Failure::of(other),
            };
            self.fail(id, failure.within("the reply"));
        }
    }

    /// Replies to a request with a failure.
    pub(crate) fn fail(&mut self, id: RequestId, failure: Failure) {
        if id.connection == self.connection {
            let result = reply::Result::Failure(failure.into());
            self.notify(message::Body::Reply(Reply { id: id.number, result: Some(result) }));
        }
    }

    fn send(&mut self, body: message::Body, descriptors: &[BorrowedFd<'_>]) -> Result<(), wharf_wire::Error> {
        if self.socket.is_some() {
            self.queue.push_back(Datagram::new(&Message { body: Some(body) }, descriptors)?);
            self.pump();
        }
        Ok(())
    }

    /// Sends queued messages as far as the daemon accepts them.
    pub(crate) fn pump(&mut self) {
        self.is_starved = false;
        while let (Some(socket), Some(datagram)) = (&self.socket, self.queue.front()) {
            match datagram.send(socket.as_fd()) {
                Ok(()) => {
                    self.queue.pop_front();
                }
                Err(error) if error.would_block() => return,
                Err(wharf_wire::Error::Socket(error)) if is_want_of_memory(error.errno) => {
                    self.is_starved = true;
                    return;
                }
                Err(error) => {
                    // Its own end is seen and noted elsewhere.
                    if !is_end(&error) {
                        diagnostics::warn(format_args!(
                            "a message to the daemon: {}",
                            wharf_types::chain(&error)
                        ));
                    }
                    return self.give_up();
                }
            }
        }
    }

    /// Shut down rather than closed: the loop still watches it and must see its end.
    fn give_up(&mut self) {
        self.queue.clear();
        if let Some(socket) = &self.socket {
            wharf_sys::socket::shut_down(socket.as_fd());
        }
    }
}

/// Whether the daemon has ended the connection.
fn is_end(error: &wharf_wire::Error) -> bool {
    matches!(error, wharf_wire::Error::Socket(error) if matches!(error.errno, Errno::EPIPE | Errno::ECONNRESET))
}

/// Whether the kernel lacked room for a message, which it may have in a moment.
pub(crate) fn is_want_of_memory(errno: Errno) -> bool {
    matches!(errno, Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusing::refusing;
    use wharf_sys::seccomp::Call;
    use wharf_wire::v1;

    fn link() -> (Link, OwnedFd) {
        let (ours, theirs) = wharf_sys::socket::pair().unwrap();
        let mut link = Link::default();
        link.open(ours).unwrap();
        (link, theirs)
    }

    fn event(exec: u64) -> message::Body {
        message::Body::ExecExited(v1::ExecExited { exec, exit: None })
    }

    fn receive(daemon: &OwnedFd) -> message::Body {
        let (message, _) = wharf_wire::receive::<Message>(daemon.as_fd()).unwrap().unwrap();
        message.body.unwrap()
    }

    #[test]
    fn a_daemon_that_does_not_read_loses_nothing() {
        let (mut link, daemon) = link();
        (0..2000).for_each(|exec| link.notify(event(exec)));
        assert_eq!(link.interest(), EpollFlags::EPOLLOUT, "no request is read meanwhile");
        let request = Request { id: 5, ..Request::default() };
        wharf_wire::send(daemon.as_fd(), &request, &[]).unwrap();
        assert!(matches!(link.receive(), Received::Nothing));
        for exec in 0..2000 {
            assert_eq!(receive(&daemon), event(exec));
            link.pump();
        }
        assert_eq!(link.interest(), EpollFlags::EPOLLIN);
        let Received::Request(id, _, _) = link.receive() else { panic!("the request is still there") };
        link.reply(id, reply::Result::Done(v1::Done {}), &[]);
        assert!(matches!(receive(&daemon), message::Body::Reply(Reply { id: 5, .. })));
    }

    #[test]
    fn a_kernel_without_memory_for_a_message_costs_neither_it_nor_the_connection() {
        for errno in [Errno::ENOBUFS, Errno::ENOMEM, Errno::ETOOMANYREFS, Errno::EAGAIN] {
            let (mut link, daemon) = link();
            refusing(Call::SENDMSG, errno, || link.notify(event(1)));
            assert_eq!(link.is_starved(), errno != Errno::EAGAIN, "{errno}");
            link.notify(event(2));
            assert_eq!([receive(&daemon), receive(&daemon)], [event(1), event(2)], "{errno}");
            assert_eq!((link.is_starved(), link.interest()), (false, EpollFlags::EPOLLIN));
        }
    }

    #[test]
    fn a_reply_goes_to_the_daemon_that_sent_the_request() {
        let (mut link, old) = link();
        wharf_wire::send(old.as_fd(), &Request { id: 1, ..Request::default() }, &[]).unwrap();
        let Received::Request(id, _, _) = link.receive() else { panic!("a request") };
        let (ours, new) = wharf_sys::socket::pair().unwrap();
        link.open(ours).unwrap();
        link.reply(id, reply::Result::Done(v1::Done {}), &[]);
        link.notify(event(9));
        assert_eq!(receive(&new), event(9));
    }

    #[test]
    fn a_long_failure_is_cut_and_the_connection_stays() {
        let (mut link, daemon) = link();
        wharf_wire::send(daemon.as_fd(), &Request { id: 1, ..Request::default() }, &[]).unwrap();
        let Received::Request(id, _, _) = link.receive() else { panic!("a request") };
        link.fail(id, Failure::fault("ü".repeat(100_000)));
        let message::Body::Reply(Reply { result: Some(reply::Result::Failure(failure)), .. }) =
            receive(&daemon)
        else {
            panic!("a failure")
        };
        assert!(failure.message.len() < 5000 && failure.message.ends_with("ü…"));
    }

    #[test]
    fn a_connection_that_ended_is_seen() {
        let (mut link, daemon) = link();
        drop(daemon);
        link.notify(event(1));
        assert!(matches!(link.receive(), Received::Closed));
    }
}
