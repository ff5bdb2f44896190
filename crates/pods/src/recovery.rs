//! What an earlier daemon left: records say what was meant, supervisors say what runs, exit records what has ended.
//! A record that cannot be understood is put aside; nothing here keeps the daemon from starting.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use wharf_cgroup::CgroupPath;
use wharf_network::StatsSocket;
use wharf_state::Layout;
use wharf_types::{ContainerId, ContainerState, Exit, PodId};
use wharf_wire::v1::{self, container_status::Phase};

use crate::container::Container;
use crate::engine::{Engine, kill_supervisor};
use crate::error::{Error, blocking};
use crate::launch::Process;
use crate::pod::Pod;
use crate::{engine as engine_parts, records};

impl Engine {
    /// Finds the pods of an earlier daemon. What belongs to none is removed by [`Engine::tidy`]: that may run plugins,
    /// which nobody knows how long.
    pub async fn recover(self: &Arc<Self>) {
        let directory = self.parts.layout.pods();
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let finds = entries.filter_map(|entry| {
            let id = entry.file_name().to_string_lossy().parse::<PodId>().ok()?;
            Some(self.recover_pod(id))
        });
        futures_util::future::join_all(finds).await;
        self.sweep().await;
    }

    async fn recover_pod(self: &Arc<Self>, id: PodId) {
        let record = match records::load_pod(&self.parts.layout.pod_record(&id)) {
            Ok(record) => record,
            Err(error) => return self.quarantine(&id, &error).await,
        };
        let phase = record.phase();
        let pod = Arc::new(Pod::new(id.clone(), record.config, record.handler, record.created_at_ns));
        let state = match phase {
            records::Phase::Making => return self.take_back(&pod).await,
            records::Phase::Made => self.reconnect(&pod).await,
            records::Phase::Stopped => None,
        };
        self.recover_containers(&pod, state.as_ref()).await;
        {
            let mut now = pod.write_state();
            now.ready = state.is_some();
            now.shim_pid = state.map_or(0, |state| state.pid);
            now.ips = self.parts.network.addresses(&id).map(|addresses| addresses.ips).unwrap_or_default();
        }
        if pod.is_ready() && !pod.is_host_network() {
            *pod.network_stats() = StatsSocket::open(&self.parts.layout.namespace(&id, "net")).ok();
        }
        if let Ok(key) = engine_parts::pod_key(&pod.config) {
            self.pod_calls.remember(key, id.clone());
        }
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(id, pod);
    }

    async fn reconnect(self: &Arc<Self>, pod: &Arc<Pod>) -> Option<v1::State> {
        let path = Layout::supervisor_socket(&self.parts.layout.pod(&pod.id));
        let socket = wharf_sys::socket::connect(&path).ok()?;
        let peer = getsockopt(&socket, PeerCredentials).ok()?;
        *pod.supervisor() = Some(Process::adopt(peer.pid()).ok()?);
        let client = self.connect(pod, socket).ok()?;
        let state = self.greet(&client).await;
        if state.is_none() {
            pod.write_state().client = None;
            kill_supervisor(pod);
        }
        state
    }

    async fn recover_containers(self: &Arc<Self>, pod: &Arc<Pod>, state: Option<&v1::State>) {
        let found = state.map(|state| &state.containers[..]).unwrap_or_default();
        for id in self.recorded_containers(&pod.id) {
            let status = found.iter().find(|status| status.id == id.as_str());
            match self.recover_container(pod, &id, status) {
                // Nobody watches over its processes any more, or it has none.
                Ok(container) if state.is_none() => self.kill_cgroup(&container).await,
                Ok(_watched) => {}
                Err(error) => {
                    tracing::warn!(pod = pod.id.short(), container = id.short(), %error, "a container is taken back");
                    if !matches!(error, Error::State { .. }) {
                        self.put_aside(&self.parts.layout.container_record(&pod.id, &id), id.as_str());
                    }
                    self.undo_container(pod, &id).await;
                }
            }
        }
    }

