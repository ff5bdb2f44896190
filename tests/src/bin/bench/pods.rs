//! Pods one at a time, and many at once.

use anyhow::Context;
use tokio::task::JoinSet;
use wharf_cri_api::v1::{ContainerStatusRequest, ExecSyncRequest, VersionRequest};

use crate::client::{Pod, Runtime};
use crate::memory::WORKLOAD;
use crate::results::{Results, Stopwatch};

/// Execs in each pod. A container's first exec may cost more than the rest.
const EXECS: usize = 3;

/// Takes a pod through its life `count` times, after one to warm up.
pub(crate) async fn one_by_one(
    count: usize,
    runtimes: &[Runtime],
    results: &mut Results,
) -> anyhow::Result<()> {
    for runtime in runtimes {
        let pod = runtime.up().await?;
        runtime.down(&pod).await?;
    }
    for _ in 0..count {
        for runtime in runtimes {
            // Boxed: the requests of all calls together are too large for a caller's future.
            let pod = Box::pin(timed_up(runtime, results)).await?;
            Box::pin(calls(runtime, &pod, results)).await?;
            Box::pin(timed_down(runtime, &pod, results)).await?;
        }
    }
    Ok(())
}

async fn timed_up(runtime: &Runtime, results: &mut Results) -> anyhow::Result<Pod> {
    let config = runtime.pod_config();
    let mut watch = Stopwatch::start();
    let sandbox = runtime.calls.run(&config).await.context("RunPodSandbox")?;
    results.time("RunPodSandbox", &runtime.name, watch.lap());
    let container = runtime.create(&sandbox, &config, WORKLOAD).await.context("CreateContainer")?;
    let create = watch.lap();
    runtime.calls.start(&container).await.context("StartContainer")?;
    let start = watch.lap();
    results.time("CreateContainer", &runtime.name, create);
    results.time("StartContainer", &runtime.name, start);
    results.time("container create + start", &runtime.name, create + start);
    results.time("pod up", &runtime.name, watch.total());
    Ok(Pod { sandbox, container })
}

async fn calls(runtime: &Runtime, pod: &Pod, results: &mut Results) -> anyhow::Result<()> {
    let mut client = runtime.calls.runtime.clone();
    let request =
        ExecSyncRequest { container_id: pod.container.clone(), cmd: vec!["true".to_owned()], timeout: 10 };
    for _ in 0..EXECS {
        let mut watch = Stopwatch::start();
        let response = client.exec_sync(request.clone()).await.context("ExecSync")?.into_inner();
        results.time("ExecSync true", &runtime.name, watch.lap());
        anyhow::ensure!(response.exit_code == 0, "true ended with {}", response.exit_code);
    }
    let mut watch = Stopwatch::start();
    let request = ContainerStatusRequest { container_id: pod.container.clone(), verbose: false };
    client.container_status(request).await.context("ContainerStatus")?;
    results.time("ContainerStatus", &runtime.name, watch.lap());
    client.version(VersionRequest::default()).await.context("Version")?;
    results.time("Version (the client's floor)", &runtime.name, watch.lap());
    Ok(())
}

async fn timed_down(runtime: &Runtime, pod: &Pod, results: &mut Results) -> anyhow::Result<()> {
    let mut watch = Stopwatch::start();
    runtime.calls.stop_container(&pod.container).await.context("StopContainer")?;
    results.time("StopContainer", &runtime.name, watch.lap());
    runtime.calls.remove_container(&pod.container).await.context("RemoveContainer")?;
    results.time("RemoveContainer", &runtime.name, watch.lap());
    runtime.calls.stop(&pod.sandbox).await.context("StopPodSandbox")?;
    results.time("StopPodSandbox", &runtime.name, watch.lap());
    runtime.calls.remove(&pod.sandbox).await.context("RemovePodSandbox")?;
    results.time("RemovePodSandbox", &runtime.name, watch.lap());
    results.time("pod down", &runtime.name, watch.total());
    Ok(())
}

/// Starts `count` pods at the same moment, and then ends them all at the same moment.
pub(crate) async fn at_once(count: usize, runtimes: &[Runtime], results: &mut Results) -> anyhow::Result<()> {
    for runtime in runtimes {
        let mut watch = Stopwatch::start();
        let pods = up_together(count, runtime).await?;
        results.time("many pods at once: up, wall", &runtime.name, watch.lap());
        down_together(pods, runtime).await?;
        results.time("many pods at once: down, wall", &runtime.name, watch.lap());
    }
    Ok(())
}

/// Starts this many pods at the same moment.
pub(crate) async fn up_together(count: usize, runtime: &Runtime) -> anyhow::Result<Vec<Pod>> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let runtime = runtime.clone();
        tasks.spawn(async move { runtime.up().await });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Ends them all in the same moment.
pub(crate) async fn down_together(pods: Vec<Pod>, runtime: &Runtime) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for pod in pods {
        let runtime = runtime.clone();
        tasks.spawn(async move { runtime.down(&pod).await });
    }
    tasks.join_all().await.into_iter().collect()
}
