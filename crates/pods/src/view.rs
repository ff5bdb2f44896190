//! Pods and containers as the CRI shows them, from memory alone but for the runtime spec of a verbose status.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use wharf_cri_api::admin::{ContainerRequest, PodRequest};
use wharf_cri_api::v1::{
    self, Container as ContainerItem, ContainerStatus, ContainerUser, ImageSpec, LinuxContainerUser,
    LinuxPodSandboxStatus, Namespace, NamespaceMode, PodIp, PodSandbox, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus,
};
use wharf_planner::{self as planner, stop_signal};
use wharf_types::ContainerState;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::blocking;
use crate::pod::Pod;

fn pod_state(pod: &Pod) -> PodSandboxState {
    if pod.is_ready() { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// An item of `ListPodSandbox`.
#[must_use]
pub fn pod_item(pod: &Pod) -> PodSandbox {
    PodSandbox {
        id: pod.id.to_string(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at_ns,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
    }
}

/// What a pod and its containers were made of, the containers in their order.
#[must_use]
pub fn pod_request(pod: &Pod) -> PodRequest {
    let containers = pod.containers.read();
    let mut all: Vec<_> =
        containers.values().map(|container| (container.id.to_string(), container.record())).collect();
    all.sort_by_key(|(_, record)| record.created_at_ns);
    PodRequest {
        pod_id: pod.id.to_string(),
        config: Some(pod.config.clone()),
        runtime_handler: pod.handler.clone(),
        containers: all
            .into_iter()
            .map(|(container_id, record)| ContainerRequest {
                container_id,
                config: Some(record.config.clone()),
            })
            .collect(),
    }
}

/// The answer of `PodSandboxStatus`.
#[must_use]
pub fn pod_status(pod: &Pod) -> PodSandboxStatus {
    let ips = pod.read_state().ips.clone();
    let mut ips = ips.iter().map(ToString::to_string);
    let network = (!pod.is_host_network()).then(|| PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    });
    PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at_ns,
        network,
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(pod.namespaces()) }),
        }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
    }
}

/// An item of `ListContainers`.
#[must_use]
pub fn container_item(container: &Container) -> ContainerItem {
    let record = container.record();
    ContainerItem {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: record.config.metadata,
        image: record.config.image,
        image_ref: record.image_ref,
        state: state(&container.state()).into(),
        created_at: record.created_at_ns,
        labels: record.config.labels,
        annotations: record.config.annotations,
        image_id: record.image_id,
    }
}

fn state(state: &ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

/// The answer of `ContainerStatus`.
#[must_use]
pub fn container_status(container: &Container) -> ContainerStatus {
    let record = container.record();
    let now = container.state();
    let (started_at, finished_at, exit) = match &now {
        ContainerState::Created => (0, 0, None),
        ContainerState::Running { started_at_ns } => (*started_at_ns, 0, None),
        ContainerState::Exited { started_at_ns, finished_at_ns, exit, message } => {
            (*started_at_ns, *finished_at_ns, Some((*exit, message.clone())))
        }
    };
    let config = record.config;
    let user = LinuxContainerUser {
        uid: record.uid.into(),
        gid: record.gid.into(),
        supplemental_groups: record.groups.iter().copied().map(i64::from).collect(),
    };
    let image = config.image.unwrap_or_default();
    let shown =
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image };
    ContainerStatus {
        id: container.id.to_string(),
        metadata: config.metadata,
        state: state(&now).into(),
        created_at: record.created_at_ns,
        started_at,
        finished_at,
        exit_code: exit.as_ref().map_or(0, |(exit, _)| exit.code()),
        image: Some(ImageSpec { image: shown.clone(), ..image.clone() }),
        image_ref: record.image_ref,
        reason: exit.as_ref().map_or_else(String::new, |(exit, _)| exit.reason().to_owned()),
        message: exit.map_or_else(String::new, |(_, message)| message),
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: container.log_path.clone(),
        resources: config
            .linux
            .and_then(|linux| linux.resources)
            .map(|resources| v1::ContainerResources { linux: Some(resources), windows: None }),
        image_id: record.image_id,
        user: Some(ContainerUser { linux: Some(user) }),
        stop_signal: stop_signal::cri_signal(&record.stop_signal).into(),
    }
}