    fn recover_container(
        &self,
        pod: &Arc<Pod>,
        id: &ContainerId,
        status: Option<&v1::ContainerStatus>,
    ) -> Result<Arc<Container>, Error> {
        let record = records::load_container(&self.parts.layout.container_record(&pod.id, id))?;
        let state = match (self.exit_on_disk(pod, id), status.map(v1::ContainerStatus::phase)) {
            (Some(exit), _) => ContainerState::Exited {
                started_at_ns: exit.started_at_ns,
                finished_at_ns: exit.finished_at_ns,
                exit: exit.exit,
                message: record.message.clone(),
            },
            (None, Some(Phase::Running)) => {
                ContainerState::Running { started_at_ns: status.map_or(0, |status| status.started_at_ns) }
            }
            (None, Some(Phase::Created | Phase::Starting)) => ContainerState::Created,
            // Nobody acknowledged it: the call that made it failed with its daemon.
            (None, Some(Phase::Unknown | Phase::Exited) | None) if record.groups.is_empty() => {
                return Err(Error::State { what: "container", id: id.to_string(), state: "half made" });
            }
            (None, _) => ContainerState::Exited {
                started_at_ns: 0,
                finished_at_ns: wharf_sys::clock::now_ns(),
                exit: Exit::Lost,
                message: "its supervisor died and nobody saw how it ended".to_owned(),
            },
        };
        let path = CgroupPath::new(&record.cgroup).map_err(|error| Error::invalid("cgroup", error))?;
        let cgroup = self.parts.cgroups.open(&path).ok();
        self.container_calls.remember(engine_parts::container_key(&pod.id, &record), id.clone());
        let hold = record.image_id.parse().ok().and_then(|image| self.parts.images.hold(&image));
        let container = engine_parts::container(pod, id, record, cgroup, state);
        let container = Arc::new(Container { _hold: hold, ..container });
        *container.pid.write().unwrap_or_else(PoisonError::into_inner) =
            status.map_or(0, |status| status.pid);
        self.insert(pod, &container);
        Ok(container)
    }

    async fn quarantine(self: &Arc<Self>, id: &PodId, error: &Error) {
        let pod = Arc::new(Pod::new(id.clone(), Default::default(), String::new(), 0));
        let record = self.parts.layout.pod_record(id);
        // Without one a crash came before it was written: there is nothing to look at.
        if record.exists() {
            tracing::warn!(pod = id.short(), %error, "a pod is taken back");
            self.put_aside(&record, id.as_str());
        }
        self.take_back(&pod).await;
    }

    /// Keeps a record that cannot be understood for a person to look at.
    fn put_aside(&self, record: &Path, name: &str) {
        let directory = self.parts.layout.quarantine();
        let kept =
            std::fs::create_dir_all(&directory).and_then(|()| std::fs::rename(record, directory.join(name)));
        match kept {
            Ok(()) => {
                tracing::warn!(name, directory = %directory.display(), "a damaged record was put aside")
            }
            Err(error) => tracing::warn!(name, %error, "a damaged record could not be kept"),
        }
    }

    /// Removes the containers of a pod that nobody can have use of, with its supervisor if that can be reached. The pod
    /// itself waits for [`Engine::tidy`].
    async fn take_back(self: &Arc<Self>, pod: &Arc<Pod>) {
        self.reconnect(pod).await;
        for container in self.recorded_containers(&pod.id) {
            self.undo_container(pod, &container).await;
        }
        self.unlisted().insert(pod.id.clone());
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(pod));
    }

    fn recorded_containers(&self, pod: &PodId) -> Vec<ContainerId> {
        let entries = std::fs::read_dir(self.parts.layout.container_records(pod)).into_iter().flatten();
        entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
    }

    /// Removes leases, links and snapshots that belong to no pod.
    async fn sweep(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        let swept = blocking(move || {
            // No pod is in the making yet.
            let listed = engine.pods().iter().map(|pod| pod.id.clone()).collect();
            engine.parts.network.reconcile_bridge(&listed);
            let known: Vec<ContainerId> =
                engine.containers().iter().map(|container| container.id.clone()).collect();
            let snapshots = engine.parts.snapshots.list().unwrap_or_default();
            for id in snapshots.into_iter().filter(|id| !known.contains(id)) {
                engine
                    .parts
                    .snapshots
                    .remove(&id)
                    .map_err(|error| Error::internal("sweeping snapshots", error))?;
            }
            Ok(())
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "something of an earlier daemon may be left");
        }
    }
}
