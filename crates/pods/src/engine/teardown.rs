//! Stopping and removing pods, removing containers, and undoing what failed half-way. Each step is repeatable.

use std::sync::Arc;
use std::time::Duration;

use wharf_cgroup::CgroupPath;
use wharf_cri_api::v1::ContainerEventType;
use wharf_types::{ContainerId, ErrorKind, Failure, chain};

use super::create::pod_cgroup;
use super::{Engine, kill_cgroup};
use crate::container::Container;
use crate::error::{Error, Stage, blocking, known};
use crate::joins::spawn;
use crate::key::PodKey;
use crate::namespaces::unpin;
use crate::pod::Pod;
use crate::records;

impl Engine {
    /// Stops a pod: kills what runs, gives its addresses back; its containers stay listed. Unknown and stopped ones
    /// are fine.
    ///
    /// # Errors
    /// The stage that failed; the next call goes on from there.
    pub async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Some(pod) = known(self.pod(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move {
            let _order = pod.changing.lock().await;
            // Removed while this call waited for its turn: gone is stopped.
            if engine.is_gone(&pod) {
                return Ok(());
            }
            engine.stop_whole(&pod).await
        })
        .await
    }

    fn is_gone(&self, pod: &Pod) -> bool {
        !self.table.has(&pod.id)
    }

    async fn stop_whole(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        let stops = pod
            .containers()
            .into_iter()
            .map(|container| self.stop((Arc::clone(pod), container), Duration::ZERO));
        futures_util::future::try_join_all(stops).await?;
        self.pod_stopped(pod);
        self.end_supervisor(pod).await?;
        // That it was stopped is not recorded: a pod without a supervisor is, and this must work where there is no room.
        self.release(pod).await
    }

    /// Disconnects a pod from the network, and lets go its namespaces.
    async fn release(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        // A pod on the host's network has no plugin that could hang.
        let turn = (!pod.is_host_network()).then(|| self.disconnecting.acquire());
        let _turn = futures_util::future::OptionFuture::from(turn).await;
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        let released = blocking(move || engine.release_blocking(&of)).await;
        self.disconnected.notify_one();
        released
    }

    fn release_blocking(&self, pod: &Pod) -> Result<(), Error> {
        let layout = &self.parts.layout;
        *pod.network_stats() = None;
        let netns = layout.namespace(&pod.id, "net");
        if !pod.is_host_network() {
            self.parts.network.detach(&pod.id, Some(&netns)).stage("detaching the pod from the network")?;
        }
        // They may be another pod's from now on.
        pod.write_state().ips.clear();
        for kind in ["net", "ipc", "uts"] {
            unpin(&layout.namespace(&pod.id, kind))?;
        }
        unpin(&layout.older_pod_memory(&pod.id))?;
        unpin(&layout.pod_memory(&pod.id))
    }

    /// Removes a pod with all its containers; unknown ones are fine.
    ///
    /// # Errors
    /// The stage that failed; the next call goes on from there.
    pub async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Some(pod) = known(self.pod(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move {
            let _order = pod.changing.lock().await;
            if engine.is_gone(&pod) {
                return Ok(());
            }
            engine.stop_whole(&pod).await?;
            for container in pod.containers() {
                engine.remove(&pod, &container).await?;
            }
            engine.delete_pod(&pod).await?;
            if let Ok(key) = PodKey::of(&pod.config) {
                engine.pod_calls.free(&key);
            }
            engine.table.remove(&pod.id);
            engine.events.tell(ContainerEventType::ContainerDeletedEvent, pod.id.as_str(), &pod);
            Ok(())
        })
        .await
    }

