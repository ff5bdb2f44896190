//! Room for downloads: some that all pulls share, and one of each pull's own.
//!
//! A registry may send each layer just fast enough not to be given up, for hours. So the downloads that all pulls share
//! may all be taken by such registries. Because each pull has one that no other can take, it goes on all the same.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// How many pulls have a download of their own at a time; more pulls than that share the rest. A kubelet pulls one
/// image at a time, or, if it is told to, one for each pod that waits for one. A download takes three threads, 1 MiB
/// for what has arrived, and what its compression needs.
const OWN_LIMIT: usize = 64;

/// The room of all pulls.
#[derive(Debug)]
pub(crate) struct Room {
    shared: Arc<Semaphore>,
    shared_limit: usize,
    /// Permits for pulls with a download of their own.
    owners: Arc<Semaphore>,
}

/// The room of one pull.
#[derive(Debug)]
pub(crate) struct Places {
    /// Of these downloads the pull has so many at a time.
    of_pull: Arc<Semaphore>,
    /// The one that no other pull can take.
    own: Arc<Semaphore>,
    shared: Arc<Semaphore>,
    _owner: Option<OwnedSemaphorePermit>,
}

/// Room for one download, as long as this exists.
#[derive(Debug)]
pub(crate) struct Place {
    _of_pull: OwnedSemaphorePermit,
    _own_or_shared: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(limits: &Limits) -> Self {
        let shared_limit = limits.layers_in_all.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Arc::new(Semaphore::new(shared_limit));
        Self { shared, shared_limit, owners: Arc::new(Semaphore::new(OWN_LIMIT)) }
    }

    /// The most downloads at a time.
    pub(crate) fn limit(&self) -> usize {
        self.shared_limit.saturating_add(OWN_LIMIT)
    }

    /// Room for a pull that has so many downloads at a time.
    pub(crate) fn of_pull(&self, limits: &Limits) -> Places {
        let owner = Arc::clone(&self.owners).try_acquire_owned().ok();
        let limit = limits.layers_per_pull.clamp(1, Semaphore::MAX_PERMITS);
        Places {
            of_pull: Arc::new(Semaphore::new(limit)),
            own: Arc::new(Semaphore::new(owner.iter().count())),
            shared: Arc::clone(&self.shared),
            _owner: owner,
        }
    }
}

impl Places {
    /// Room for a download, if there is some now.
    pub(crate) fn try_take(&self) -> Option<Place> {
        let now = |room: &Arc<Semaphore>| Arc::clone(room).try_acquire_owned().ok();
        let of_pull = now(&self.of_pull)?;
        let own_or_shared = now(&self.own).or_else(|| now(&self.shared))?;
        Some(Place { _of_pull: of_pull, _own_or_shared: own_or_shared })
    }

    /// Room for a download, as soon as there is some; `None` never, because no room is closed.
    pub(crate) async fn take(&self) -> Option<Place> {
        let wait = |room: &Arc<Semaphore>| Arc::clone(room).acquire_owned();
        let of_pull = wait(&self.of_pull).await.ok()?;
        let own_or_shared = tokio::select! {
            biased;
            own = wait(&self.own) => own,
            shared = wait(&self.shared) => shared,
        };
        Some(Place { _of_pull: of_pull, _own_or_shared: own_or_shared.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn limits(layers_per_pull: usize, layers_in_all: usize) -> Limits {
        Limits { layers_per_pull, layers_in_all, ..Limits::default() }
    }

    fn take_all(places: &Places) -> Vec<Place> {
        std::iter::from_fn(|| places.try_take()).collect()
    }

    #[tokio::test]
    async fn each_pull_has_one_of_its_own_beside_the_shared_ones() {
        let limits = limits(4, 3);
        let room = Room::new(&limits);
        let [first, second, third] = [(); 3].map(|()| room.of_pull(&limits));
        let mut of_first = take_all(&first);
        let of_second = take_all(&second);
        assert_eq!((of_first.len(), of_second.len()), (4, 1));
        let own = third.take().await.unwrap();
        assert!(third.try_take().is_none());
        // One that is shared, which the pull that waits longest gets.
        let mut waiting = std::pin::pin!(third.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        of_first.pop();
        let shared = waiting.await.unwrap();
        drop((own, shared));
        assert_eq!(take_all(&third).len(), 2);
    }

    #[tokio::test]
    async fn a_pull_has_so_many_and_may_wait_for_its_own() {
        let limits = limits(2, 9);
        let room = Room::new(&limits);
        let places = room.of_pull(&limits);
        let mut taken = take_all(&places);
        assert_eq!(taken.len(), 2);
        let mut waiting = std::pin::pin!(places.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        taken.clear();
        waiting.await.unwrap();
    }

    #[test]
    fn so_many_pulls_have_one_of_their_own() {
        let limits = limits(1, 1);
        let room = Room::new(&limits);
        let pulls: Vec<_> = (0..=OWN_LIMIT).map(|_| room.of_pull(&limits)).collect();
        let mut taken: Vec<_> = pulls.iter().filter_map(Places::try_take).collect();
        assert_eq!((taken.len(), room.limit()), (OWN_LIMIT + 1, OWN_LIMIT + 1));
        let late = room.of_pull(&limits);
        assert!(late.try_take().is_none());
        taken.pop();
        assert!(late.try_take().is_some(), "it shares");
        drop(pulls);
        assert!(room.of_pull(&limits).try_take().is_some());
    }
}
