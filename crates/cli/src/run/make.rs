//! What a run creates. It is decided before anything is made, so that what a signal leaves behind has a name.

use tonic::Status;
use wharf_cri_api::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, PodSandbox, PodSandboxConfig,
    RunPodSandboxRequest,
};

use super::request::is_of;
use super::{failure, request, undo};
use crate::args::Run;
use crate::daemon::{Daemon, patiently};
use crate::error::{Error, is_spent};
use crate::find::{Listing, container_name, is_over, is_ready, pod_name};

/// What a run is to create.
#[derive(Debug)]
pub(super) struct Plan {
    pod: Pod,
    pod_name: String,
    name: String,
    container: ContainerConfig,
    /// The random characters by which it knows its own again.
    random: String,
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

    /// The container that this run has created, unless another one has the name: wharfd lets two have it, if they have
    /// different attempt numbers.
    fn own_in(&self, listing: &Listing, pod_id: &str) -> Option<String> {
        let all = listing.containers.iter().filter(|container| container.pod_sandbox_id == pod_id);
        let of_name = all.filter(|container| container_name(container) == self.name && !is_over(container));
        match of_name.collect::<Vec<_>>().as_slice() {
            [one] if is_of(&one.annotations, &self.random) => Some(one.id.clone()),
            _ => None,
        }
    }

    fn taken(&self) -> Error {
        Error::NameTaken { name: self.shown() }
    }

    /// Why something was not created.
    fn refused(&self, run: &Run, status: Status) -> Error {
        if is_spent(&status) { self.taken() } else { Error::call(failure(run))(status) }
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
        let log = request::log_in(&name, &random);
        let container = request::container(run, env, metadata, (log, &random));
        let (pod_name, pod) = (pod_name(pod).to_owned(), Pod::Joined(pod.id.clone()));
        return Ok(Plan { pod, pod_name, name, container, random });
    }
    let name = request::pod_name(&listing, run, &random)?;
    let pod = Pod::New(Box::new(request::pod(run, &name, &random)));
    let metadata = ContainerMetadata { name: name.clone(), attempt: 0 };
    let container = request::container(run, env, metadata, (format!("{name}.log"), &random));
    Ok(Plan { pod, pod_name: name.clone(), name, container, random })
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
///
/// # Errors
/// NameTaken if another run was faster; then nothing of it is touched.
pub(super) async fn make(daemon: &mut Daemon, run: &Run, plan: Plan) -> Result<Created, Error> {
    let (own_pod, pod_id) = match &plan.pod {
        Pod::Joined(id) => (None, id.clone()),
        Pod::New(config) => {
            let pod = make_pod(daemon, run, &plan, config).await?;
            let id = pod.id.clone();
            (Some(pod), id)
        }
    };
    let shown = plan.shown();
    match create(daemon, run, &plan, &pod_id).await {
        Ok(container_id) => {
            let Plan { pod_name, name, .. } = plan;
            Ok(Created { own_pod, shown, pod_name, pod_id, container_id, name })
        }
        Err(error) => {
            let removed = match &own_pod {
                Some(pod) => undo::own_pod(daemon, pod).await,
                None => undo::container(daemon, &plan.random).await,
            };
            undo::after(Err(error), &shown, removed)
        }
    }
}

async fn make_pod(
    daemon: &mut Daemon,
    run: &Run,
    plan: &Plan,
    config: &PodSandboxConfig,
) -> Result<PodSandbox, Error> {
    match run_pod(daemon, run, plan, config).await {
        Err(error) => {
            let removed = undo::pod(daemon, config, &plan.random).await;
            undo::after(Err(error), &plan.shown(), removed)
        }
        made => made,
    }
}

async fn run_pod(
    daemon: &mut Daemon,
    run: &Run,
    plan: &Plan,
    config: &PodSandboxConfig,
) -> Result<PodSandbox, Error> {
    let asked = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
    let made = Box::pin(patiently(daemon.runtime.run_pod_sandbox(asked))).await;
    made.map_err(|status| plan.refused(run, status))?;
    let pods = daemon.listing().await?.pods;
    pods.into_iter().find(|pod| is_of(&pod.annotations, &plan.random)).ok_or_else(|| plan.taken())
}

async fn create(daemon: &mut Daemon, run: &Run, plan: &Plan, pod_id: &str) -> Result<String, Error> {
    let asked = CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(plan.container.clone()),
        ..CreateContainerRequest::default()
    };
    let created = Box::pin(patiently(daemon.runtime.create_container(asked))).await;
    created.map_err(|status| plan.refused(run, status))?;
    plan.own_in(&daemon.listing().await?, pod_id).ok_or_else(|| plan.taken())
}

#[cfg(test)]
mod tests {
    use wharf_cri_api::v1::{Container, ContainerState};

    use super::*;

    #[test]
    fn a_container_is_this_runs_if_no_other_one_has_the_name() {
        let name = |attempt| Some(ContainerMetadata { name: "job".into(), attempt });
        let plan = Plan {
            pod: Pod::Joined("p".into()),
            pod_name: "web".into(),
            name: "job".into(),
            container: ContainerConfig::default(),
            random: "mine".into(),
        };
        let container = |id: &str, attempt, random: &str, state: ContainerState| {
            let mut container = Container {
                id: id.into(),
                pod_sandbox_id: "p".into(),
                metadata: name(attempt),
                state: state.into(),
                ..Container::default()
            };
            request::mark(&mut container.annotations, random);
            container
        };
        let own = |containers| plan.own_in(&Listing { pods: vec![], containers }, "p");
        let (mine, ended) = (
            container("c", 1, "mine", ContainerState::ContainerCreated),
            container("a", 0, "another", ContainerState::ContainerExited),
        );
        assert_eq!(own(vec![ended.clone(), mine.clone()]).as_deref(), Some("c"));
        let elsewhere = Container { pod_sandbox_id: "q".into(), ..mine.clone() };
        assert_eq!(own(vec![ended, elsewhere]), None, "it was removed");
        for state in [ContainerState::ContainerCreated, ContainerState::ContainerRunning] {
            let rival = container("b", 2, "another", state);
            assert_eq!(own(vec![rival.clone()]), None, "wharfd joined the call with another run's");
            assert_eq!(own(vec![mine.clone(), rival]), None);
        }
        assert!(matches!(plan.taken(), Error::NameTaken { name } if name == "web/job"));
    }
}
