//! Starting, stopping and updating existing containers.
//!
//! Changes of one container come one after another; a stop does not wait for its turn, because it must end even a start
//! that hangs. Stopping relies on the supervisor, and on the container's cgroup where the supervisor does not respond.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use wharf_cgroup::{Cgroup, Limits, OldScores};
use wharf_cri_api::v1::LinuxContainerResources;
use wharf_host::HooksOf;
use wharf_nri::Update;
use wharf_nri::api::Event;
use wharf_planner::hooks::Point;
use wharf_planner::{self as planner, stop_signal};
use wharf_supervision::{KILL_PATIENCE, Signal};
use wharf_tasks::spawn;
use wharf_types::{ContainerState, ErrorKind, Failure, chain, signal::SIGTERM};
use wharf_wire::v1::Started;

use super::Engine;
use super::plugins::ASKING;
use crate::container::{Container, InPod};
use crate::error::{Error, Stage, blocking, known};
use crate::pod::Pod;

/// How long after a killed container's processes are gone its supervisor may take to report that.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a disk that does not say how a killed container has ended is asked again.
const DISK_PATIENCE: Duration = Duration::from_secs(3);

impl Engine {
    /// Executes a created container's program.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container is in another state, or if the program cannot be executed, which
    /// leaves the container exited with code 128.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let (engine, id) = (Arc::clone(self), id.to_owned());
        spawn(async move { engine.start(&id).await }).await
    }

    async fn start(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let (pod, container) = &self.container(id)?;
        let _order = container.change().await;
        match pod.state_of(container).await? {
            ContainerState::Created => {}
            // This retries a call whose response was lost.
            ContainerState::Running { .. } => return Ok(()),
            ContainerState::Exited { .. } => return Err(container.wrong_state("exited")),
        }
        let connection = pod.connected().await?;
        self.tell(Event::StartContainer, pod, Some(container)).await?;
        let start = connection.start(container.id(), container.timings());
        let started = container.timings().time_async("start, until the program was executed", start).await;
        match started.map_err(Error::from) {
            Ok(started) => self.has_started(pod, container, &started).await,
            Err(error) => {
                // A supervisor that did not answer reports whether it runs as soon as it knows.
                if !matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Unavailable) {
                    self.not_started(pod, container, &error).await;
                }
                Err(error)
            }
        }
    }

    async fn has_started(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Arc<Container>,
        started: &Started,
    ) -> Result<(), Error> {
        // A supervisor of an older release does not report a pid, and there it is still that of the first process.
        if started.pid != 0 {
            container.set_pid(started.pid);
        }
        self.started(pod, container, started.started_at_ns);
        let hooked = self.hooked(pod, container.id(), &container.record(), container.pid());
        hooked.execute(HooksOf::Life, pod.id(), |hooked| hooked.notify(Point::Poststart)).await?;
        self.tell(Event::PostStartContainer, pod, Some(container)).await
    }

    /// Handles a program that could not be executed. The first process is about to exit; the effect is visible when
    /// this call returns.
    async fn not_started(&self, pod: &Pod, container: &Container, error: &Error) {
        self.record_failure(pod, container, error).await;
        drop(timeout(KILL_PATIENCE, container.exited()).await);
        container.explain_exit();
    }

    /// Records why a container did not start. A lack of disk space for that changes nothing for the caller.
    async fn record_failure(&self, pod: &Pod, container: &Container, error: &Error) {
        let record = container.change_record(|record| record.message = error.why());
        let path = self.parts.layout.container_record(pod.id(), container.id());
        if let Err(error) = blocking(move || Ok(record.update(&path)?)).await {
            tracing::warn!(
                container = container.id().short(),
                error = chain(&error),
                "the reason why a container did not start could not be recorded"
            );
        }
    }

    /// Stops a container: sends its stop signal, then SIGKILL after `grace`, and returns when the process has exited.
    /// Unknown and exited containers are success. A further call sends no second signal: many programs take that as an
    /// order to exit at once. Its `grace` replaces that of the calls before it.
    ///
    /// # Errors
    /// DeadlineExceeded if the kernel does not let it die.
    pub async fn stop_container(self: &Arc<Self>, id: &str, grace: Duration) -> Result<(), Error> {
        let Some((pod, container)) = known(self.container(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move { engine.stop((pod, container), grace).await }).await
    }

    pub(super) async fn stop(
        self: &Arc<Self>,
        (pod, container): InPod,
        grace: Duration,
    ) -> Result<(), Error> {
        if !container.is_exited() {
            container.stopping().wait(grace, self.end_by_itself(&pod, &container)).await;
        }
        // What is left after that is killed.
        if !container.is_exited() {
            self.kill(&pod, &container).await?;
        }
        self.tell(Event::StopContainer, &pod, Some(&container)).await
    }

    /// Sends a container its stop signal, and waits for it to exit; one that was not started is not waited for.
    async fn end_by_itself(&self, pod: &Pod, container: &Container) {
        if container.was_started().await {
            // The container's state can be known a moment before the supervisor accepts requests.
            pod.contact().settled().await;
            let number = stop_signal::number(&container.record().stop_signal).unwrap_or(SIGTERM.into());
            container.stopping().tell(self.signal(pod, container, Signal::of_number(number))).await;
            container.exited().await;
        }
    }

    /// Kills a container's processes through its supervisor or, if that does not respond, through its cgroup. The
    /// supervisor itself is left alone, because it has other containers, too.
    async fn kill(self: &Arc<Self>, pod: &Pod, container: &Arc<Container>) -> Result<(), Error> {
        let asked = self.signal(pod, container, Signal::KillAll).await;
        let is_told = async |patience| asked && timeout(patience, container.exited()).await.is_ok();
        if is_told(KILL_PATIENCE).await {
            return Ok(());
        }
        self.kill_container(container).await?;
        // A supervisor that responds tells in a moment how it ended.
        if !is_told(REPORT_PATIENCE).await && !container.is_exited() {
            self.note_lost_within(pod, container, DISK_PATIENCE).await;
        }
        Ok(())
    }

    /// Sends a signal; returns whether it was sent.
    async fn signal(&self, pod: &Pod, container: &Container, signal: Signal) -> bool {
        let Ok(supervisor) = pod.connection() else { return false };
        if signal == Signal::KillAll && supervisor.is_silent() {
            return false;
        }
        let sent = supervisor.signal(container.id(), signal).await;
        if let Err(error) = &sent {
            let error = chain(error);
            tracing::warn!(container = container.id().short(), error, "a signal was not sent");
        }
        sent.is_ok()
    }

    /// Reopens the log after it was renamed.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container does not run.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let (pod, container) = self.running(id)?;
        Ok(pod.connected().await?.reopen_log(container.id()).await?)
    }

    /// Updates limits; those that the request does not set stay as they are.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container has exited; the limit that the kernel refused, and then nothing
    /// has changed.
    pub async fn update_container(
        self: &Arc<Self>,
        id: &str,
        new: LinuxContainerResources,
    ) -> Result<(), Error> {
        let (pod, container) = self.container(id)?;
        planner::check_resources(&new)?;
        self.options.handlers.check_reach(pod.handler(), "limit one container")?;
        let engine = Arc::clone(self);
        spawn(async move {
            let _order = container.change().await;
            let asked = Box::new(Update { resources: planner::resources(&new), asked: new });
            let show = || async { Box::new(engine.show(&pod, Some(&container)).await) };
            let update = engine.parts.plugins.update(asked, show).await.stage(ASKING)?;
            Self::update(&engine, &pod, &container, update).await?;
            engine.tell(Event::PostUpdateContainer, &pod, Some(&container)).await
        })
        .await
    }

    /// Updates a container, in its turn.
    pub(super) async fn update(
        &self,
        pod: &Pod,
        container: &Arc<Container>,
        update: Box<Update>,
    ) -> Result<(), Error> {
        if let ContainerState::Exited { .. } = pod.state_of(container).await? {
            return Err(container.wrong_state("exited"));
        }
        planner::refuse_resources(&update.resources)?;
        let path = self.parts.layout.container_record(pod.id(), container.id());
        let changed = Arc::clone(container);
        blocking(move || update_blocking(&path, &changed, &update)).await
    }
}

