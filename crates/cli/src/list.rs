//! `wharf ps` and `wharf pods`.

use serde::Serialize;
use wharf_cri_api::v1::{Container, ContainerState, PodSandbox, PodSandboxStatusRequest};

use crate::args::Ps;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{container_name, is_ready, pod_name};
use crate::output::{Output, Row};
use crate::{time, units};

/// A line of `wharf ps`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerRow {
    id: String,
    name: String,
    image: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    created_at: String,
    #[serde(skip)]
    created_at_ns: i64,
    pod: String,
    pod_id: String,
}

impl Row for ContainerRow {
    const HEADINGS: &'static [&'static str] = &["ID", "NAME", "IMAGE", "STATE", "AGE", "POD"];

    fn cells(&self) -> Vec<String> {
        let state = match self.exit_code {
            Some(code) => format!("{} ({code})", self.state),
            None => self.state.to_owned(),
        };
        vec![
            units::short(&self.id).to_owned(),
            self.name.clone(),
            self.image.clone(),
            state,
            units::age(self.created_at_ns, time::now_ns()),
            self.pod.clone(),
        ]
    }
}

/// The word for a container's state.
pub(crate) fn state_word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}

pub(crate) async fn containers(daemon: &mut Daemon, output: Output, ps: Ps) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let mut rows = Vec::new();
    let shown = |container: &&Container| ps.all || container.state() == ContainerState::ContainerRunning;
    for container in listing.containers.iter().filter(shown) {
        let pod = listing.pod_of(container).map_or("", pod_name);
        // The exit code is in the status alone; a container may have been removed meanwhile.
        let exited = container.state() == ContainerState::ContainerExited;
        let status = if exited { daemon.container_status(&container.id).await.ok() } else { None };
        rows.push(ContainerRow {
            id: container.id.clone(),
            name: container_name(container).to_owned(),
            image: image_name(container),
            state: state_word(container.state()),
            exit_code: status.as_ref().map(|status| status.exit_code),
            reason: status.map(|status| status.reason),
            created_at: time::text(container.created_at),
            created_at_ns: container.created_at,
            pod: pod.to_owned(),
            pod_id: container.pod_sandbox_id.clone(),
        });
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.created_at_ns));
    output.rows(&rows)
}

/// The image as whoever made the container wrote it; an id only if nothing else is known.
fn image_name(container: &Container) -> String {
    let image = container.image.clone().unwrap_or_default();
    let name = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    if name.starts_with("sha256:") { units::short(&name).to_owned() } else { name }
}

/// A line of `wharf pods`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodRow {
    id: String,
    name: String,
    namespace: String,
    state: &'static str,
    ips: Vec<String>,
    created_at: String,
    #[serde(skip)]
    created_at_ns: i64,
}

impl Row for PodRow {
    const HEADINGS: &'static [&'static str] = &["ID", "NAME", "NAMESPACE", "STATE", "IP", "AGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            units::short(&self.id).to_owned(),
            self.name.clone(),
            self.namespace.clone(),
            self.state.to_owned(),
            self.ips.first().cloned().unwrap_or_else(|| "-".to_owned()),
            units::age(self.created_at_ns, time::now_ns()),
        ]
    }
}

pub(crate) async fn pods(daemon: &mut Daemon, output: Output) -> Result<(), Error> {
    let mut rows = Vec::new();
    for pod in daemon.listing().await?.pods {
        rows.push(PodRow {
            ips: addresses(daemon, &pod).await,
            name: pod_name(&pod).to_owned(),
            namespace: pod.metadata.as_ref().map(|metadata| metadata.namespace.clone()).unwrap_or_default(),
            state: if is_ready(&pod) { "ready" } else { "stopped" },
            created_at: time::text(pod.created_at),
            created_at_ns: pod.created_at,
            id: pod.id,
        });
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.created_at_ns));
    output.rows(&rows)
}

/// A pod's addresses; none if it is on this machine's network, or gone meanwhile.
async fn addresses(daemon: &mut Daemon, pod: &PodSandbox) -> Vec<String> {
    if !is_ready(pod) {
        return Vec::new();
    }
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let answer = daemon.runtime.pod_sandbox_status(request).await;
    let network = answer.ok().and_then(|answer| answer.into_inner().status).and_then(|status| status.network);
    let more = |network: wharf_cri_api::v1::PodSandboxNetworkStatus| {
        let others = network.additional_ips.into_iter().map(|address| address.ip);
        std::iter::once(network.ip).chain(others).filter(|ip| !ip.is_empty()).collect()
    };
    network.map(more).unwrap_or_default()
}
