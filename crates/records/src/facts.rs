//! Pods and containers at one moment, as plain values from which responses and events are made.

use std::net::IpAddr;
use std::sync::Arc;

use wharf_cri_api::v1::{ContainerEventType, NamespaceMode, NamespaceOption, PodSandboxConfig, Signal};
use wharf_planner::stop_signal;
use wharf_types::{ContainerId, ContainerState, PodId};

use crate::ContainerRecord;

/// A pod at one moment.
#[derive(Debug, Clone)]
pub struct PodFacts {
    /// Its id.
    pub id: PodId,
    /// Its request.
    pub config: Arc<PodSandboxConfig>,
    /// The runtime handler in its request.
    pub handler: String,
    /// Its creation time, in nanoseconds since the epoch; no other pod has the same.
    pub created_at_ns: i64,
    /// Whether containers can be created in it.
    pub is_ready: bool,
    /// Its own addresses, the primary one first; empty on the host's network.
    pub ips: Vec<IpAddr>,
    /// Its level of SELinux, which is empty if the policy has none; `None` if it was made without labels.
    pub selinux_level: Option<String>,
}

impl PodFacts {
    /// The namespaces in its request; unset ones are the pod's.
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        wharf_planner::namespaces_of(&self.config)
    }

    /// Whether it is on the host's network.
    #[must_use]
    pub fn is_host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerFacts {
    /// Its id.
    pub id: ContainerId,
    /// The pod it is in.
    pub pod: PodId,
    /// Its state; an unknown one is shown as running.
    pub state: ContainerState,
    /// The request, and what was resolved from it.
    pub record: ContainerRecord,
    /// The path of its log, or [`NO_LOG`](crate::NO_LOG) if it has none; empty before it is made.
    pub log_path: String,
}

impl ContainerFacts {
    /// A container that is about to be made.
    #[must_use]
    pub fn intended(id: ContainerId, pod: PodId, record: ContainerRecord) -> Self {
        Self { id, pod, state: ContainerState::Created, record, log_path: String::new() }
    }

    /// The signal that asks its program to exit.
    #[must_use]
    pub fn stop_signal(&self) -> Signal {
        stop_signal::cri_signal(&self.record.stop_signal)
    }
}

/// An event, with the facts at that moment.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened.
    pub kind: ContainerEventType,
    /// The id of the container, or of the pod itself.
    pub id: String,
    /// The time of the event, in nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// The pod.
    pub pod: PodFacts,
    /// Its containers, sorted by id.
    pub containers: Vec<ContainerFacts>,
}
