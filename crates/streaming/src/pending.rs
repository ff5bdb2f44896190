//! Connections that have not made their request yet, or whose request was refused. Anyone who reaches the port can open some
//! and stay silent, so there is room for a bounded number, and who comes when it is full takes the place of who has waited
//! longest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use wharf_types::lock::lock;

use crate::token::PENDING_LIMIT;

/// The connections that wait, the longest first.
#[derive(Default)]
pub(crate) struct Lobby(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    places: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// How many connections may be at their request, at the handshake before it, or at their end after a refusal.
const PLACES: usize = 1024;

const _: () = assert!(PLACES > PENDING_LIMIT, "clients that use all URLs in one moment have room");

/// A place in the lobby, until it is dropped.
pub(crate) struct Place {
    lobby: Arc<Lobby>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Lobby {
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let (taken, lost) = oneshot::channel();
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        if waiting.places.len() >= PLACES {
            waiting.places.pop_front();
        }
        waiting.places.push_back((number, taken));
        Place { lobby: Arc::clone(self), number, lost }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.0)
    }
}

impl Place {
    /// Resolves when the place went to another.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent: the sender is dropped with the place.
        drop((&mut self.lost).await);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.lobby.waiting();
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
        let lobby = Arc::new(Lobby::default());
        let mut places: Vec<_> = (0..PLACES).map(|_| lobby.enter()).collect();
        drop(places.remove(1));
        let second = lobby.enter();
        assert!(places[0].lost.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let third = lobby.enter();
        places[0].lost().await;
        assert_eq!(lobby.waiting().places.len(), PLACES);
        drop((places, second, third));
        assert_eq!(lobby.waiting().places.len(), 0);
    }
}
