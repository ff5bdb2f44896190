//! Rtnetlink requests that are sent to the kernel together.
//!
//! They cost one round trip instead of one each. A batch is not a transaction: the kernel carries out what follows a
//! request that it refuses.

use crate::netlink::{Message, NetlinkError, Socket};

/// Requests that are sent as one datagram and carried out in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<Message>,
    operations: Vec<String>,
}

impl Batch {
    /// Adds a request; an error will name `operation`.
    pub(crate) fn add(&mut self, operation: impl Into<String>, message: Message) {
        self.messages.push(message);
        self.operations.push(operation.into());
    }

    /// Sends all requests. The kernel continues after one that it refuses.
    ///
    /// # Errors
    /// The error of the first that was refused.
    pub(crate) fn send(mut self, socket: &Socket) -> Result<(), NetlinkError> {
        if self.messages.is_empty() {
            return Ok(());
        }
        socket
            .batch(self.messages)
            .map_err(|(index, errno)| NetlinkError { operation: self.operations.swap_remove(index), errno })
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::link;
    use crate::netlink::Family;

    #[test]
    fn a_refusal_names_the_request_and_the_others_are_done() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = Socket::open(Family::Route).unwrap();
        let mut batch = Batch::default();
        batch.add("bring up what is not there", link::up(99));
        batch.add("bring up lo", link::up(link::LOOPBACK));
        let error = batch.send(&socket).unwrap_err();
        assert_eq!((error.operation.as_str(), error.errno), ("bring up what is not there", Errno::ENODEV));
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Batch::default().send(&socket).unwrap();
    }
}
