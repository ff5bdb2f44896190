//! `wharf explain`: what has become of a pod and its containers, why, and how long each stage of making them took.

mod kernel;
mod verdict;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use wharf_cri_api::v1::{
    Container, ContainerStatus, ContainerStatusRequest, PodSandbox, PodSandboxStatusRequest,
};

use crate::daemon::{Daemon, still_there};
use crate::error::Error;
use crate::find::{Found, is_ready, pod_name};
use crate::logs;
use crate::output::{Format, Output, Row, json, table, text};
use crate::remove::is_own;
use crate::touch;

use kernel::Kernel;
use verdict::{Asked, Facts, Maker, Stop, Verdict};

/// How many lines of a log are shown.
const LOG_LINES: usize = 10;

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

/// What is printed.
#[derive(Debug, Default, Serialize)]
struct Explanation {
    verdicts: Vec<Verdict>,
    stages: Vec<StageRow>,
}

/// A container as wharfd shows it.
#[derive(Debug)]
struct Shown {
    name: String,
    status: ContainerStatus,
    asked: Asked,
    stages: Vec<Stage>,
}

impl Shown {
    fn facts<'a>(&'a self, maker: Maker, kernel: &'a Kernel) -> Facts<'a> {
        let Self { name, status, asked, stages } = self;
        Facts { name, maker, status, asked: *asked, last_stage: stages.last(), kernel }
    }
}

pub(crate) async fn explain(daemon: &mut Daemon, output: Output, name: &str) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let (pod, mut containers): (Option<&PodSandbox>, Vec<&Container>) = match listing.find(name) {
        Ok(Found::Pod(pod)) => (Some(pod), listing.containers_of(pod).collect()),
        Ok(Found::Container(container)) => (None, vec![container]),
        Err(Error::Unknown { name, .. }) => return Err(Error::Gone { name }),
        Err(error) => return Err(error),
    };
    containers.sort_by_key(|container| container.created_at);
    let owner = pod.or_else(|| listing.pod_of(containers.first()?));
    let is_own = match owner {
        Some(pod) => is_own(daemon, pod).await?,
        None => false,
    };
    let maker = if is_own { Maker::Person } else { Maker::Client };
    let owner = owner.map_or("", pod_name);
    let mut shown = Vec::new();
    for container in containers {
        let gone = || Error::Gone { name: name.to_owned() };
        let one = of_container(daemon, listing.full_name(container), container).await;
        shown.push(still_there(one)?.ok_or_else(gone)?);
    }
    let kernel = Kernel::read();
    let facts: Vec<Facts<'_>> = shown.iter().map(|shown| shown.facts(maker, &kernel)).collect();
    let mut explanation = Explanation::default();
    if let Some(pod) = pod {
        let mut info = pod_info(daemon, pod).await?;
        let mut verdict = verdict::of_pod(owner, maker, pod.state(), &facts);
        if !is_ready(pod) {
            let log = info.remove("supervisorLog").and_then(|log| serde_json::from_str(&log).ok());
            verdict.log = last(log.unwrap_or_default());
        }
        explanation.verdicts.push(verdict);
        explanation.stages.extend(rows(owner, None, stages(&info)));
    }
    explanation.verdicts.extend(of_containers(&facts).await);
    for Shown { status, stages, .. } in shown {
        let metadata = status.metadata.unwrap_or_default();
        explanation.stages.extend(rows(owner, Some(&metadata.name), stages));
    }
    match output.format {
        Format::Json => json(&explanation),
        Format::Table => text(&explanation.text()),
    }
}

