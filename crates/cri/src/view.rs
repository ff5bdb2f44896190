//! Pods, containers and events as messages of the CRI, made from facts alone.
//!
//! Each function takes facts of one moment and asks nobody: two messages made from the same facts agree. What a field
//! means is the CRI's to say.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use wharf_cri_api::admin::{ContainerRequest, PodRequest};
use wharf_cri_api::v1::{
    self, Container as ContainerItem, ContainerEventResponse, ContainerResources, ContainerStatus,
    ContainerUser, ImageSpec, LinuxContainerResources, LinuxContainerUser, LinuxPodSandboxStatus, Mount,
    Namespace, PodIp, PodSandbox, PodSandboxConfig, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus,
};
use wharf_pods::{Container, ContainerFacts, Event, Pod, PodFacts};
use wharf_types::{ContainerState, Timing};

fn pod_state(pod: &PodFacts) -> PodSandboxState {
    if pod.is_ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// An item of `ListPodSandbox`.
pub(crate) fn pod_item(pod: &PodFacts) -> PodSandbox {
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

/// The requests with which a pod and its containers were made, the containers in their order.
pub(crate) fn pod_request(pod: &PodFacts, mut containers: Vec<ContainerFacts>) -> PodRequest {
    containers.sort_by_key(|container| container.record.created_at_ns);
    let request = |container: ContainerFacts| ContainerRequest {
        container_id: container.id.to_string(),
        config: Some(container.record.config),
    };
    PodRequest {
        pod_id: pod.id.to_string(),
        config: Some((*pod.config).clone()),
        runtime_handler: pod.handler.clone(),
        containers: containers.into_iter().map(request).collect(),
    }
}

/// The response to `PodSandboxStatus`.
pub(crate) fn pod_status(pod: &PodFacts) -> PodSandboxStatus {
    let mut ips = pod.ips.iter().map(ToString::to_string);
    // Without an address on the host's network: the kubelet takes a missing network for an error.
    let network = PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    };
    let namespaces = Namespace { options: Some(pod.namespaces()) };
    PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at_ns,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
    }
}

/// An item of `ListContainers`: without a copy of the container's whole request, which may be long.
pub(crate) fn container_item(container: &Container) -> ContainerItem {
    let state = state(&container.shown());
    container.with_record(|record| ContainerItem {
        id: container.id().to_string(),
        pod_sandbox_id: container.pod_id().to_string(),
        metadata: record.config.metadata.clone(),
        // Images belong to all handlers; by this field the kubelet would look for that of one.
        image: record.config.image.clone().map(|image| ImageSpec { runtime_handler: String::new(), ..image }),
        image_ref: record.image_ref.clone(),
        state: state.into(),
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    })
}

