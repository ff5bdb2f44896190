//! What a run creates. It is decided before anything is made, so that what a signal leaves behind has a name.

use wharf_cri_api::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, PodSandbox, PodSandboxConfig,
    RunPodSandboxRequest,
};

use super::{failure, request, undo};
use crate::args::Run;
use crate::daemon::{Daemon, patiently};
use crate::error::Error;
use crate::find::{Listing, is_ready, pod_name};

/// What a run is to create.
#[derive(Debug)]
pub(super) struct Plan {
    pod: Pod,
    pod_name: String,
    name: String,
    container: ContainerConfig,
}

/// Where the container is to be.
#[derive(Debug)]
enum Pod {
    New(Box<PodSandboxConfig>),
    /// A running one, with this id.
    Joined(String),
}

impl Plan {
    /// The name for `wharf rm`, which removes nothing but what this run creates.
    pub(super) fn shown(&self) -> String {
        match self.pod {
            Pod::New(_) => self.pod_name.clone(),
            Pod::Joined(_) => format!("{}/{}", self.pod_name, self.name),
        }
    }
}

/// What this run has created.
#[derive(Debug)]
pub(super) struct Created {
    /// The pod, if this run created it.
    pub(super) own_pod: Option<PodSandbox>,
    /// The name for `wharf rm`, as [`Plan::shown`] says.
    pub(super) shown: String,
    pub(super) pod_name: String,
    pub(super) pod_id: String,
    pub(super) container_id: String,
    pub(super) name: String,
}

/// Decides what to create. Nothing is made yet.
pub(super) async fn plan(daemon: &mut Daemon, run: &Run) -> Result<Plan, Error> {
    let listing = daemon.listing().await?;
    let env = request::environment(run)?;
    let random = request::random()?;
    if let Some(joined) = &run.pod {
        let pod = self::joined(&listing, joined)?;
        let metadata = request::name_in(&listing, pod, run)?;
        let name = metadata.name.clone();
        let container = request::container(run, env, metadata, request::log_in(&name, &random));
        let (pod_name, pod) = (pod_name(pod).to_owned(), Pod::Joined(pod.id.clone()));
        return Ok(Plan { pod, pod_name, name, container });
    }
    let name = request::pod_name(&listing, run, &random)?;
    let pod = Pod::New(Box::new(request::pod(run, &name, &random)));
    let metadata = ContainerMetadata { name: name.clone(), attempt: 0 };
    let container = request::container(run, env, metadata, format!("{name}.log"));
    Ok(Plan { pod, pod_name: name.clone(), name, container })
}

fn joined<'a>(listing: &'a Listing, name: &str) -> Result<&'a PodSandbox, Error> {
    let pod = listing.pod(name)?;
    if is_ready(pod) {
        return Ok(pod);
    }
    let advice = "\n  its network is gone: remove the pod, and run it again".to_owned();
    Err(Error::NotRunningYet { name: name.to_owned(), state: "stopped", advice })
}

/// Creates the container, and the pod unless the container joins one.
pub(super) async fn make(daemon: &mut Daemon, run: &Run, plan: Plan) -> Result<Created, Error> {
    let shown = plan.shown();
    let Plan { pod, pod_name, name, container } = plan;
    let (own_pod, pod_id) = match pod {
        Pod::Joined(id) => (None, id),
        Pod::New(config) => {
            let pod = make_pod(daemon, run, *config, &shown).await?;
            let id = pod.id.clone();
            (Some(pod), id)
        }
    };
    let metadata = container.metadata.clone();
    match create(daemon, run, &pod_id, container).await {
        Ok(container_id) => Ok(Created { own_pod, shown, pod_name, pod_id, container_id, name }),
        Err(error) => {
            let removed = match &own_pod {
                Some(pod) => undo::own_pod(daemon, pod).await,
                None => undo::container(daemon, (&pod_id, metadata.as_ref()), &error).await,
            };
            undo::after(Err(error), &shown, removed)
        }
    }
}

async fn make_pod(
    daemon: &mut Daemon,
    run: &Run,
    config: PodSandboxConfig,
    shown: &str,
) -> Result<PodSandbox, Error> {
    let asked = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
    let made = Box::pin(patiently(daemon.runtime.run_pod_sandbox(asked))).await;
    match made.map_err(Error::call(failure(run))) {
        Ok(made) => {
            let id = made.into_inner().pod_sandbox_id;
            Ok(PodSandbox { id, annotations: config.annotations, ..PodSandbox::default() })
        }
        Err(error) => {
            let removed = undo::pod(daemon, &config, &error).await;
            undo::after(Err(error), shown, removed)
        }
    }
}

async fn create(
    daemon: &mut Daemon,
    run: &Run,
    pod_id: &str,
    config: ContainerConfig,
) -> Result<String, Error> {
    let asked = CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(config),
        ..CreateContainerRequest::default()
    };
    let created = Box::pin(patiently(daemon.runtime.create_container(asked))).await;
    Ok(created.map_err(Error::call(failure(run)))?.into_inner().container_id)
}
