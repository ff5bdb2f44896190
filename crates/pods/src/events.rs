//! Lifecycle events for `GetContainerEvents`.
//!
//! An event has the facts about its pod at its moment, and events of one pod come in the order in which things
//! happened: whoever tells one holds the pod's `telling`. A client that lags too far behind is told so; it holds up
//! nobody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::broadcast;
use wharf_cri_api::v1::ContainerEventType;
use wharf_records::Event;

use crate::lock::RwLock;
use crate::pod::Pod;

/// How many events a slow client may lag behind before it is told that some are lost.
const BACKLOG: usize = 1024;

/// The stream of events, until it ends.
#[derive(Debug)]
pub(crate) struct Events {
    /// `None` once the stream has ended. Nothing is taken while this is locked.
    sender: RwLock<Option<broadcast::Sender<Event>>>,
    /// How many events all listeners together have missed.
    missed: AtomicU64,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { sender: RwLock::new(Some(broadcast::channel(BACKLOG).0)), missed: AtomicU64::new(0) }
    }

    /// Ends every client's stream after the events that it still has, and each later stream at once.
    pub(crate) fn end(&self) {
        *self.sender.write() = None;
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        let sender = self.sender.read();
        sender.as_ref().map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe)
    }

    pub(crate) fn missed(&self, events: u64) {
        self.missed.fetch_add(events, Relaxed);
    }

    /// How many listeners there are, and how many events they have missed.
    pub(crate) fn listeners(&self) -> (usize, u64) {
        let count = self.sender.read().as_ref().map_or(0, broadcast::Sender::receiver_count);
        (count, self.missed.load(Relaxed))
    }

    /// Sends an event about a container, or about the pod itself by its id. Costs nothing if there is no client.
    pub(crate) fn tell(&self, kind: ContainerEventType, id: &str, pod: &Pod) {
        let sender = self.sender.read();
        let Some(sender) = sender.as_ref().filter(|sender| sender.receiver_count() > 0) else { return };
        let event = Event {
            kind,
            id: id.to_owned(),
            created_at_ns: wharf_sys::clock::now_ns(),
            pod: pod.facts(),
            containers: pod.containers().iter().map(|container| container.facts()).collect(),
        };
        // An error means that the last client has just left.
        sender.send(event).map(drop).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::broadcast::error::{RecvError, TryRecvError};
    use wharf_types::PodId;

    fn pod() -> Pod {
        Pod::new(PodId::from_random([1; 32]), Default::default(), String::new(), 0)
    }

    #[tokio::test]
    async fn a_listener_hears_what_happens_from_now_on_and_how_things_stood_then() {
        let (events, pod) = (Events::new(), pod());
        events.tell(ContainerEventType::ContainerCreatedEvent, "before", &pod);
        let mut listener = events.subscribe();
        pod.write_state().ready = true;
        events.tell(ContainerEventType::ContainerStartedEvent, pod.id().as_str(), &pod);
        pod.write_state().ready = false;
        events.tell(ContainerEventType::ContainerStoppedEvent, pod.id().as_str(), &pod);
        for is_ready in [true, false] {
            let event = listener.recv().await.unwrap();
            assert_eq!((event.id.as_str(), event.pod.is_ready), (pod.id().as_str(), is_ready));
        }
        assert!(matches!(listener.try_recv(), Err(TryRecvError::Empty)));
    }

    #[tokio::test]
    async fn a_slow_listener_learns_that_it_missed_events() {
        let (events, pod) = (Events::new(), pod());
        let mut listener = events.subscribe();
        for _ in 0..=BACKLOG {
            events.tell(ContainerEventType::ContainerCreatedEvent, "x", &pod);
        }
        assert!(matches!(listener.recv().await, Err(RecvError::Lagged(1))));
        events.missed(1);
        assert_eq!(events.listeners(), (1, 1));
    }

    #[tokio::test]
    async fn at_the_end_all_listeners_come_to_theirs() {
        let (events, pod) = (Events::new(), pod());
        let mut early = events.subscribe();
        events.tell(ContainerEventType::ContainerCreatedEvent, "x", &pod);
        events.end();
        events.tell(ContainerEventType::ContainerCreatedEvent, "y", &pod);
        assert_eq!(early.recv().await.unwrap().id, "x");
        assert!(matches!(early.recv().await, Err(RecvError::Closed)));
        assert!(matches!(events.subscribe().recv().await, Err(RecvError::Closed)));
    }
}
