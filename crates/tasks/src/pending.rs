//! Connections for which their server does nothing but wait: for a request, for the end after a refusal, or for a
//! client that reads.
//!
//! Anyone who can reach a port can open connections and stay silent, so their number is limited: at the limit, a new
//! connection evicts the one that has been pending longest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use wharf_types::lock::lock;

/// The pending connections of a server.
#[derive(Debug)]
pub struct PendingConnections {
    limit: usize,
    waiting: Mutex<Waiting>,
}

/// Oldest first.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    places: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A connection's place among the pending ones, until it is dropped.
#[derive(Debug)]
pub struct PendingPlace {
    pending: Arc<PendingConnections>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl PendingConnections {
    /// Room for this many.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, waiting: Mutex::default() })
    }

    /// Counts one more until its place is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> PendingPlace {
        let (taken, lost) = oneshot::channel();
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        if waiting.places.len() >= self.limit {
            waiting.places.pop_front();
        }
        waiting.places.push_back((number, taken));
        PendingPlace { pending: Arc::clone(self), number, lost }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

impl PendingPlace {
    /// Resolves when another connection evicts this one.
    pub async fn lost(&mut self) {
        // Nothing is ever sent: the sender is dropped together with the place.
        drop((&mut self.lost).await);
    }
}

impl Drop for PendingPlace {
    fn drop(&mut self) {
        let mut waiting = self.pending.waiting();
        if let Ok(at) = waiting.places.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.places.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_waited_longest_goes() {
        const PLACES: usize = 5;
        let pending = PendingConnections::new(PLACES);
        let mut places: Vec<_> = (0..PLACES).map(|_| pending.enter()).collect();
        drop(places.remove(1));
        let second = pending.enter();
        assert!(places[0].lost.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let third = pending.enter();
        places[0].lost().await;
        assert_eq!(pending.waiting().places.len(), PLACES);
        drop((places, second, third));
        assert_eq!(pending.waiting().places.len(), 0);
    }
}
