//! Lists, statistics and memory while many pods run.

use anyhow::Context;
use wharf_cri_api::v1::{
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
};

use crate::Options;
use crate::client::Runtime;
use crate::memory;
use crate::pods::{down_together, up_together};
use crate::results::{Results, Stopwatch, Unit};

/// Pods requested at a time. The pods only have to be there; how fast they start is measured elsewhere.
const STEP: usize = 10;

/// One runtime after the other: two crowds at the same time would slow each other down.
pub(crate) async fn measure(
    options: &Options,
    runtimes: &[Runtime],
    results: &mut Results,
) -> anyhow::Result<()> {
    for runtime in runtimes {
        let before = memory::processes()?;
        let mut pods = Vec::new();
        while pods.len() < options.crowd {
            pods.extend(up_together(STEP.min(options.crowd - pods.len()), runtime).await?);
        }
        let private = memory::private_of_new_kib(&before, runtime.daemon)?;
        results.add(
            "helpers' private memory, per pod",
            Unit::KiB,
            &runtime.name,
            private / pods.len() as f64,
        );
        results.add("daemon RSS, many pods", Unit::KiB, &runtime.name, memory::resident_kib(runtime.daemon)?);
        for _ in 0..options.lists {
            let counts = lists(runtime, results).await?;
            anyhow::ensure!(counts.iter().all(|&count| count == pods.len()), "lists have {counts:?} entries");
        }
        while !pods.is_empty() {
            let rest = pods.split_off(STEP.min(pods.len()));
            down_together(std::mem::replace(&mut pods, rest), runtime).await?;
        }
    }
    Ok(())
}

/// Calls each list once, and returns how many entries each had.
async fn lists(runtime: &Runtime, results: &mut Results) -> anyhow::Result<[usize; 4]> {
    let (mut client, name) = (runtime.calls.runtime.clone(), &runtime.name);
    let mut watch = Stopwatch::start();
    let pods = client.list_pod_sandbox(ListPodSandboxRequest::default()).await.context("ListPodSandbox")?;
    results.time("ListPodSandbox, many pods", name, watch.lap());
    let containers =
        client.list_containers(ListContainersRequest::default()).await.context("ListContainers")?;
    results.time("ListContainers, many pods", name, watch.lap());
    let container_stats = client
        .list_container_stats(ListContainerStatsRequest::default())
        .await
        .context("ListContainerStats")?;
    results.time("ListContainerStats, many pods", name, watch.lap());
    let pod_stats = client
        .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
        .await
        .context("ListPodSandboxStats")?;
    results.time("ListPodSandboxStats, many pods", name, watch.lap());
    Ok([
        pods.into_inner().items.len(),
        containers.into_inner().containers.len(),
        container_stats.into_inner().stats.len(),
        pod_stats.into_inner().stats.len(),
    ])
}
