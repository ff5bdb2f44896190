//! Pods and containers as they stand at a moment: plain values, which answers and events are made of.

use std::net::IpAddr;
use std::sync::Arc;

use wharf_cri_api::v1::{ContainerEventType, NamespaceMode, NamespaceOption, PodSandboxConfig, Signal};
use wharf_planner::stop_signal;
use wharf_records::ContainerRecord;
use wharf_types::{ContainerId, ContainerState, PodId};

/// A pod at a moment.
#[derive(Debug, Clone)]
pub struct PodFacts {
    /// The id.
    pub id: PodId,
    /// The request.
    pub config: Arc<PodSandboxConfig>,
    /// The runtime handler that it was asked for by.
    pub handler: String,
    /// Nanoseconds since the epoch; no other pod has the same.
    pub created_at_ns: i64,
    /// Whether containers can be made in it.
    pub is_ready: bool,
    /// Its own addresses, the first one first; none on the host's network.
    pub ips: Vec<IpAddr>,
}

impl PodFacts {
    /// The namespaces the request asked for; unset ones are the pod's.
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        namespaces(&self.config)
    }

    /// Whether it is on the host's network.
    #[must_use]
    pub fn is_host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }
}

/// The namespaces that a request asks for; unset ones are the pod's.
pub(crate) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// A container at a moment.
#[derive(Debug, Clone)]
pub struct ContainerFacts {
    /// The id.
    pub id: ContainerId,
    /// The pod it is in.
    pub pod: PodId,
    /// Its state; one that nobody knows is shown as running.
    pub state: ContainerState,
    /// The request and what was resolved of it.
    pub record: ContainerRecord,
    /// Where its log is; empty if nowhere.
    pub log_path: String,
}

impl ContainerFacts {
    /// The signal that asks its program to end.
    #[must_use]
    pub fn stop_signal(&self) -> Signal {
        stop_signal::cri_signal(&self.record.stop_signal)
    }
}

/// Something that happened, and how things stood then.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened.
    pub kind: ContainerEventType,
    /// To which container, or to the pod itself.
    pub id: String,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// The pod.
    pub pod: PodFacts,
    /// Its containers, in the order of ids.
    pub containers: Vec<ContainerFacts>,
}
