//! `wharf explain`: how long each stage of making a pod and its containers took.

use serde::{Deserialize, Serialize};
use wharf_cri_api::v1::{Container, ContainerStatusRequest, PodSandbox, PodSandboxStatusRequest};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{Found, container_name, pod_name};
use crate::output::{Output, Row};

/// A stage as a verbose status has it.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stage {
    stage: String,
    began_us: u64,
    took_us: u64,
}

/// A stage of the pod, or of one of its containers.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct StageRow {
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    stage: String,
    /// After the first stage of the same pod or container.
    began_us: u64,
    took_us: u64,
}

impl Row for StageRow {
    const HEADINGS: &'static [&'static str] = &["POD", "CONTAINER", "STAGE", "BEGAN", "TOOK"];

    fn cells(&self) -> Vec<String> {
        let container = self.container.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.pod.clone(),
            container,
            self.stage.clone(),
            milliseconds(self.began_us),
            milliseconds(self.took_us),
        ]
    }
}

pub(crate) async fn explain(daemon: &mut Daemon, output: Output, name: &str) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let mut rows = Vec::new();
    match listing.find(name)? {
        Found::Pod(pod) => {
            rows.extend(of_pod(daemon, pod).await?);
            let mut containers: Vec<&Container> = listing.containers_of(pod).collect();
            containers.sort_by_key(|container| container.created_at);
            for container in containers {
                rows.extend(of_container(daemon, pod_name(pod), container).await?);
            }
        }
        Found::Container(container) => {
            let pod = listing.pod_of(container).map_or("", pod_name);
            rows.extend(of_container(daemon, pod, container).await?);
        }
    }
    if rows.is_empty() {
        return Err(Error::Forgotten { name: name.to_owned() });
    }
    output.rows(&rows)
}

async fn of_pod(daemon: &mut Daemon, pod: &PodSandbox) -> Result<Vec<StageRow>, Error> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = daemon.runtime.pod_sandbox_status(request).await;
    let info = answer.map_err(Error::call("asking for the pod"))?.into_inner().info;
    Ok(rows(pod_name(pod), None, info.get("stages")))
}

async fn of_container(daemon: &mut Daemon, pod: &str, container: &Container) -> Result<Vec<StageRow>, Error> {
    let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let answer = daemon.runtime.container_status(request).await;
    let info = answer.map_err(Error::call("asking for the container"))?.into_inner().info;
    Ok(rows(pod, Some(container_name(container)), info.get("stages")))
}

/// The stages that an answer has; none from a wharfd of a release that notes none.
fn rows(pod: &str, container: Option<&str>, stages: Option<&String>) -> Vec<StageRow> {
    let stages: Vec<Stage> = stages.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let row = |Stage { stage, began_us, took_us }| StageRow {
        pod: pod.to_owned(),
        container: container.map(str::to_owned),
        stage,
        began_us,
        took_us,
    };
    stages.into_iter().map(row).collect()
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_rows_in_milliseconds() {
        let text = r#"[{"stage":"namespaces","beganUs":12,"tookUs":1034,"more":1}]"#.to_owned();
        let [row]: [StageRow; 1] = rows("web", Some("main"), Some(&text)).try_into().unwrap();
        assert_eq!(row.cells(), ["web", "main", "namespaces", "0.012 ms", "1.034 ms"]);
    }

    #[test]
    fn what_is_not_reported_is_no_row() {
        assert_eq!(rows("web", None, None), []);
        assert_eq!(rows("web", None, Some(&"no JSON".to_owned())), []);
    }
}