fn state(state: &ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

/// The response to `ContainerStatus`.
pub(crate) fn container_status(container: ContainerFacts) -> ContainerStatus {
    let stop_signal = container.stop_signal().into();
    let ContainerFacts { id, state: now, record, log_path, .. } = container;
    let (times, end) = (times(&now), End::of(&now));
    let user = LinuxContainerUser {
        uid: record.uid.into(),
        gid: record.gid.into(),
        supplemental_groups: record.groups.into_iter().map(i64::from).collect(),
    };
    let config = record.config;
    let resources = config.linux.and_then(|linux| linux.resources);
    ContainerStatus {
        id: id.to_string(),
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
        mounts: mounts(config.mounts, record.mounted_images),
        log_path,
        resources: resources.map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        image_id: record.image_id,
        user: Some(ContainerUser { linux: Some(user) }),
        stop_signal,
    }
}

/// The mounts, each image by its id: by that the kubelet knows which images are in use. It is also what a pull answers.
fn mounts(mut mounts: Vec<Mount>, images: Vec<String>) -> Vec<Mount> {
    for (mount, id) in mounts.iter_mut().zip(images) {
        if let Some(image) = &mut mount.image {
            image.image_ref.clone_from(&id);
            image.image = id;
        }
    }
    mounts
}

/// When it was started and when it exited; 0 for what has not happened.
fn times(state: &ContainerState) -> (i64, i64) {
    match state {
        ContainerState::Created => (0, 0),
        ContainerState::Running { started_at_ns } => (*started_at_ns, 0),
        ContainerState::Exited { started_at_ns, finished_at_ns, .. } => (*started_at_ns, *finished_at_ns),
    }
}

/// How a container exited; all fields are empty if it has not.
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

/// The image under the name that the pod's author used, if the kubelet sent it.
fn shown(image: ImageSpec) -> ImageSpec {
    match image.user_specified_image.is_empty() {
        true => image,
        false => ImageSpec { image: image.user_specified_image.clone(), ..image },
    }
}

/// The statuses of a pod's containers, newest first: a kubelet that gets them with their pod uses the first of each
/// name.
pub(crate) fn container_statuses(
    containers: impl IntoIterator<Item = ContainerFacts>,
) -> Vec<ContainerStatus> {
    let mut statuses: Vec<_> = containers.into_iter().map(container_status).collect();
    statuses.sort_by_key(|status| Reverse(status.created_at));
    statuses
}

/// A message of `GetContainerEvents`.
pub(crate) fn event(event: Event) -> ContainerEventResponse {
    ContainerEventResponse {
        container_id: event.id,
        container_event_type: event.kind.into(),
        created_at: event.created_at_ns,
        pod_sandbox_status: Some(pod_status(&event.pod)),
        containers_statuses: container_statuses(event.containers),
    }
}

/// The additions of a verbose container status: the values that tools read, where they look for them.
pub(crate) fn container_info(container: &Container, spec: Value) -> BTreeMap<String, String> {
    let id = container.pod_id().as_str();
    let mut info = info(&json!({ "sandboxID": id, "pid": container.pid(), "runtimeSpec": spec }));
    info.insert("stages".to_owned(), stages(container.stages()));
    info.insert("stop".to_owned(), stop(container.stopping().asked()));
    info
}

/// The additions of a verbose pod status. The pid is that of a process in the pod's namespaces, because tools enter the
/// namespaces through it. It is never the supervisor's, which is in the host's.
pub(crate) fn pod_info(pod: &Pod, namespaces: Vec<Value>) -> BTreeMap<String, String> {
    let pids = pod.containers().into_iter().map(|container| container.pid());
    let pid = pids.into_iter().find(|&pid| pid != 0).unwrap_or(0);
    let mut all = json!({ "pid": pid, "runtimeSpec": { "linux": { "namespaces": namespaces } } });
    all.as_object_mut().into_iter().for_each(|all| all.extend(pod_resources(&pod.config())));
    let mut info = info(&all);
    info.insert("stages".to_owned(), stages(pod.stages()));
    info
}

/// What a pod's request, or the last update, says of the pod's own cgroup; under the names that containerd gives it.
fn pod_resources(config: &PodSandboxConfig) -> Map<String, Value> {
    let linux = config.linux.as_ref();
    let told = |name: &str, resources: &Option<LinuxContainerResources>| {
        resources.as_ref().map(|resources| (name.to_owned(), json!({ "linux": resources_json(resources) })))
    };
    let told = linux.map(|linux| [told("overhead", &linux.overhead), told("resources", &linux.resources)]);
    told.into_iter().flatten().flatten().collect()
}

fn resources_json(resources: &LinuxContainerResources) -> Value {
    let hugepages = resources.hugepage_limits.iter();
    let hugepages = hugepages.map(|limit| json!({ "page_size": limit.page_size, "limit": limit.limit }));
    json!({
        "cpu_period": resources.cpu_period,
        "cpu_quota": resources.cpu_quota,
        "cpu_shares": resources.cpu_shares,
        "memory_limit_in_bytes": resources.memory_limit_in_bytes,
        "oom_score_adj": resources.oom_score_adj,
        "cpuset_cpus": resources.cpuset_cpus,
        "cpuset_mems": resources.cpuset_mems,
        "hugepage_limits": hugepages.collect::<Vec<_>>(),
        "unified": resources.unified,
        "memory_swap_limit_in_bytes": resources.memory_swap_limit_in_bytes,
    })
}

/// How long each stage of a making took, in microseconds, as `wharf explain` shows it.
fn stages(stages: Vec<Timing>) -> String {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let of = |stage: Timing| json!({ "stage": stage.name, "beganUs": micros(stage.began), "tookUs": micros(stage.took) });
    Value::Array(stages.into_iter().map(of).collect()).to_string()
}

/// When a container was first asked to stop, since the epoch, and how long it may take at last; `null` if it was not.
fn stop(asked: Option<(SystemTime, Duration)>) -> String {
    let number = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    let of = |(at, grace): (SystemTime, Duration)| {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({ "askedAtNs": number(at.as_nanos()), "graceMs": number(grace.as_millis()) })
    };
    asked.map_or(Value::Null, of).to_string()
}

fn info(info: &Value) -> BTreeMap<String, String> {
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{
        ContainerConfig, ContainerEventType, ContainerMetadata, LinuxPodSandboxConfig,
        LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    };
    use wharf_records::ContainerRecord;
    use wharf_types::signal::SIGKILL;
    use wharf_types::{ContainerId, Exit, PodId};

    fn pod(network: NamespaceMode) -> PodFacts {
        let namespace_options =
            Some(NamespaceOption { network: network.into(), ..NamespaceOption::default() });
        let security_context =
            Some(LinuxSandboxSecurityContext { namespace_options, ..LinuxSandboxSecurityContext::default() });
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "web".to_owned(), ..PodSandboxMetadata::default() }),
            linux: Some(LinuxPodSandboxConfig { security_context, ..LinuxPodSandboxConfig::default() }),
            labels: [("app".to_owned(), "x".to_owned())].into(),
            ..PodSandboxConfig::default()
        };
        PodFacts {
            id: PodId::from_random([1; 32]),
            config: config.into(),
            handler: "kata".to_owned(),
            created_at_ns: 7,
            is_ready: true,
            ips: ["10.88.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).to_vec(),
            selinux_level: None,
        }
    }

    fn container(byte: u8, created_at_ns: i64) -> ContainerFacts {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: "sha256:12".to_owned(), ..ImageSpec::default() }),
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
        ContainerFacts {
            id: ContainerId::from_random([byte; 32]),
            pod: PodId::from_random([1; 32]),
            state: ContainerState::Created,
            record,
            log_path: "/var/log/pods/web/main/0.log".to_owned(),
        }
    }

    #[test]
    fn what_is_said_of_a_pods_own_cgroup_is_shown() {
        let resources = Some(LinuxContainerResources { cpu_shares: 7, ..Default::default() });
        let linux = Some(LinuxPodSandboxConfig { resources, ..LinuxPodSandboxConfig::default() });
        let shown = pod_resources(&PodSandboxConfig { linux, ..PodSandboxConfig::default() });
        assert_eq!(shown.keys().collect::<Vec<_>>(), ["resources"]);
        assert_eq!(shown["resources"]["linux"]["cpu_shares"], 7);
        assert!(pod_resources(&PodSandboxConfig::default()).is_empty());
    }

    #[test]
    fn a_pod_is_shown_as_it_stands() {
        for (is_ready, state) in
            [(true, PodSandboxState::SandboxReady), (false, PodSandboxState::SandboxNotready)]
        {
            let pod = PodFacts { is_ready, ..pod(NamespaceMode::Pod) };
            let item = pod_item(&pod);
            assert_eq!((item.state(), pod_status(&pod).state()), (state, state));
            assert_eq!((item.created_at, item.runtime_handler.as_str()), (7, "kata"));
            assert_eq!((item.metadata.unwrap().name.as_str(), item.labels["app"].as_str()), ("web", "x"));
        }
    }

    #[test]
    fn the_first_address_is_the_pods_and_on_the_hosts_network_there_is_none() {
        let network = pod_status(&pod(NamespaceMode::Pod)).network.unwrap();
        assert_eq!(network.ip, "10.88.0.2");
        assert_eq!(network.additional_ips, [PodIp { ip: "fd00::2".to_owned() }]);
        let hosts = pod_status(&PodFacts { ips: Vec::new(), ..pod(NamespaceMode::Node) }).network;
        assert_eq!(hosts, Some(PodSandboxNetworkStatus::default()));
    }

    #[test]
    fn a_status_follows_a_container_through_its_life() {
        let exit = Exit::Signal { number: SIGKILL, oom: true };
        let (started_at_ns, finished_at_ns, message) = (40, 50, String::new());
        let exited = ContainerState::Exited { started_at_ns, finished_at_ns, exit, message };
        for (state, expected) in [
            (ContainerState::Created, (v1::ContainerState::ContainerCreated, 0, 0, 0, "")),
            (ContainerState::Running { started_at_ns }, (v1::ContainerState::ContainerRunning, 40, 0, 0, "")),
            (exited, (v1::ContainerState::ContainerExited, 40, 50, 137, "OOMKilled")),
        ] {
            let status = container_status(ContainerFacts { state, ..container(2, 30) });
            let shown = (status.state(), status.started_at, status.finished_at, status.exit_code);
            assert_eq!((shown.0, shown.1, shown.2, shown.3, &*status.reason), expected);
        }
    }

    #[test]
    fn a_status_has_what_was_resolved_of_the_request() {
        let status = container_status(container(2, 30));
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
    fn a_mounted_image_is_shown_by_its_id() {
        let image = |name: &str| ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
        let of_host = Mount { host_path: "/x".to_owned(), ..Mount::default() };
        let asked = vec![of_host.clone(), Mount { image: Some(image("app:1")), ..Mount::default() }];
        let shown = mounts(asked.clone(), vec![String::new(), "sha256:56".to_owned()]);
        let image = ImageSpec { image_ref: "sha256:56".to_owned(), ..image("sha256:56") };
        assert_eq!(shown, [of_host, Mount { image: Some(image), ..Mount::default() }]);
        assert_eq!(mounts(asked.clone(), Vec::new()), asked, "a record of an earlier release");
    }

    #[test]
    fn the_newest_container_comes_first_in_statuses_and_last_in_requests() {
        let both = || vec![container(9, 1), container(3, 2)];
        let (old, new) = (both()[0].id.to_string(), both()[1].id.to_string());
        let statuses: Vec<_> = container_statuses(both()).into_iter().map(|status| status.id).collect();
        assert_eq!(statuses, [new.clone(), old.clone()]);
        let requests = pod_request(&pod(NamespaceMode::Pod), both()).containers;
        let requests: Vec<_> = requests.into_iter().map(|request| request.container_id).collect();
        assert_eq!(requests, [old, new]);
    }

    #[test]
    fn a_stop_is_told_with_its_time_and_its_grace() {
        assert_eq!(stop(None), "null");
        let asked = (UNIX_EPOCH + Duration::from_nanos(5), Duration::from_secs(10));
        assert_eq!(stop(Some(asked)), r#"{"askedAtNs":5,"graceMs":10000}"#);
    }

    #[test]
    fn an_event_has_the_state_at_its_time() {
        let told = event(Event {
            kind: ContainerEventType::ContainerStoppedEvent,
            id: "x".to_owned(),
            created_at_ns: 9,
            pod: pod(NamespaceMode::Pod),
            containers: vec![container(2, 30)],
        });
        assert_eq!(
            (told.container_event_type(), told.created_at),
            (ContainerEventType::ContainerStoppedEvent, 9)
        );
        assert_eq!(told.pod_sandbox_status.unwrap().state(), PodSandboxState::SandboxReady);
        assert_eq!(told.containers_statuses.len(), 1);
    }
}
