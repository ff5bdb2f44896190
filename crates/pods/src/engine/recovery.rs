//! Recovery of what an earlier daemon left: records say what was intended, supervisors say what runs, exit records say
//! what has ended.
//!
//! A damaged record is kept in the quarantine, and its pod or container is undone. A record of a newer release is left
//! as it is and listed; if it cannot be read, everything that belongs to it is left alone, a container until its pod is
//! removed. The wait for a supervisor that does not respond, or for a process that does not die, is in the background:
//! until then the containers count as running. Nothing here keeps the daemon from starting.

use std::path::Path;
use std::sync::Arc;

use wharf_cgroup::CgroupPath;
use wharf_network::StatsSocket;
use wharf_planner::ContainerKey;
use wharf_records::{ContainerRecord, Phase, PodRecord, Unreadable, exit_at, recorded_containers};
use wharf_state::records::{Quarantine, ids};
use wharf_types::{ContainerId, ErrorKind, Failure as _, PodId, chain};

use super::Engine;
use crate::container::{Belongings, Container, Layers};
use crate::error::{Error, Stage, blocking};
use crate::pod::Pod;
use crate::table::LeftBehind;

/// A container's record, as it was found.
type Found = (ContainerId, Result<ContainerRecord, Unreadable>);

impl Engine {
    /// Finds the pods of an earlier daemon, and removes the snapshots, links and leases that belong to none. Whatever
    /// else belongs to none is left to [`Engine::tidy`], because removing it may run plugins, which take an unknown
    /// time.
    ///
    /// # Errors
    /// The pods cannot be listed. Then nothing may be removed, because it may be a running pod's.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        let directory = self.parts.layout.pods();
        let ids = blocking(move || ids::<PodId>(&directory).stage("listing the pods")).await?;
        futures_util::future::join_all(ids.into_iter().map(|id| self.recover_pod(id))).await;
        self.sweep().await;
        Ok(())
    }

    async fn recover_pod(self: &Arc<Self>, id: PodId) {
        let (engine, own) = (Arc::clone(self), id.clone());
        let found = blocking(move || {
            let record = PodRecord::load(&engine.parts.layout.pod_record(&own));
            Ok((record, engine.find_containers(&own)?))
        });
        let (record, containers) = match found.await {
            Ok(found) => found,
            Err(error) => return self.leave_alone(id, &error),
        };
        match record {
            Ok(record) if record.phase() == Phase::Making => {
                let pod = Pod::new(id, record.config, record.handler, record.created_at_ns);
                self.leave_behind(pod, containers);
            }
            Ok(record) => self.recover_made(id, record, containers).await,
            Err(Unreadable::Damaged(error)) => self.quarantine(id, &error.into(), containers).await,
            Err(Unreadable::LeftAlone(error)) => {
                self.leave_alone(id, &error.into());
            }
        }
    }

    fn leave_alone(&self, id: PodId, error: &Error) {
        tracing::warn!(
            pod = id.short(),
            error = chain(error),
            "a pod's records cannot be used now: the pod is left alone and not listed"
        );
        self.table.reserve(id);
    }

    async fn recover_made(self: &Arc<Self>, id: PodId, record: PodRecord, containers: Vec<Found>) {
        self.table.was_created(record.created_at_ns);
        let pod = Arc::new(Pod::new(id, record.config, record.handler, record.created_at_ns));
        pod.set_level(record.selinux_level.map(|level| self.selinux.level_had(&level)));
        for (container, record) in containers {
            self.recover_container(&pod, container, record).await;
        }
        self.look_around(&pod).await;
        let reached = self.reach(&pod).await;
        if let Ok(None) = reached {
            let ended = self.blocking(&pod, |engine, pod| {
                Ok(engine.program.end_unreachable(&engine.parts.layout.pod(pod.id()))?)
            });
            if let Err(error) = ended.await {
                tracing::warn!(pod = pod.id().short(), error = chain(&error), "a supervisor may be left");
            }
        }
        self.watch_over(&pod, reached.ok().flatten());
        pod.contact().settled().await;
        self.table.insert_found(pod);
    }

    /// Asks the kernel and the network about a pod that was made.
    async fn look_around(self: &Arc<Self>, pod: &Arc<Pod>) {
        let looked = self.blocking(pod, |engine, pod| {
            let found = engine.find_addresses(pod).map(|ips| pod.write_state().ips = ips);
            pod.write_state().ready = true;
            if !pod.is_host_network() {
                let netns = engine.parts.layout.namespace(pod.id(), "net");
                *pod.network_stats() = StatsSocket::pinned(&netns).stage("counting the pod's traffic")?;
            }
            found
        });
        if let Err(error) = looked.await {
            let (pod, error) = (pod.id().short(), chain(&error));
            tracing::warn!(pod, error, "some facts about a pod could not be read");
        }
    }

    async fn recover_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        id: ContainerId,
        record: Result<ContainerRecord, Unreadable>,
    ) {
        let error = match record {
            Ok(record) => match self.remember_container(pod, &id, record).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(Unreadable::Damaged(error)) => error.into(),
            Err(Unreadable::LeftAlone(error)) => {
                tracing::warn!(
                    container = id.short(),
                    error = chain(&error),
                    "a container's record cannot be used now: the container is left alone and not listed"
                );
                pod.leave_alone(id);
                return;
            }
        };
        let (of, container, error) = (pod.id().short(), id.short(), chain(&error));
        tracing::warn!(pod = of, container, error, "removing a container without a usable record");
        self.put_aside(self.parts.layout.container_record(pod.id(), &id), id.to_string()).await;
        self.undo_found(pod, id);
    }

    /// Lists a container: as exited if its exit record is on disk, otherwise as running until its supervisor reports.
    async fn remember_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        id: &ContainerId,
        record: ContainerRecord,
    ) -> Result<(), Error> {
        let path = CgroupPath::new(&record.cgroup).map_err(|error| Error::invalid("cgroup", error))?;
        let key = ContainerKey::of(pod.id(), &record.config)?;
        self.table.was_created(record.created_at_ns);
        let own = id.clone();
        let found = self.blocking(pod, move |engine, pod| Ok(engine.find(pod, own, record, &path)));
        let container = Arc::new(found.await?);
        self.table.insert_found_container(pod, key, &container);
        if container.is_exited() && container.cgroup().is_some() {
            self.end_cgroup(&container);
        }
        Ok(())
    }

    /// Builds a container from what is left of it on disk and in the kernel.
    fn find(&self, pod: &Pod, id: ContainerId, record: ContainerRecord, cgroup: &CgroupPath) -> Container {
        // A disk that fails is asked again before the container counts as lost.
        let exit = exit_at(&self.parts.layout.exit_record(pod.id(), &id)).unwrap_or_default();
        let cgroup = self.parts.cgroups.open(cgroup).inspect_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                let (container, error) = (id.short(), chain(error));
                tracing::warn!(container, error, "a container's cgroup cannot be used");
            }
        });
        let cgroup = cgroup.ok().map(|cgroup| record.of_cgroup(cgroup));
        let images = Arc::clone(&self.parts.images);
        let layers = images.lease_paths(record.layers.iter().map(Path::new));
        let layers = Layers::leased(&id, vec![layers], images);
        Container::found(pod, id, record, exit, Belongings { cgroup, layers })
    }

    async fn quarantine(self: &Arc<Self>, id: PodId, error: &Error, containers: Vec<Found>) {
        tracing::warn!(pod = id.short(), error = chain(error), "removing a pod without a usable record");
        self.put_aside(self.parts.layout.pod_record(&id), id.to_string()).await;
        self.leave_behind(Pod::new(id, Default::default(), String::new(), 0), containers);
    }

    /// Keeps a damaged record in the quarantine. It also stays where it is until what it meant is undone: by it, the
    /// sweep and the next daemon know of the rest. If there is none, the crash came before it was written.
    async fn put_aside(&self, record: std::path::PathBuf, name: String) {
        let quarantine = Quarantine::new(self.parts.layout.quarantine());
        let kept = blocking(move || quarantine.keep(&record, name).stage("keeping a damaged record"));
        match kept.await {
            Ok(Some(place)) => tracing::warn!(place = %place.display(), "a damaged record was kept"),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = chain(&error), "a damaged record could not be kept"),
        }
    }

    /// Leaves it to [`Engine::tidy`] to undo a pod that nobody can use, with its supervisor and its containers.
    fn leave_behind(&self, pod: Pod, containers: Vec<Found>) {
        let containers = containers.into_iter().map(|(container, _record)| container).collect();
        self.table.leave_behind(LeftBehind { pod: Arc::new(pod), containers });
    }

    fn find_containers(&self, pod: &PodId) -> Result<Vec<Found>, Error> {
        let load = |id: ContainerId| {
            let record = ContainerRecord::load(&self.parts.layout.container_record(pod, &id));
            (id, record)
        };
        Ok(recorded_containers(&self.parts.layout, pod)?.into_iter().map(load).collect())
    }

    /// Removes supervisors, leases, links and snapshots that belong to no pod.
    async fn sweep(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        let swept = blocking(move || {
            // No pod is being made yet.
            let layout = &engine.parts.layout;
            let unseen = engine.program.end_orphans(&layout.pods());
            if !unseen.is_empty() {
                // What looks as if it belonged to nobody may be theirs.
                unseen.into_iter().for_each(|pod| engine.table.reserve(pod));
                return Ok(());
            }
            engine.parts.network.reconcile_builtin(&engine.table.lasting_owners());
            let mut recorded: Vec<ContainerId> = Vec::new();
            for pod in ids::<PodId>(&layout.pods()).stage("listing the pods")? {
                recorded.extend(ids(&layout.container_records(&pod)).stage("listing a pod's containers")?);
            }
            let snapshots = engine.parts.snapshots.list().stage("listing the snapshots")?;
            for id in snapshots.into_iter().filter(|id| !recorded.contains(id)) {
                if let Err(error) = engine.parts.snapshots.remove(&id) {
                    tracing::warn!(
                        container = id.short(),
                        error = chain(&error),
                        "a snapshot that belongs to no container could not be removed"
                    );
                }
            }
            Ok(())
        });
        if let Err(error) = swept.await {
            tracing::warn!(error = chain(&error), "what an earlier daemon left could not all be removed");
        }
    }
}