/// The verdicts on a pod's containers, with their logs.
async fn of_containers(facts: &[Facts<'_>]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    // All are on one disk: once it has not responded, it is not asked again.
    let mut responds = true;
    for facts in facts {
        let verdict = verdict::of_container(facts);
        // Of one that runs, `wharf logs` shows it.
        verdicts.push(match (verdict.exit_code, Path::new(&facts.status.log_path).parent()) {
            (Some(_code), Some(directory)) => {
                responds = responds && touch::responds(directory).await;
                if responds {
                    Verdict { log: logs::last_lines(facts.status, LOG_LINES), ..verdict }
                } else {
                    verdict.without_log(directory)
                }
            }
            _ => verdict,
        });
    }
    verdicts
}

impl Explanation {
    fn text(&self) -> String {
        let verdicts: String = self.verdicts.iter().map(Verdict::text).collect();
        if self.stages.is_empty() {
            let why = "wharfd has been restarted since, or is too old to measure them";
            return format!("{verdicts}\nthere are no timings: {why}\n");
        }
        let cells: Vec<_> = self.stages.iter().map(Row::cells).collect();
        format!("{verdicts}\n{}", table(StageRow::HEADINGS, &cells))
    }
}

fn last(mut lines: Vec<String>) -> Vec<String> {
    lines.split_off(lines.len().saturating_sub(LOG_LINES))
}

async fn pod_info(daemon: &mut Daemon, pod: &PodSandbox) -> Result<BTreeMap<String, String>, Error> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = daemon.runtime.pod_sandbox_status(request).await;
    Ok(answer.map_err(Error::call("asking for the pod"))?.into_inner().info)
}

async fn of_container(daemon: &mut Daemon, name: String, container: &Container) -> Result<Shown, Error> {
    let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let answer = daemon.runtime.container_status(request).await;
    let answer = answer.map_err(Error::call("asking for the container"))?.into_inner();
    let status = answer.status.ok_or(Error::Incomplete { what: "the container's status" })?;
    let stages = stages(&answer.info);
    let asked = asked(answer.info.get("stop"), &stages);
    Ok(Shown { name, status, asked, stages })
}

/// Whether a container was asked to stop. Of one that an earlier wharfd made there are no stages.
fn asked(stop: Option<&String>, stages: &[Stage]) -> Asked {
    match stop.and_then(|text| serde_json::from_str::<Option<Stop>>(text).ok()) {
        Some(Some(stop)) => Asked::Once(stop),
        Some(None) if !stages.is_empty() => Asked::Never,
        _ => Asked::Unknown,
    }
}

/// The stages that an answer has; none from a wharfd of a release that notes none.
fn stages(info: &BTreeMap<String, String>) -> Vec<Stage> {
    info.get("stages").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn rows(pod: &str, container: Option<&str>, stages: Vec<Stage>) -> Vec<StageRow> {
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

    fn info(stages: &str) -> BTreeMap<String, String> {
        [("stages".to_owned(), stages.to_owned())].into()
    }

    #[test]
    fn stages_are_rows_in_milliseconds() {
        let stages = stages(&info(r#"[{"stage":"namespaces","beganUs":12,"tookUs":1034,"more":1}]"#));
        let [row]: [StageRow; 1] = rows("web", Some("main"), stages).try_into().unwrap();
        assert_eq!(row.cells(), ["web", "main", "namespaces", "0.012 ms", "1.034 ms"]);
    }

    #[test]
    fn what_is_not_reported_is_no_row() {
        assert_eq!((stages(&BTreeMap::new()), stages(&info("no JSON"))), (Vec::new(), Vec::new()));
    }

    #[test]
    fn that_nobody_asked_is_only_known_of_a_container_of_this_wharfd() {
        let made = [Stage { stage: "x".to_owned(), began_us: 0, took_us: 1 }];
        let asked = |stop: Option<&str>, stages| asked(stop.map(str::to_owned).as_ref(), stages);
        let stop = Asked::Once(Stop { asked_at_ns: 5, grace_ms: 10 });
        for stages in [&made as &[Stage], &[]] {
            assert_eq!(asked(Some(r#"{"askedAtNs":5,"graceMs":10}"#), stages), stop);
            assert_eq!(asked(None, stages), Asked::Unknown, "an earlier release");
        }
        assert_eq!((asked(Some("null"), &made), asked(Some("null"), &[])), (Asked::Never, Asked::Unknown));
    }

    #[test]
    fn of_a_long_log_the_last_lines_are_shown() {
        let lines: Vec<String> = (0..15).map(|number| number.to_string()).collect();
        assert_eq!(last(lines.clone()), lines[5..]);
        assert_eq!(last(lines[..3].to_vec()), lines[..3]);
    }
}
