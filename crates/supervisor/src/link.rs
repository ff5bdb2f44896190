//! The daemon's connection. It may end at any moment, and a daemon that does not read is treated as gone: the
//! supervisor never waits for it. Whoever connects next asks for the state.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use wharf_wire::v1::{Failure, Message, Reply, Request, failure, message, reply};

use crate::lifecycle;

/// A connection that may be gone.
#[derive(Debug)]
pub(crate) struct Link(Option<OwnedFd>);

/// What came over the connection.
#[derive(Debug)]
pub(crate) enum Received {
    Request(Request, Vec<OwnedFd>),
    Nothing,
    Closed,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        // One that would block is one that could make containers wait for the daemon: better none.
        Self(crate::spawn::set_nonblocking(&socket).is_ok().then_some(socket))
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn receive(&mut self) -> Received {
        let Some(socket) = &self.0 else { return Received::Closed };
        match wharf_wire::receive::<Request>(socket.as_fd()) {
            Ok(Some((request, descriptors))) => Received::Request(request, descriptors),
            Err(error) if error.would_block() => Received::Nothing,
            Ok(None) | Err(_) => Received::Closed,
        }
    }

    pub(crate) fn close(&mut self) {
        self.0 = None;
    }

    /// Sends an event.
    pub(crate) fn tell(&mut self, body: message::Body) {
        self.send(body, &[]);
    }

    /// Answers a request.
    pub(crate) fn reply(&mut self, id: u64, result: reply::Result, descriptors: &[BorrowedFd<'_>]) {
        self.send(message::Body::Reply(Reply { id, result: Some(result) }), descriptors);
    }

    /// Answers a request with a failure.
    pub(crate) fn fail(&mut self, id: u64, failure: lifecycle::Failure) {
        let failure = Failure { kind: failure.kind.into(), message: failure.message };
        self.reply(id, reply::Result::Failure(failure), &[]);
    }

    fn send(&mut self, body: message::Body, descriptors: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.0 else { return };
        if wharf_wire::send(socket.as_fd(), &Message { body: Some(body) }, descriptors).is_err() {
            // Shut down rather than closed: the loop still watches it and must see it end.
            wharf_sys::socket::shut_down(socket.as_fd());
        }
    }
}

/// A failure of a kind.
pub(crate) fn failure(kind: failure::Kind, message: impl Into<String>) -> lifecycle::Failure {
    lifecycle::Failure { kind, message: message.into() }
}