fn update_blocking(path: &Path, container: &Container, update: &Update) -> Result<(), Error> {
    let Update { asked: new, resources } = update;
    let mut record = container.record();
    let linux = record.config.linux.get_or_insert_default();
    let old = linux.resources.take().unwrap_or_default();
    linux.resources = Some(planner::merge_resources(&old, new));
    // The record is written first: without disk space for it, the limits must not change.
    let staged = record.stage(path)?;
    if let Some(cgroup) = container.cgroup() {
        // A score that stays as it is leaves alone the processes that have chosen theirs.
        let score = planner::oom_score(new).filter(|score| planner::oom_score(&old) != Some(*score));
        let limits = planner::limits(resources)?;
        change_limits(cgroup, &limits, score).stage("changing the container's limits")?;
        container.meter().forget_limits();
    }
    staged.commit().stage("recording the container")?;
    container.change_record(|now| *now = record);
    Ok(())
}

/// Changes a cgroup's limits and its processes' scores, or nothing: limits restore themselves when one is refused.
fn change_limits(cgroup: &Cgroup, limits: &Limits, score: Option<i32>) -> Result<(), wharf_cgroup::Error> {
    let old_scores = score.map(|score| cgroup.set_oom_score(score)).transpose()?;
    cgroup.update(limits).inspect_err(|_refused| old_scores.iter().for_each(OldScores::restore))
}
