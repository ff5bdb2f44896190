//! Pods and containers as the CRI shows them, from memory alone but for the runtime spec of a verbose status.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use wharf_cri_api::admin::{ContainerRequest, PodRequest};
use wharf_cri_api::v1::{
    self, Container as ContainerItem, ContainerResources, ContainerStatus, ContainerUser, ImageSpec,
    LinuxContainerUser, LinuxPodSandboxStatus, Namespace, NamespaceMode, PodIp, PodSandbox,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};
use wharf_planner::{self as planner, stop_signal};
use wharf_records::ContainerRecord;
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
        id: pod.id().to_string(),
        metadata: pod.config().metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at_ns(),
        labels: pod.config().labels.clone(),
        annotations: pod.config().annotations.clone(),
        runtime_handler: pod.handler().to_owned(),
    }
}

/// What a pod and its containers were made of, the containers in their order.
#[must_use]
pub fn pod_request(pod: &Pod) -> PodRequest {
    let containers = pod.containers();
    let mut all: Vec<_> =
        containers.iter().map(|container| (container.id().to_string(), container.record())).collect();
    all.sort_by_key(|(_, record)| record.created_at_ns);
    PodRequest {
        pod_id: pod.id().to_string(),
        config: Some(pod.config().clone()),
        runtime_handler: pod.handler().to_owned(),
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
        id: pod.id().to_string(),
        metadata: pod.config().metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at_ns(),
        network,
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(pod.namespaces()) }),
        }),
        labels: pod.config().labels.clone(),
        annotations: pod.config().annotations.clone(),
        runtime_handler: pod.handler().to_owned(),
    }
}

/// An item of `ListContainers`.
#[must_use]
pub fn container_item(container: &Container) -> ContainerItem {
    let record = container.record();
    ContainerItem {
        id: container.id().to_string(),
        pod_sandbox_id: container.pod_id().to_string(),
        metadata: record.config.metadata,
        image: record.config.image,
        image_ref: record.image_ref,
        state: state(&container.shown()).into(),
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
    let (now, record) = (container.shown(), container.record());
    let (times, end) = (times(&now), End::of(&now));
    let user = user(&record);
    let config = record.config;
    let resources = config.linux.and_then(|linux| linux.resources);
    ContainerStatus {
        id: container.id().to_string(),
        metadata: config.metadata,
        state: state(&now).into(),
        created_at: record.created_at_ns,
        started_at: times.0,
        finished_at: times.1,
        exit_code: end.code,
        image: Some(shown(config.image.unwrap_or_default())),
        image_ref: record.image_ref,
        reason: end.reason.to_owned(),
        message: end.message,
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: container.log_path().to_owned(),
        resources: resources.map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        image_id: record.image_id,
        user: Some(ContainerUser { linux: Some(user) }),
        stop_signal: stop_signal::cri_signal(&record.stop_signal).into(),
    }
}

/// When it was started and when it ended; 0 for what has not happened.
fn times(state: &ContainerState) -> (i64, i64) {
    match state {
        ContainerState::Created => (0, 0),
        ContainerState::Running { started_at_ns } => (*started_at_ns, 0),
        ContainerState::Exited { started_at_ns, finished_at_ns, .. } => (*started_at_ns, *finished_at_ns),
    }
}

/// How a container ended; all empty if it has not.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    code: i32,
    reason: &'static str,
    message: String,
}

impl End {
    fn of(state: &ContainerState) -> Self {
        let ContainerState::Exited { exit, message, .. } = state else { return Self::default() };
        Self { code: exit.code(), reason: exit.reason(), message: message.clone() }
    }
}

/// The image by the name that the pod's author gave it, where a kubelet tells that.
fn shown(image: ImageSpec) -> ImageSpec {
    match image.user_specified_image.is_empty() {
        true => image,
        false => ImageSpec { image: image.user_specified_image.clone(), ..image },
    }
}

fn user(record: &ContainerRecord) -> LinuxContainerUser {
    LinuxContainerUser {
        uid: record.uid.into(),
        gid: record.gid.into(),
        supplemental_groups: record.groups.iter().copied().map(i64::from).collect(),
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
        "sandboxID": container.pod_id().as_str(),
        "pid": pid(container),
        "runtimeSpec": spec,
    }))
}

/// The spec that a container was made of; none of one that an older build made.
#[expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]
fn kept_spec(engine: &Engine, container: &Container) -> Option<serde_json::Value> {
    let text = std::fs::read(engine.parts.layout.container_spec(container.pod_id(), container.id())).ok()?;
    let record = container.record();
    let identity = planner::Identity { uid: record.uid, gid: record.gid, groups: &record.groups };
    match planner::show(&text, &record.config, identity, engine.machine.kernel) {
        Ok(spec) => Some(spec),
        Err(error) => {
            tracing::warn!(container = container.id().short(), %error, "the kept runtime spec cannot be read");
            None
        }
    }
}

