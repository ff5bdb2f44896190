//! Lifecycle events for `GetContainerEvents`.

use tokio::sync::broadcast;
use wharf_cri_api::v1::{ContainerEventResponse, ContainerEventType};

use crate::pod::Pod;
use crate::view;

/// How many events a slow listener may lag behind before it is told that some are lost.
const BACKLOG: usize = 1024;

/// Where events are told and heard.
#[derive(Debug)]
pub(crate) struct Events(broadcast::Sender<ContainerEventResponse>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.0.subscribe()
    }

    /// Tells of a container, or of the pod itself by its id. Free where nobody listens.
    pub(crate) fn tell(&self, kind: ContainerEventType, id: &str, pod: &Pod) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: wharf_sys::clock::now_ns(),
            pod_sandbox_status: Some(view::pod_status(pod)),
            containers_statuses: pod
                .containers()
                .iter()
                .map(|container| view::container_status(container))
                .collect(),
        };
        // An error means that the last listener has just gone.
        self.0.send(event).map(drop).unwrap_or_default();
    }
}