    async fn delete_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        let asked = pod.config.linux.as_ref().is_some_and(|linux| !linux.cgroup_parent.is_empty());
        if !asked {
            self.remove_cgroup(pod_cgroup(&self.options.cgroup_parent, pod)?).await?;
        }
        let directory = self.parts.layout.pod(&pod.id);
        blocking(move || match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::at("removing the pod's directory", error))
            }
            _ => Ok(()),
        })
        .await
    }

    /// Removes a cgroup with what runs in it; one that is not there is fine.
    async fn remove_cgroup(&self, path: CgroupPath) -> Result<(), Error> {
        const STAGE: &str = "removing a cgroup";
        /// Its processes are gone when it is removed; the kernel may take a moment for what is left of them.
        const PATIENCE: Duration = Duration::from_secs(1);
        let cgroups = self.parts.cgroups.clone();
        let cgroup = match blocking(move || Ok(cgroups.open(&path))).await? {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.stage(STAGE)?,
        };
        kill_cgroup(&cgroup).await?;
        blocking(move || cgroup.remove(PATIENCE).stage(STAGE)).await
    }

    /// Takes back a pod that could not be made.
    pub(crate) async fn undo_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        persist("a pod that could not be made", pod.id.to_string(), move || {
            let (engine, of) = (Arc::clone(&engine), Arc::clone(&of));
            async move {
                engine.end_supervisor(&of).await?;
                engine.release(&of).await?;
                engine.delete_pod(&of).await?;
                engine.table.release(&of.id);
                Ok(())
            }
        })
        .await;
    }

    /// Removes a container, killing it if it runs; unknown ones are fine. Its log stays.
    ///
    /// # Errors
    /// The stage that failed; the next call goes on from there.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Some((pod, container)) = known(self.container(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move { engine.remove(&pod, &container).await }).await
    }

    pub(crate) async fn remove(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Arc<Container>,
    ) -> Result<(), Error> {
        // What waits for a change of it, as a start that hangs, ends with it.
        self.stop((Arc::clone(pod), Arc::clone(container)), Duration::ZERO).await?;
        let _order = container.changing.lock().await;
        // Removed while this call waited for its turn.
        if pod.container(container.id.as_str()).is_none() {
            return Ok(());
        }
        if let Ok(supervisor) = pod.connection() {
            match supervisor.remove(&container.id).await {
                // It is asked once more, or has the request and takes it later.
                Err(error)
                    if matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Unavailable) =>
                {
                    let error = chain(&error);
                    tracing::warn!(container = container.id.short(), error, "a supervisor forgets it later");
                    self.disown(pod, &supervisor, container.id.as_str());
                }
                removed => removed?,
            }
        }
        self.delete_container(pod, &container.id, &container.record().cgroup).await?;
        let _telling = pod.telling();
        if self.forget(pod, container) {
            self.events.tell(ContainerEventType::ContainerDeletedEvent, container.id.as_str(), pod);
        }
        Ok(())
    }

    /// Removes what is left of a container but its record in memory.
    async fn delete_container(
        self: &Arc<Self>,
        pod: &Pod,
        id: &ContainerId,
        cgroup: &str,
    ) -> Result<(), Error> {
        if let Ok(path) = CgroupPath::new(cgroup) {
            self.remove_cgroup(path).await?;
        }
        let (engine, id) = (Arc::clone(self), id.clone());
        let layout = &self.parts.layout;
        let (exit, record) = (layout.exit_record(&pod.id, &id), layout.container_record(&pod.id, &id));
        let spec = layout.container_spec(&pod.id, &id);
        blocking(move || {
            engine.parts.snapshots.remove(&id).stage("removing the container's files")?;
            for file in [&exit, &spec] {
                wharf_state::record::remove(file).stage("removing the container's records")?;
            }
            // The record goes last: it is what a new daemon finds the rest by.
            wharf_state::record::remove(&record).stage("removing the container's records")
        })
        .await
    }

    /// Takes back a container that an earlier daemon left half made.
    pub(crate) fn take_back_container(self: &Arc<Self>, pod: &Arc<Pod>, container: &Container) {
        tracing::warn!(container = container.id.short(), "a container that was left half made is taken back");
        self.forget(pod, container);
        let (engine, pod, id) = (Arc::clone(self), Arc::clone(pod), container.id.clone());
        tokio::spawn(async move { engine.undo_container(&pod, &id).await });
    }

    /// Takes back a container that could not be made. The supervisor forgets it once its first process is gone.
    pub(crate) async fn undo_container(self: &Arc<Self>, pod: &Arc<Pod>, id: &ContainerId) {
        let (engine, of, which) = (Arc::clone(self), Arc::clone(pod), id.clone());
        persist("a container that could not be made", id.to_string(), move || {
            let (engine, of, which) = (Arc::clone(&engine), Arc::clone(&of), which.clone());
            async move {
                // The record knows best: where the pod's own cannot be read, its cgroup's parent is not known.
                let path = engine.parts.layout.container_record(&of.id, &which);
                let cgroup = match blocking(move || Ok(records::load_container(&path))).await? {
                    Ok(record) => record.cgroup,
                    Err(_none_yet) => engine.container_cgroup(&of, &which)?.to_string(),
                };
                engine.delete_container(&of, &which, &cgroup).await
            }
        })
        .await;
    }
}

/// The longest pause between two attempts to take something away.
const PAUSE_LIMIT: Duration = Duration::from_mins(1);

/// Takes something away; if that fails, again and again in the background, until the daemon ends. The next one finds it.
async fn persist<F>(what: &'static str, id: String, attempt: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let Err(error) = attempt().await else { return };
    tracing::warn!(id, error = chain(&error), "{what} has left something behind for now");
    tokio::spawn(async move {
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(pause).await;
            if attempt().await.is_ok() {
                tracing::info!(id, "{what} has left nothing any more");
                return;
            }
            pause = (pause * 2).min(PAUSE_LIMIT);
        }
    });
}
