//! Lifecycle events for `GetContainerEvents`.

use tokio::sync::broadcast;
use wharf_cri_api::v1::{ContainerEventResponse, ContainerEventType};

use crate::lock::RwLock;
use crate::pod::Pod;
use crate::view;

/// How many events a slow listener may lag behind before it is told that some are lost.
const BACKLOG: usize = 1024;

/// Where events are told and heard, until the end.
#[derive(Debug)]
pub(crate) struct Events(RwLock<Option<broadcast::Sender<ContainerEventResponse>>>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(RwLock::new(Some(broadcast::channel(BACKLOG).0)))
    }

    /// Lets every listener come to the end of what it hears, and each later one at once.
    pub(crate) fn end(&self) {
        *self.0.write() = None;
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        let sender = self.0.read();
        sender.as_ref().map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe)
    }

    /// Tells of a container, or of the pod itself by its id. Free where nobody listens.
    pub(crate) fn tell(&self, kind: ContainerEventType, id: &str, pod: &Pod) {
        let sender = self.0.read();
        let Some(sender) = sender.as_ref().filter(|sender| sender.receiver_count() > 0) else { return };
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: wharf_sys::clock::now_ns(),
            pod_sandbox_status: Some(view::pod_status(pod)),
            containers_statuses: view::container_statuses(pod),
        };
        // An error means that the last listener has just gone.
        sender.send(event).map(drop).unwrap_or_default();
    }
}
