//! Which calls a daemon that is to end still waits for: those that had begun by then. It serves later ones meanwhile,
//! but does not wait for them, because there may always be some.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use wharf_types::lock::lock;

/// What each call holds until it has been answered.
pub(crate) type Ticket = Sender<Infallible>;

/// Gives tickets to calls, until it is closed.
#[derive(Debug, Clone)]
pub struct Underway(Arc<Mutex<Option<Ticket>>>);

/// Ends with the last call that holds a ticket.
#[derive(Debug)]
pub struct Ended(Receiver<Infallible>);

impl Underway {
    /// Nothing has begun yet.
    #[must_use]
    pub fn new() -> (Self, Ended) {
        let (ticket, tickets) = channel(1);
        (Self(Arc::new(Mutex::new(Some(ticket)))), Ended(tickets))
    }

    pub(crate) fn begin(&self) -> Option<Ticket> {
        lock(&self.0).clone()
    }

    /// Gives no more tickets.
    pub fn close(&self) {
        *lock(&self.0) = None;
    }
}

impl Ended {
    /// Waits for the calls that began before the [`Underway`] was closed.
    pub async fn wait(mut self) {
        // Nothing is ever sent.
        while self.0.recv().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn only_what_began_before_the_end_is_waited_for() {
        let (underway, ended) = Underway::new();
        let (early, answered) = (underway.begin(), underway.begin());
        drop(answered);
        underway.close();
        assert!(underway.begin().is_none(), "a later one");
        let mut ended = Box::pin(ended.wait());
        assert!((&mut ended).now_or_never().is_none());
        drop(early);
        ended.await;
    }
}
