//! Pending connections: those that have not sent their request yet, or whose request was refused.
//!
//! Anyone who can reach the port can open connections and stay silent, so their number is limited: at the limit, a new
//! connection evicts the one that has been pending longest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use wharf_types::lock::lock;

use crate::token::PENDING_LIMIT;

/// The pending connections, oldest first.
#[derive(Default)]
pub(crate) struct PendingConnections(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    places: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// How many connections may be in the TLS handshake, sending their request, or closing after a refusal.
const PLACES: usize = 1024;

const _: () = assert!(PLACES > PENDING_LIMIT, "clients that use all URLs in one moment have room");

/// A connection's place among the pending ones, until it is dropped.
pub(crate) struct Place {
    pending: Arc<PendingConnections>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl PendingConnections {
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let (taken, lost) = oneshot::channel();
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        if waiting.places.len() >= PLACES {
            waiting.places.pop_front();
        }
        waiting.places.push_back((number, taken));
        Place { pending: Arc::clone(self), number, lost }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.0)
    }
}

impl Place {
    /// Resolves when another connection evicts this one.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent: the sender is dropped together with the place.
        drop((&mut self.lost).await);
    }
}

impl Drop for Place {
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
        let pending = Arc::new(PendingConnections::default());
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