fn spec_of_older_build(engine: &Engine, container: &Container) -> serde_json::Value {
    let namespaces = engine.pod(container.pod_id().as_str()).map(|pod| namespaces(engine, &pod));
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
        serde_json::json!({ "type": kind, "path": engine.parts.layout.namespace(pod.id(), pin) })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use wharf_cri_api::v1::{
        ContainerConfig, ContainerMetadata, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
        NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    };
    use wharf_state::ExitRecord;
    use wharf_types::{Exit, PodId};

    fn pod(network: NamespaceMode) -> Pod {
        let namespace_options =
            Some(NamespaceOption { network: network.into(), ..NamespaceOption::default() });
        let security_context =
            Some(LinuxSandboxSecurityContext { namespace_options, ..LinuxSandboxSecurityContext::default() });
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "web".to_owned(), ..PodSandboxMetadata::default() }),
            linux: Some(LinuxPodSandboxConfig { security_context, ..LinuxPodSandboxConfig::default() }),
            labels: [("app".to_owned(), "x".to_owned())].into(),
            log_directory: "/var/log/pods/web".to_owned(),
            ..PodSandboxConfig::default()
        };
        Pod::new(PodId::from_random([1; 32]), config, "kata".to_owned(), 7)
    }

    fn container(pod: &Pod, byte: u8, created_at_ns: i64) -> Arc<Container> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: "sha256:12".to_owned(), ..ImageSpec::default() }),
            log_path: "main/0.log".to_owned(),
            ..ContainerConfig::default()
        };
        let record = ContainerRecord {
            config,
            created_at_ns,
            image_id: "sha256:12".to_owned(),
            image_ref: "registry/x@sha256:34".to_owned(),
            uid: 1000,
            groups: vec![1000, 7],
            ..ContainerRecord::default()
        };
        let container = Arc::new(Container::bare(pod, byte, record));
        pod.insert(Arc::clone(&container));
        container
    }

    #[test]
    fn a_pod_is_ready_from_its_last_step_to_its_first_of_the_end() {
        let pod = pod(NamespaceMode::Pod);
        assert_eq!(pod_item(&pod).state(), PodSandboxState::SandboxNotready);
        pod.write_state().ready = true;
        let item = pod_item(&pod);
        assert_eq!(item.state(), PodSandboxState::SandboxReady);
        assert_eq!((item.created_at, item.runtime_handler.as_str()), (7, "kata"));
        assert_eq!(item.metadata.unwrap().name, "web");
        pod.link().set(wharf_supervision::Link::Gone);
        assert_eq!(pod_status(&pod).state(), PodSandboxState::SandboxNotready);
    }

    #[test]
    fn the_first_address_is_the_pods_and_on_the_hosts_network_there_is_none() {
        let addresses = ["10.88.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        let own = pod(NamespaceMode::Pod);
        own.write_state().ips = addresses.to_vec();
        let network = pod_status(&own).network.unwrap();
        assert_eq!(network.ip, "10.88.0.2");
        assert_eq!(network.additional_ips, [PodIp { ip: "fd00::2".to_owned() }]);
        let hosts = pod(NamespaceMode::Node);
        assert_eq!(pod_status(&hosts).network, None);
    }

    #[test]
    fn a_status_follows_a_container_through_its_life() {
        let pod = pod(NamespaceMode::Pod);
        let container = container(&pod, 2, 30);
        let now = || {
            let status = container_status(&container);
            (status.state(), status.started_at, status.finished_at, status.exit_code, status.reason)
        };
        assert_eq!(now(), (v1::ContainerState::ContainerCreated, 0, 0, 0, String::new()));
        container.note_start(40);
        assert_eq!(now(), (v1::ContainerState::ContainerRunning, 40, 0, 0, String::new()));
        let exit = Exit::Signal { number: 9, oom: true };
        container.note_exit(ExitRecord { exit, started_at_ns: 0, finished_at_ns: 50 });
        assert_eq!(now(), (v1::ContainerState::ContainerExited, 40, 50, 137, "OOMKilled".to_owned()));
    }

    #[test]
    fn a_status_has_what_was_resolved_of_the_request() {
        let pod = pod(NamespaceMode::Pod);
        let status = container_status(&container(&pod, 2, 30));
        assert_eq!(status.log_path, "/var/log/pods/web/main/0.log");
        assert_eq!(
            (status.image_id.as_str(), status.image_ref.as_str()),
            ("sha256:12", "registry/x@sha256:34")
        );
        let user = status.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.supplemental_groups), (1000, vec![1000, 7]));
    }

    #[test]
    fn an_image_is_shown_by_the_name_that_its_author_gave_it() {
        let spec = |user: &str| ImageSpec {
            image: "sha256:12".to_owned(),
            user_specified_image: user.to_owned(),
            ..ImageSpec::default()
        };
        assert_eq!(shown(spec("nginx:1")).image, "nginx:1");
        assert_eq!(shown(spec("")).image, "sha256:12");
    }

    #[test]
    fn the_newest_container_comes_first_in_statuses_and_last_in_requests() {
        let pod = pod(NamespaceMode::Pod);
        let (old, new) = (container(&pod, 9, 1), container(&pod, 3, 2));
        let statuses: Vec<_> = container_statuses(&pod).into_iter().map(|status| status.id).collect();
        assert_eq!(statuses, [new.id().to_string(), old.id().to_string()]);
        let requests: Vec<_> =
            pod_request(&pod).containers.into_iter().map(|request| request.container_id).collect();
        assert_eq!(requests, [old.id().to_string(), new.id().to_string()]);
    }

    #[test]
    fn the_number_of_a_process_that_is_gone_is_not_told() {
        let pod = pod(NamespaceMode::Pod);
        let container = container(&pod, 2, 30);
        container.set_pid(4711);
        assert_eq!(pid(&container), 4711);
        container.note_exit(ExitRecord { exit: Exit::Code(0), started_at_ns: 0, finished_at_ns: 50 });
        assert_eq!(pid(&container), 0, "it may be another's by now");
    }
}
