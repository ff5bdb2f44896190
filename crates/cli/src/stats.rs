//! `wharf stats`: the resource usage of pods and their containers.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use wharf_cri_api::v1::{CpuUsage, ListPodSandboxStatsRequest, MemoryUsage, PodSandboxStats, UInt64Value};

use crate::args::Stats;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{self, Output, Row};
use crate::units::size;

/// The time between the two measurements of CPU time.
const ONCE: Duration = Duration::from_millis(300);
const WATCHED: Duration = Duration::from_secs(1);

/// One pod, or one container of the pod above it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatsRow {
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    /// In hundredths of one CPU.
    cpu_percent: Option<f64>,
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
}

impl Row for StatsRow {
    const HEADINGS: &'static [&'static str] =
        &["POD", "CONTAINER", "CPU", "MEMORY", "PIDS", "RECEIVED", "SENT"];

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.pod.clone(),
            or_dash(self.container.clone()),
            or_dash(self.cpu_percent.map(|percent| format!("{percent:.1} %"))),
            or_dash(self.memory_bytes.map(size)),
            or_dash(self.processes.map(|count| count.to_string())),
            or_dash(self.received_bytes.map(size)),
            or_dash(self.sent_bytes.map(size)),
        ]
    }
}

/// CPU time used, with the time of the measurement, both in nanoseconds, by the id of a pod or container.
type Clocks = HashMap<String, (i64, u64)>;

pub(crate) async fn stats(daemon: &mut Daemon, output: Output, stats: Stats) -> Result<(), Error> {
    let mut before = clocks(&ask(daemon).await?);
    loop {
        tokio::time::sleep(if stats.watch { WATCHED } else { ONCE }).await;
        let now = ask(daemon).await?;
        let rows: Vec<StatsRow> = now.iter().flat_map(|pod| rows(pod, &before)).collect();
        if stats.watch {
            output::clear()?;
        }
        output.rows(&rows)?;
        if !stats.watch {
            return Ok(());
        }
        before = clocks(&now);
    }
}

async fn ask(daemon: &mut Daemon) -> Result<Vec<PodSandboxStats>, Error> {
    let answer = daemon.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await;
    let mut pods = answer.map_err(Error::call("asking for statistics"))?.into_inner().stats;
    pods.sort_by_key(name_of);
    Ok(pods)
}

fn name_of(pod: &PodSandboxStats) -> String {
    let metadata = pod.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
    metadata.map(|metadata| metadata.name.clone()).unwrap_or_default()
}

fn clock(cpu: Option<&CpuUsage>) -> Option<(i64, u64)> {
    let cpu = cpu?;
    Some((cpu.timestamp, cpu.usage_core_nano_seconds?.value))
}

fn clocks(pods: &[PodSandboxStats]) -> Clocks {
    let mut clocks = Clocks::new();
    for pod in pods {
        let Some(linux) = &pod.linux else { continue };
        let own = pod.attributes.as_ref().zip(clock(linux.cpu.as_ref()));
        clocks.extend(own.map(|(attributes, clock)| (attributes.id.clone(), clock)));
        for container in &linux.containers {
            let own = container.attributes.as_ref().zip(clock(container.cpu.as_ref()));
            clocks.extend(own.map(|(attributes, clock)| (attributes.id.clone(), clock)));
        }
    }
    clocks
}

/// The usage since the last measurement, in hundredths of one CPU.
fn percent(id: &str, cpu: Option<&CpuUsage>, before: &Clocks) -> Option<f64> {
    let (then, old) = before.get(id)?;
    let (now, new) = clock(cpu)?;
    let elapsed = now.checked_sub(*then).filter(|&elapsed| elapsed > 0)?;
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    Some(new.saturating_sub(*old) as f64 / elapsed as f64 * 1000.0).map(|tenths| tenths.round() / 10.0)
}

fn value(value: Option<UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

fn memory(memory: Option<&MemoryUsage>) -> Option<u64> {
    value(memory?.working_set_bytes)
}

fn rows(pod: &PodSandboxStats, before: &Clocks) -> Vec<StatsRow> {
    let (name, Some(linux)) = (name_of(pod), &pod.linux) else { return Vec::new() };
    let id = pod.attributes.as_ref().map_or("", |attributes| &attributes.id);
    let interface = linux.network.as_ref().and_then(|network| network.default_interface.as_ref());
    let mut rows = vec![StatsRow {
        pod: name.clone(),
        container: None,
        cpu_percent: percent(id, linux.cpu.as_ref(), before),
        memory_bytes: memory(linux.memory.as_ref()),
        processes: linux.process.as_ref().and_then(|process| value(process.process_count)),
        received_bytes: interface.and_then(|interface| value(interface.rx_bytes)),
        sent_bytes: interface.and_then(|interface| value(interface.tx_bytes)),
    }];
    let running = linux.containers.iter().filter(|container| container.cpu.is_some());
    rows.extend(running.map(|container| {
        let attributes = container.attributes.clone().unwrap_or_default();
        StatsRow {
            pod: name.clone(),
            container: Some(attributes.metadata.map(|metadata| metadata.name).unwrap_or_default()),
            cpu_percent: percent(&attributes.id, container.cpu.as_ref(), before),
            memory_bytes: memory(container.memory.as_ref()),
            processes: None,
            received_bytes: None,
            sent_bytes: None,
        }
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_between_two_looks() {
        let cpu = |timestamp, used| {
            Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: Some(UInt64Value { value: used }),
                ..CpuUsage::default()
            })
        };
        let before = Clocks::from([("a".to_owned(), (1_000, 500))]);
        assert_eq!(percent("a", cpu(2_000, 2_000).as_ref(), &before), Some(150.0));
        assert_eq!(percent("a", cpu(1_000, 2_000).as_ref(), &before), None, "no time has passed");
        assert_eq!(percent("b", cpu(2_000, 2_000).as_ref(), &before), None, "seen for the first time");
        assert_eq!(percent("a", None, &before), None);
    }
}
