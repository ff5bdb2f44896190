//! `wharf stop`: stops containers and pods without removing them.

use std::future::Future;

use futures_util::future::join_all;
use wharf_cri_api::v1::StopPodSandboxRequest;

use crate::args::Stop;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{Found, Listing, runs};
use crate::output::{self, Output};

pub(crate) async fn stop(daemon: &mut Daemon, output: Output, stop: Stop) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let stops = stop.names.iter().map(|name| one(daemon.clone(), &listing, name, stop.time));
    each(output, &stop.names, join_all(stops)).await
}

async fn one(mut daemon: Daemon, listing: &Listing, name: &str, grace_s: u32) -> Result<(), Error> {
    match listing.find(name)? {
        Found::Container(container) => daemon.stop_container(&container.id, grace_s).await,
        Found::Pod(pod) => {
            let running = listing.containers_of(pod).filter(|container| runs(container));
            let ids: Vec<&str> = running.map(|container| container.id.as_str()).collect();
            pod_with(&mut daemon, &pod.id, &ids, grace_s).await
        }
    }
}

/// Stops a pod. The CRI kills a pod's containers at once, so they are asked to exit first.
pub(crate) async fn pod_with(
    daemon: &mut Daemon,
    pod: &str,
    running: &[&str],
    grace_s: u32,
) -> Result<(), Error> {
    let stops = running.iter().map(|id| {
        let mut daemon = daemon.clone();
        async move { daemon.stop_container(id, grace_s).await }
    });
    join_all(stops).await.into_iter().collect::<Result<(), _>>()?;
    let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
    let stopped = daemon.runtime.stop_pod_sandbox(request).await;
    stopped.map(drop).map_err(Error::call("stopping the pod"))
}

/// Reports the result for each name: successes on standard output, failures on standard error.
pub(crate) async fn each(
    output: Output,
    names: &[String],
    results: impl Future<Output = Vec<Result<(), Error>>>,
) -> Result<(), Error> {
    let results = results.await;
    let mut done = Vec::new();
    let mut failed = Vec::new();
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(()) => done.push(name.as_str()),
            Err(error) => failed.push(error),
        }
    }
    let people: String = done.iter().map(|name| format!("{name}\n")).collect();
    output.result(&done, &people)?;
    if failed.len() == 1 && names.len() == 1 {
        return failed.pop().map_or(Ok(()), Err);
    }
    failed.iter().for_each(|error| output::report(&wharf_types::chain(error)));
    if failed.is_empty() { Ok(()) } else { Err(Error::Some(failed.len(), names.len())) }
}
