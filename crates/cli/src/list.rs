//! `wharf ps` and `wharf pods`.

use serde::Serialize;
use wharf_cri_api::admin::PodRequest;
use wharf_cri_api::v1::{Container, ContainerState, ContainerStatus, PodSandbox, PortMapping};

use crate::args::Ps;
use crate::daemon::{Daemon, still_there};
use crate::error::Error;
use crate::find::{Listing, container_name, is_ready, pod_name};
use crate::output::{Output, Row};
use crate::{time, units};

/// A row of `wharf ps`.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    /// When it was started, or created if it was not started.
    #[serde(skip)]
    since_ns: i64,
    /// The command in the request; empty if it is the image's.
    command: Vec<String>,
    ports: Vec<String>,
    namespace: String,
    pod: String,
    pod_id: String,
}

impl Row for ContainerRow {
    const HEADINGS: &'static [&'static str] =
        &["ID", "NAME", "IMAGE", "COMMAND", "STATE", "AGE", "PORTS", "POD", "NAMESPACE"];

    fn cells(&self) -> Vec<String> {
        let state = match self.exit_code {
            Some(code) => format!("{} ({code})", self.state),
            None => self.state.to_owned(),
        };
        vec![
            units::short(&self.id).to_owned(),
            self.name.clone(),
            self.image.clone(),
            or_dash(shortened(&self.command.join(" "))),
            state,
            units::age(self.since_ns, time::now_ns()),
            or_dash(first_of(&self.ports)),
            self.pod.clone(),
            self.namespace.clone(),
        ]
    }
}

/// The width of a command in a table, in characters.
const COMMAND_WIDTH: usize = 24;

/// The beginning of a command, on one line.
fn shortened(command: &str) -> String {
    let line = command.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= COMMAND_WIDTH {
        return line;
    }
    line.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect()
}

/// The first ports of a container, and how many there are besides.
fn first_of(ports: &[String]) -> String {
    const SHOWN: usize = 4;
    match ports.split_at_checked(SHOWN) {
        Some((first, others)) if !others.is_empty() => {
            format!("{} and {} more", first.join(", "), others.len())
        }
        _ => ports.join(", "),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A published port as docker shows it: `0.0.0.0:8080->80/tcp`, without the address if it is any address.
pub(crate) fn port(port: &PortMapping) -> String {
    let protocol = port.protocol().as_str_name().to_lowercase();
    let address = if port.host_ip.is_empty() { String::new() } else { format!("{}:", port.host_ip) };
    format!("{address}{}->{}/{protocol}", port.host_port, port.container_port)
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
    let requests = daemon.requests("").await?;
    let mut rows = Vec::new();
    let shown = |container: &&Container| ps.all || container.state() == ContainerState::ContainerRunning;
    for container in listing.containers.iter().filter(shown) {
        // Only the status says when it was started and how it ended.
        let status = still_there(daemon.container_status(&container.id).await)?;
        let request = requests.iter().find(|pod| pod.pod_id == container.pod_sandbox_id);
        rows.push(row(&listing, container, status, request));
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.since_ns));
    output.rows(&rows)
}

fn row(
    listing: &Listing,
    container: &Container,
    status: Option<ContainerStatus>,
    request: Option<&PodRequest>,
) -> ContainerRow {
    let pod = listing.pod_of(container);
    let of_pod = request.and_then(|request| request.config.as_ref());
    let mut containers = request.into_iter().flat_map(|request| &request.containers);
    let config = containers.find(|one| one.container_id == container.id).and_then(|one| one.config.as_ref());
    let ended = status.as_ref().filter(|_| container.state() == ContainerState::ContainerExited);
    let started_at_ns = status.as_ref().map_or(0, |status| status.started_at);
    let published = of_pod.into_iter().flat_map(|config| &config.port_mappings);
    ContainerRow {
        id: container.id.clone(),
        name: container_name(container).to_owned(),
        image: image_name(container),
        state: state_word(container.state()),
        exit_code: ended.map(|status| status.exit_code),
        reason: ended.map(|status| status.reason.clone()),
        created_at: time::text(container.created_at),
        started_at: (started_at_ns > 0).then(|| time::text(started_at_ns)),
        since_ns: if started_at_ns > 0 { started_at_ns } else { container.created_at },
        command: config.map(|config| [&config.command[..], &config.args[..]].concat()).unwrap_or_default(),
        ports: published.filter(|one| one.host_port > 0).map(port).collect(),
        namespace: pod.map(namespace).unwrap_or_default(),
        pod: pod.map_or("", pod_name).to_owned(),
        pod_id: container.pod_sandbox_id.clone(),
    }
}

fn namespace(pod: &PodSandbox) -> String {
    pod.metadata.as_ref().map(|metadata| metadata.namespace.clone()).unwrap_or_default()
}

/// The image as the container's request names it; an id only if nothing else is known.
fn image_name(container: &Container) -> String {
    let image = container.image.clone().unwrap_or_default();
    let name = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    if name.starts_with("sha256:") { units::short(&name).to_owned() } else { name }
}

/// A row of `wharf pods`.
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
        let ips = match is_ready(&pod) {
            true => still_there(daemon.addresses(&pod.id).await)?.unwrap_or_default(),
            false => Vec::new(),
        };
        rows.push(PodRow {
            ips,
            name: pod_name(&pod).to_owned(),
            namespace: namespace(&pod),
            state: if is_ready(&pod) { "ready" } else { "stopped" },
            created_at: time::text(pod.created_at),
            created_at_ns: pod.created_at,
            id: pod.id,
        });
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.created_at_ns));
    output.rows(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::Protocol;

    #[test]
    fn a_command_is_shown_in_one_short_line() {
        assert_eq!(shortened("sh -c \n sleep"), "sh -c sleep");
        assert_eq!(shortened(&"x".repeat(50)).chars().count(), COMMAND_WIDTH);
        assert_eq!(or_dash(shortened("")), "-");
    }

    #[test]
    fn of_many_ports_the_first_are_shown() {
        let ports: Vec<String> = (1..=4201).map(|number| number.to_string()).collect();
        assert_eq!(first_of(&ports), "1, 2, 3, 4 and 4197 more");
        assert_eq!((&*first_of(&ports[..4]), &*first_of(&[])), ("1, 2, 3, 4", ""));
    }

    #[test]
    fn published_ports_are_written_as_docker_does() {
        let mapping = |host_ip: &str, protocol: Protocol| PortMapping {
            protocol: protocol.into(),
            container_port: 80,
            host_port: 8080,
            host_ip: host_ip.into(),
        };
        assert_eq!(port(&mapping("", Protocol::Tcp)), "8080->80/tcp");
        assert_eq!(port(&mapping("127.0.0.1", Protocol::Udp)), "127.0.0.1:8080->80/udp");
    }
}
