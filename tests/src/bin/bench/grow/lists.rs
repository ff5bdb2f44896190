//! Lists, streamed lists and statistics of all pods.

use anyhow::Context;
use futures_util::StreamExt;
use tonic::{Code, Response, Status, Streaming};
use wharf_cri_api::v1::{
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
    StreamContainersRequest, StreamPodSandboxesRequest,
};

use crate::client::Runtime;
use crate::results::{Results, Stopwatch};

/// Statistics are requested once for this many lists.
const LISTS_FOR_STATS: usize = 5;

/// Calls each list `count` times. Each must have one entry per pod.
pub(crate) async fn measure(
    count: usize,
    runtime: &Runtime,
    pods: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    for call in 0..count {
        whole(runtime, pods, results).await?;
        streamed(runtime, pods, results).await?;
        if call % LISTS_FOR_STATS == 0 {
            stats(runtime, pods, results).await?;
        }
    }
    Ok(())
}

async fn whole(runtime: &Runtime, pods: usize, results: &mut Results) -> anyhow::Result<()> {
    let mut client = runtime.calls.runtime.clone();
    let mut watch = Stopwatch::start();
    let sandboxes =
        client.list_pod_sandbox(ListPodSandboxRequest::default()).await.context("ListPodSandbox")?;
    results.time("ListPodSandbox", &runtime.name, watch.lap());
    has("ListPodSandbox", sandboxes.into_inner().items.len(), pods)?;
    watch.lap();
    let containers =
        client.list_containers(ListContainersRequest::default()).await.context("ListContainers")?;
    results.time("ListContainers", &runtime.name, watch.lap());
    has("ListContainers", containers.into_inner().containers.len(), pods)
}

async fn streamed(runtime: &Runtime, pods: usize, results: &mut Results) -> anyhow::Result<()> {
    let mut client = runtime.calls.runtime.clone();
    let mut watch = Stopwatch::start();
    let answer = client.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await;
    let Some(count) = counted(answer, |part| part.pod_sandboxes.len()).await.context("StreamPodSandboxes")?
    else {
        return Ok(());
    };
    results.time("StreamPodSandboxes", &runtime.name, watch.lap());
    has("StreamPodSandboxes", count, pods)?;
    watch.lap();
    let answer = client.stream_containers(StreamContainersRequest::default()).await;
    let Some(count) = counted(answer, |part| part.containers.len()).await.context("StreamContainers")? else {
        return Ok(());
    };
    results.time("StreamContainers", &runtime.name, watch.lap());
    has("StreamContainers", count, pods)
}

/// Reads a streamed list to its end. Does nothing for a runtime that does not serve it.
async fn counted<T>(
    answer: Result<Response<Streaming<T>>, Status>,
    count: impl Fn(T) -> usize,
) -> Result<Option<usize>, Status> {
    let mut parts = match answer {
        Err(status) if status.code() == Code::Unimplemented => return Ok(None),
        answer => answer?.into_inner(),
    };
    let mut total = 0;
    while let Some(part) = parts.next().await {
        total += count(part?);
    }
    Ok(Some(total))
}

async fn stats(runtime: &Runtime, pods: usize, results: &mut Results) -> anyhow::Result<()> {
    let mut client = runtime.calls.runtime.clone();
    let mut watch = Stopwatch::start();
    let request = ListContainerStatsRequest::default();
    let containers = client.list_container_stats(request).await.context("ListContainerStats")?;
    results.time("ListContainerStats", &runtime.name, watch.lap());
    has("ListContainerStats", containers.into_inner().stats.len(), pods)?;
    watch.lap();
    let request = ListPodSandboxStatsRequest::default();
    let sandboxes = client.list_pod_sandbox_stats(request).await.context("ListPodSandboxStats")?;
    results.time("ListPodSandboxStats", &runtime.name, watch.lap());
    has("ListPodSandboxStats", sandboxes.into_inner().stats.len(), pods)
}

fn has(call: &str, entries: usize, pods: usize) -> anyhow::Result<()> {
    anyhow::ensure!(entries == pods, "{call} has {entries} entries of {pods}");
    Ok(())
}
