//! Removing a container, or undoing one that could not be made. Each step can be repeated.
//!
//! What is left of a container goes first, and its record last, because whoever continues after a failure or a crash
//! finds the rest by it. That its hooks for the end have been executed is noted: only those of a daemon that was ended
//! meanwhile are executed again. The log of a container that was made is the kubelet's.

use std::sync::Arc;
use std::time::Duration;

use wharf_cgroup::CgroupPath;
use wharf_cri_api::v1::ContainerEventType;
use wharf_host::{self as host, Hooked, HooksOf};
use wharf_nri::api::Event;
use wharf_records::{ContainerRecord, remove_container};
use wharf_supervision::remove_cgroup;
use wharf_tasks::{persist, spawn};
use wharf_types::{ContainerId, ErrorKind, Failure, chain};

use super::{Engine, Parts};
use crate::container::Container;
use crate::error::{Error, Stage, blocking, known};
use crate::pod::Pod;

impl Engine {
    pub(super) async fn remove_cgroup(&self, path: CgroupPath) -> Result<(), Error> {
        Ok(remove_cgroup(self.parts.cgroups.clone(), path).await?)
    }

    /// Removes the cgroup of a container that has ended, in the background. Otherwise what it has in the page cache
    /// would stay charged to it, and whoever lists cgroups, such as cAdvisor, would take it for one that runs. If this
    /// fails, the cgroup goes with the container.
    pub(super) fn end_cgroup(self: &Arc<Self>, container: &Arc<Container>) {
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let _order = container.change().await;
            let Ok(path) = CgroupPath::new(&container.record().cgroup) else { return };
            if let Err(error) = engine.remove_cgroup(path).await {
                let (id, error) = (container.id().short(), chain(&error));
                tracing::debug!(container = id, error, "a cgroup stays until its container is removed");
            }
        });
    }

    /// Removes a container, and kills it if it runs; an unknown one is success. Its log stays.
    ///
    /// # Errors
    /// The stage that failed; the next call continues from there.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Some((pod, container)) = known(self.container(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move { engine.remove(&pod, &container).await }).await
    }

    pub(super) async fn remove(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Arc<Container>,
    ) -> Result<(), Error> {
        // Any call that holds up a change of the container, such as a start that hangs, ends with it.
        let id = container.id();
        let name = id.as_str();
        self.stop((pod.clone(), container.clone()), Duration::ZERO).await?;
        let _order = container.change().await;
        // It was removed while this call waited for its turn.
        if pod.container(name).is_none() {
            return Ok(());
        }
        self.tell(Event::RemoveContainer, pod, Some(container)).await?;
        if let Ok(supervisor) = pod.connection()
            && let Err(error) = supervisor.remove(id).await
        {
            if !matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Unavailable) {
                return Err(error.into());
            }
            // It will be asked again, or it has the request and handles it later.
            tracing::warn!(
                container = id.short(),
                error = chain(&error),
                "the pod's supervisor will remove the container later"
            );
            self.disown(pod, &supervisor, name);
        }
        self.delete(pod, id).await?;
        let _telling = pod.telling();
        self.parts.plugins.forget_container(id);
        if self.table.remove_container(pod, container) {
            self.events.tell(ContainerEventType::ContainerDeletedEvent, name, pod);
        }
        Ok(())
    }

    /// Deletes a container, or joins who does: attempts go on until one succeeds, and other calls come meanwhile. It
    /// would end with its last caller, so each is in a task of its own, which nobody cancels.
    pub(super) async fn delete(self: &Arc<Self>, pod: &Arc<Pod>, id: &ContainerId) -> Result<(), Error> {
        let (engine, pod, own) = (Arc::clone(self), Arc::clone(pod), id.clone());
        let work = || async move { engine.delete_container(&pod, &own).await };
        self.deletions.share(id.clone(), work).await
    }

    /// Removes everything of a container except its listing in memory.
    async fn delete_container(self: &Arc<Self>, pod: &Arc<Pod>, id: &ContainerId) -> Result<(), Error> {
        let record = self.recorded(pod, id).await?;
        if let Ok(path) = CgroupPath::new(&record.cgroup) {
            self.remove_cgroup(path).await?;
        }
        // Nothing of it is left but files.
        let hooked = self.hooked(pod, id, &record, 0);
        hooked.clone().execute(HooksOf::End, pod.id(), Hooked::end).await?;
        self.blocking(pod, move |engine, pod| {
            let (Parts { layout, snapshots, .. }, of, id) = (&engine.parts, pod.id(), &hooked.id);
            hooked.remove_bundle()?;
            engine.options.handlers.delete(pod.handler(), (layout, of, id));
            snapshots.remove(id).stage("removing the container's files")?;
            Ok(remove_container(layout, of, id)?)
        })
        .await
    }

    /// A container's hooks; `pid` is its first process, or 0.
    pub(super) fn hooked(&self, pod: &Pod, id: &ContainerId, record: &ContainerRecord, pid: i32) -> Hooked {
        let bundle = self.parts.layout.bundle(pod.id(), id);
        Hooked { hooks: record.hooks.clone(), id: id.clone(), pid, bundle }
    }

    /// Undoes a container that an earlier daemon left half made.
    pub(super) fn undo_half_made(self: &Arc<Self>, pod: &Arc<Pod>, container: &Container) {
        tracing::warn!(container = container.id().short(), "removing a container that was left half made");
        self.table.remove_container(pod, container);
        self.undo_found(pod, container.id().clone());
    }

    /// Undoes a container of an earlier daemon, in the background, because its hooks may take minutes.
    pub(super) fn undo_found(self: &Arc<Self>, pod: &Arc<Pod>, id: ContainerId) {
        let (engine, pod) = (Arc::clone(self), Arc::clone(pod));
        tokio::spawn(async move {
            // The pod's removal waits for it.
            let _order = pod.take_part().await;
            engine.undo_container(&pod, &id).await;
        });
    }

    /// Undoes a container that could not be made. The supervisor forgets it once its first process has exited.
    pub(super) async fn undo_container(self: &Arc<Self>, pod: &Arc<Pod>, id: &ContainerId) {
        // Once: later, its successor may have the same log.
        self.remove_unused_log(pod, id).await;
        let (engine, of, own) = (Arc::clone(self), Arc::clone(pod), id.clone());
        persist("a container that could not be made", id.to_string(), move || {
            let (engine, pod, id) = (Arc::clone(&engine), Arc::clone(&of), own.clone());
            async move { engine.delete(&pod, &id).await }
        })
        .await;
        // It was in the making until now. Who reports an exit from now on is told to forget it.
        let ended = pod.making().remove(id).flatten();
        if let (Some(_exit), Ok(supervisor)) = (ended, pod.connection()) {
            self.disown(pod, &supervisor, id.as_str());
        }
    }

    /// The record of a container that is to be deleted. It has the right path of the cgroup: if the pod's own record
    /// cannot be read, the parent is unknown. Of one whose record cannot be used, the saved spec has the hooks for the
    /// end. If that cannot be read for now, the caller's attempt fails.
    async fn recorded(&self, pod: &Pod, id: &ContainerId) -> Result<ContainerRecord, Error> {
        if let Some(container) = pod.container(id.as_str()) {
            return Ok(container.record());
        }
        let layout = &self.parts.layout;
        let (path, spec) = (layout.container_record(pod.id(), id), layout.container_spec(pod.id(), id));
        let hooks = move |why: &_| host::hooks_of_saved(&spec, why);
        let mut record = blocking(move || Ok(ContainerRecord::load_to_remove(&path, hooks)?)).await?;
        if record.cgroup.is_empty() {
            record.cgroup = self.container_cgroup(pod, id)?.to_string();
        }
        Ok(record)
    }

    /// Removes the log that was made for a container that is undone: the kubelet counts a container's starts by its
    /// logs. If the call was repeated meanwhile, it is the log of another one.
    async fn remove_unused_log(&self, pod: &Pod, id: &ContainerId) {
        let Ok(record) = self.recorded(pod, id).await else { return };
        let (directory, name) = (pod.config().log_directory.clone(), record.config.log_path.clone());
        let has_it = |other: &Arc<Container>| other.with_config(|config| config.log_path == name);
        if pod.containers().iter().any(has_it) {
            return;
        }
        // The disk may carry it out when that log is already another one's.
        let made_ns = record.created_at_ns..wharf_sys::clock::now_ns();
        let removing = self.logs.begin(move || host::remove_unused_log(&directory, &name, &made_ns));
        if let Ok(Some(Err(error))) = self.logs.end(removing).await {
            tracing::debug!(container = id.short(), error = chain(&error), "an unused log may be left");
        }
    }
}