/// The statuses of a pod's containers, the newest first: a kubelet that gets them with their pod takes the first of a name
/// for the one that counts.
#[must_use]
pub fn container_statuses(pod: &Pod) -> Vec<ContainerStatus> {
    let mut statuses: Vec<_> = pod.containers().iter().map(|container| container_status(container)).collect();
    statuses.sort_by_key(|status| Reverse(status.created_at));
    statuses
}

/// What a verbose status adds: the values that tools read, in the places where they look. The runtime spec is read from
/// its file.
pub async fn container_info(engine: &Arc<Engine>, container: &Arc<Container>) -> BTreeMap<String, String> {
    let (reader, shown) = (Arc::clone(engine), Arc::clone(container));
    let spec = blocking(move || Ok(kept_spec(&reader, &shown))).await;
    let spec = spec.ok().flatten().unwrap_or_else(|| spec_of_older_build(engine, container));
    info(&serde_json::json!({
        "sandboxID": container.pod.as_str(),
        "pid": pid(container),
        "runtimeSpec": spec,
    }))
}

/// The spec that a container was made of; none of one that an older build made.
fn kept_spec(engine: &Engine, container: &Container) -> Option<serde_json::Value> {
    let text = std::fs::read(engine.parts.layout.container_spec(&container.pod, &container.id)).ok()?;
    let record = container.record();
    let identity = planner::Identity { uid: record.uid, gid: record.gid, groups: &record.groups };
    match planner::show(&text, &record.config, identity, engine.machine.kernel) {
        Ok(spec) => Some(spec),
        Err(error) => {
            tracing::warn!(container = container.id.short(), %error, "the kept runtime spec cannot be read");
            None
        }
    }
}

fn spec_of_older_build(engine: &Engine, container: &Container) -> serde_json::Value {
    let namespaces = engine.pod(container.pod.as_str()).map(|pod| namespaces(engine, &pod));
    serde_json::json!({
        "linux": { "cgroupsPath": container.record().cgroup, "namespaces": namespaces.unwrap_or_default() },
    })
}

/// What a verbose status adds: the values that tools read, in the places where they look. The process is one that is in
/// the pod's namespaces, as tools enter them by it; never the supervisor, which is in the host's.
#[must_use]
pub fn pod_info(engine: &Engine, pod: &Pod) -> BTreeMap<String, String> {
    let pid = pod.containers().iter().map(|container| pid(container)).find(|&pid| pid != 0);
    info(&serde_json::json!({
        "pid": pid.unwrap_or(0),
        "runtimeSpec": { "linux": { "namespaces": namespaces(engine, pod) } },
    }))
}

fn info(info: &serde_json::Value) -> BTreeMap<String, String> {
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// The first process as long as it is there; after that its number may be another's.
fn pid(container: &Container) -> i32 {
    if container.is_exited() { 0 } else { container.pid() }
}

/// The namespaces that a pod has of its own, with the paths that pin them as long as they do.
fn namespaces(engine: &Engine, pod: &Pod) -> Vec<serde_json::Value> {
    let options = pod.namespaces();
    let all = [
        ("network", "net", options.network()),
        ("ipc", "ipc", options.ipc()),
        ("uts", "uts", options.network()),
    ];
    let own = all.into_iter().filter(|(_, _, mode)| pod.is_ready() && *mode != NamespaceMode::Node);
    own.map(|(kind, pin, _)| {
        serde_json::json!({ "type": kind, "path": engine.parts.layout.namespace(&pod.id, pin) })
    })
    .collect()
}
