//! `wharf start`: restarts exited containers and stopped pods. In the CRI a container runs only once, so a new one with
//! the same configuration replaces it. A stopped pod has lost its network, so the pod and its containers are created
//! anew.

use futures_util::future::join_all;
use tonic::Status;
use wharf_cri_api::admin::{ContainerRequest, PodRequest};
use wharf_cri_api::v1::{
    Container, ContainerConfig, ContainerState, CreateContainerRequest, PodSandbox, RunPodSandboxRequest,
    StartContainerRequest,
};

use crate::args::Start;
use crate::daemon::Daemon;
use crate::error::{Error, is_spent};
use crate::find::{Found, Listing, is_ready, pod_name, runs};
use crate::output::{self, Output};
use crate::remove;
use crate::run::{is_of, mark, random};
use crate::stop::{self, each};

pub(crate) async fn start(daemon: &mut Daemon, output: Output, start: Start) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    // Boxed: requests are large.
    let starts = start.names.iter().map(|name| Box::pin(one(daemon.clone(), &listing, name)));
    each(output, &start.names, join_all(starts)).await
}

async fn one(mut daemon: Daemon, listing: &Listing, name: &str) -> Result<(), Error> {
    let (pod, wanted): (_, Vec<String>) = match listing.find(name)? {
        Found::Pod(pod) => (pod, listing.containers_of(pod).map(|container| container.id.clone()).collect()),
        Found::Container(container) => {
            let pod = listing.pod_of(container).ok_or(Error::Incomplete { what: "the container's pod" })?;
            (pod, vec![container.id.clone()])
        }
    };
    if !remove::is_own(&mut daemon, pod).await? {
        return Err(Error::NotOwn { name: name.to_owned() });
    }
    if !is_ready(pod) {
        return whole_pod(&mut daemon, pod, &wanted).await;
    }
    for container in
        listing.containers_of(pod).filter(|container| wanted.contains(&container.id) && !runs(container))
    {
        again(&mut daemon, pod, container).await?;
    }
    Ok(())
}

/// Starts a container in a ready pod, or a new one in its place.
async fn again(daemon: &mut Daemon, pod: &PodSandbox, container: &Container) -> Result<(), Error> {
    if container.state() == ContainerState::ContainerCreated {
        return begin(daemon, container.id.clone()).await;
    }
    let config = daemon.container_request(container).await?;
    let id = create(daemon, &pod.id, config).await?;
    if let Err(error) = begin(daemon, id.clone()).await {
        remove::container(daemon, &id).await?;
        return Err(error);
    }
    // Only now: a container that could not be started again can still be inspected.
    remove::container(daemon, &container.id).await
}

/// Recreates a stopped pod with all its containers, and starts the wanted ones.
async fn whole_pod(daemon: &mut Daemon, pod: &PodSandbox, wanted: &[String]) -> Result<(), Error> {
    let request =
        daemon.requests(&pod.id).await?.pop().ok_or(Error::Incomplete { what: "the pod's description" })?;
    // What keeps it from being removed afterwards must show before there are two of this name.
    stop::pod_with(daemon, &pod.id, &[], 0).await?;
    let PodRequest { config, runtime_handler, containers, .. } = request;
    let mut config = config.ok_or(Error::Incomplete { what: "the pod's description" })?;
    if let Some(metadata) = &mut config.metadata {
        metadata.attempt += 1;
    }
    let random = random()?;
    mark(&mut config.annotations, &random);
    let asked = RunPodSandboxRequest { config: Some(config), runtime_handler };
    let answer = Box::pin(daemon.runtime.run_pod_sandbox(asked)).await;
    let id = answer.map_err(|status| refused(pod_name(pod), status))?.into_inner().pod_sandbox_id;
    let is_own = |made: &PodSandbox| made.id == id && is_of(&made.annotations, &random);
    if !daemon.listing().await?.pods.iter().any(is_own) {
        return Err(Error::Overtaken { name: pod_name(pod).to_owned() });
    }
    if let Err(error) = Box::pin(fill(daemon, &id, containers, wanted)).await {
        if let Err(left) = daemon.remove_pod(&id).await {
            output::report(&wharf_types::chain(&left));
        }
        return Err(error);
    }
    // The logs stay, because they are also the new pod's.
    daemon.remove_pod(&pod.id).await
}

async fn fill(
    daemon: &mut Daemon,
    pod_id: &str,
    containers: Vec<ContainerRequest>,
    wanted: &[String],
) -> Result<(), Error> {
    for ContainerRequest { container_id, config } in containers {
        let config = config.ok_or(Error::Incomplete { what: "a container's description" })?;
        let id = create(daemon, pod_id, config).await?;
        if wanted.contains(&container_id) {
            begin(daemon, id).await?;
        }
    }
    Ok(())
}

/// Creates a container's successor, which continues the same log.
///
/// # Errors
/// Overtaken if wharfd has joined this with another command's call; what that has made is not this one's.
async fn create(daemon: &mut Daemon, pod_id: &str, mut config: ContainerConfig) -> Result<String, Error> {
    let metadata = config.metadata.get_or_insert_default();
    metadata.attempt += 1;
    let (name, random) = (metadata.name.clone(), random()?);
    mark(&mut config.annotations, &random);
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(config),
        ..CreateContainerRequest::default()
    };
    let created = Box::pin(daemon.runtime.create_container(request)).await;
    let id = created.map_err(|status| refused(&name, status))?.into_inner().container_id;
    match is_of(&daemon.container_status(&id).await?.annotations, &random) {
        true => Ok(id),
        false => Err(Error::Overtaken { name }),
    }
}

async fn begin(daemon: &mut Daemon, container_id: String) -> Result<(), Error> {
    let started = daemon.runtime.start_container(StartContainerRequest { container_id }).await;
    started.map(drop).map_err(Error::call("starting the container"))
}

fn refused(name: &str, status: Status) -> Error {
    if is_spent(&status) {
        return Error::Overtaken { name: name.to_owned() };
    }
    Error::call(format!("cannot restart {name}"))(status)
}
