//! All pods of the node, and the calls that find or list them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{Notify, Semaphore, broadcast};
use wharf_cgroup::Cgroups;
use wharf_cri_api::v1::{ContainerEventResponse, ContainerEventType};
use wharf_images::Store;
use wharf_network::Network;
use wharf_snapshots::Snapshots;
use wharf_state::{ExitRecord, Layout};
use wharf_types::{ContainerId, ContainerState, PodId};

use crate::client::{Client, Told};
use crate::container::{Container, InPod};
use crate::error::Error;
use crate::events::Events;
use crate::exec_sync::Commands;
use crate::joins::Joins;
use crate::launch::Program;
use crate::pod::Pod;
use crate::seccomp::Seccomp;

mod create;
mod lifecycle;
mod run;
mod supervisor;
mod teardown;

pub(crate) use create::{container, container_key, pod_cgroup};
pub(crate) use run::pod_key;
pub(crate) use supervisor::kill_supervisor;

/// What can be chosen.
#[derive(Debug, Clone)]
pub struct Options {
    /// The parent of the cgroups of pods whose request names none: `/wharf`.
    pub cgroup_parent: String,
    /// Names of runtime handlers beside the default one; all are the built-in one.
    pub handlers: Vec<String>,
}

/// What the engine stands on.
#[derive(Debug)]
pub struct Parts {
    /// Every path.
    pub layout: Layout,
    /// Images.
    pub images: Arc<Store>,
    /// Writable layers.
    pub snapshots: Arc<Snapshots>,
    /// Pod networks.
    pub network: Arc<Network>,
    /// The cgroup hierarchies.
    pub cgroups: Cgroups,
    /// Where the supervisor's program is.
    pub supervisor: std::path::PathBuf,
}

/// A container's name within its pod: a retry has the same one.
pub(crate) type ContainerKey = (PodId, String, u32);
/// A pod's name on the node.
pub(crate) type PodKey = (String, String, String, u32);

/// How many threads the runtime's pool for blocking work should have.
pub const BLOCKING_THREADS: usize = 64;
/// How many pods may be connected at once, and how many disconnected: together three quarters of those threads.
const NETWORKS_AT_ONCE: usize = BLOCKING_THREADS * 3 / 8;

/// All pods.
#[derive(Debug)]
pub struct Engine {
    pub(crate) options: Options,
    pub(crate) parts: Parts,
    pub(crate) program: Program,
    pub(crate) seccomp: Seccomp,
    pub(crate) commands: Commands,
    pub(crate) events: Events,
    pub(crate) bounding: u64,
    pub(crate) pods: RwLock<BTreeMap<PodId, Arc<Pod>>>,
    /// Pods that are being made or taken back: what they have is theirs, though they are not listed.
    unlisted: Mutex<HashSet<PodId>>,
    /// Pods of an earlier daemon that [`Engine::tidy`] has to take back.
    pub(crate) found: Mutex<Vec<Arc<Pod>>>,
    pub(crate) containers: RwLock<HashMap<ContainerId, PodId>>,
    /// For pods that are being connected, and for those that are being disconnected: plugins of the network may hang, each
    /// with a thread of the bounded pool, which all others need too.
    pub(crate) connecting: Semaphore,
    pub(crate) disconnecting: Semaphore,
    /// Told when a pod's namespaces have been let go.
    pub(crate) disconnected: Notify,
    pub(crate) pod_calls: Joins<PodKey, PodId>,
    pub(crate) container_calls: Joins<ContainerKey, ContainerId>,
    last_created_ns: AtomicI64,
}

impl Engine {
    /// Makes an engine without pods; [`Engine::recover`] finds those of an earlier daemon.
    ///
    /// # Errors
    /// The supervisor's program cannot be read, or the state directory cannot be made.
    pub fn new(options: Options, parts: Parts) -> Result<Arc<Self>, Error> {
        use crate::error::Stage;
        use std::os::unix::fs::DirBuilderExt;
        let program = Program::load(&parts.supervisor).map_err(|error| Error::Stage {
            stage: "loading the supervisor",
            message: format!("{}: {error}", parts.supervisor.display()),
            kind: wharf_types::ErrorKind::Internal,
        })?;
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(parts.layout.pods())
            .stage("making the state directory")?;
        let bounding =
            wharf_sys::process::bounding_capabilities().stage("reading this process's capabilities")?;
        Ok(Arc::new(Self {
            options,
            parts,
            program,
            seccomp: Seccomp::default(),
            commands: Commands::default(),
            events: Events::new(),
            bounding,
            pods: RwLock::default(),
            unlisted: Mutex::default(),
            found: Mutex::default(),
            connecting: Semaphore::new(NETWORKS_AT_ONCE),
            disconnecting: Semaphore::new(NETWORKS_AT_ONCE),
            disconnected: Notify::new(),
            containers: RwLock::default(),
            pod_calls: Joins::new(),
            container_calls: Joins::new(),
            last_created_ns: AtomicI64::new(0),
        }))
    }

    /// A time that is later than every one given before, also where the clock stands still or goes back.
    pub(crate) fn creation_time(&self) -> i64 {
        use std::sync::atomic::Ordering::Relaxed;
        let now = wharf_sys::clock::now_ns();
        let next = |last: i64| Some(now.max(last + 1));
        self.last_created_ns.fetch_update(Relaxed, Relaxed, next).map_or(now, |last| now.max(last + 1))
    }

    /// Every pod, oldest id first.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn unlisted(&self) -> MutexGuard<'_, HashSet<PodId>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every container.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.pods().iter().flat_map(|pod| pod.containers()).collect()
    }

    /// The pod of an id or of a unique beginning of one.
    ///
    /// # Errors
    /// NotFound; InvalidArgument if the beginning is not unique.
    pub fn pod(&self, id: &str) -> Result<Arc<Pod>, Error> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let found = unique("pod sandbox", id, pods.iter().map(|(key, pod)| (key.as_str(), pod)))?;
        Ok(Arc::clone(found))
    }

    /// The container of an id or of a unique beginning of one, with its pod.
    ///
    /// # Errors
    /// NotFound; InvalidArgument if the beginning is not unique.
    pub fn container(&self, id: &str) -> Result<InPod, Error> {
        let missing = || Error::NotFound { what: "container", id: id.to_owned() };
        let (key, pod) = {
            let containers = self.containers.read().unwrap_or_else(PoisonError::into_inner);
            match containers.get_key_value(id) {
                Some((key, pod)) => (key.clone(), pod.clone()),
                None => {
                    let all = containers.iter().map(|pair| (pair.0.as_str(), pair));
                    let (key, pod) = unique("container", id, all)?;
                    (key.clone(), pod.clone())
                }
            }
        };
        let pod = self.pod(pod.as_str())?;
        let container = pod.containers.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        Ok((pod, container.ok_or_else(missing)?))
    }

    /// Lifecycle events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }

    /// Ends what listeners hear: the daemon is about to end.
    pub fn end_events(&self) {
        self.events.end();
    }

    /// Takes a supervisor's connection for a pod, and listens to what it tells.
    pub(crate) fn connect(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        socket: std::os::fd::OwnedFd,
    ) -> Result<Arc<Client>, Error> {
        let (client, mut told) = Client::new(socket)?;
        let client = Arc::new(client);
        pod.write_state().client = Some(Arc::clone(&client));
        let (engine, pod, of) = (Arc::clone(self), Arc::clone(pod), Arc::downgrade(&client));
        tokio::spawn(async move {
            while let Some(told) = told.recv().await {
                match told {
                    Told::Event(event) => engine.note(&pod, event),
                    Told::Gone => {
                        engine.supervisor_gone(&pod, &of).await;
                        break;
                    }
                }
            }
        });
        Ok(client)
    }

    /// Makes a container known.
    pub(crate) fn insert(&self, pod: &Pod, container: &Arc<Container>) {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container.id.clone(), pod.id.clone());
        drop(containers);
        pod.insert(Arc::clone(container));
        // What the supervisor told before that was of nobody.
        if let Some(exit) = self.exit_on_disk(pod, &container.id) {
            container.note_exit(exit);
        }
    }

    fn note(&self, pod: &Arc<Pod>, event: wharf_wire::v1::message::Body) {
        use wharf_wire::v1::message::Body;
        match event {
            Body::ContainerExited(exited) => {
                let containers = pod.containers.read().unwrap_or_else(PoisonError::into_inner);
                let container = containers.get(exited.container.as_str()).cloned();
                drop(containers);
                let Some(container) = container else { return };
                let told = ExitRecord {
                    exit: exited.exit.map_or(wharf_types::Exit::Lost, from_wire),
                    started_at_ns: 0,
                    finished_at_ns: exited.finished_at_ns,
                };
                // What is on disk is more, but it may be gone with the container.
                if container.note_exit(self.exit_on_disk(pod, &container.id).unwrap_or(told)) {
                    self.events.tell(ContainerEventType::ContainerStoppedEvent, container.id.as_str(), pod);
                }
            }
            Body::ExecExited(exited) => {
                pod.execs.tell(exited.exec, exited.exit.map_or(wharf_types::Exit::Lost, from_wire));
            }
            Body::Detached(detached) => pod.attached.tell(detached.attach, ()),
            Body::Reply(_) | Body::ContainerStarted(_) => {}
        }
    }

    /// The supervisor died, or was asked to: what it watched over has ended, or is ended now.
    async fn supervisor_gone(&self, pod: &Arc<Pod>, of: &std::sync::Weak<Client>) {
        {
            let mut state = pod.write_state();
            let current =
                state.client.as_ref().is_some_and(|client| std::ptr::eq(Arc::as_ptr(client), of.as_ptr()));
            if !current {
                return;
            }
            state.client = None;
        }
        pod.execs.clear();
        for container in pod.containers() {
            if container.is_exited() {
                continue;
            }
            let lost = ExitRecord {
                exit: wharf_types::Exit::Lost,
                started_at_ns: 0,
                finished_at_ns: wharf_sys::clock::now_ns(),
            };
            let exit = self.exit_on_disk(pod, &container.id).unwrap_or(lost);
            self.kill_cgroup(&container).await;
            if container.note_exit(exit) {
                self.events.tell(ContainerEventType::ContainerStoppedEvent, container.id.as_str(), pod);
            }
        }
    }

    pub(crate) fn exit_on_disk(&self, pod: &Pod, id: &ContainerId) -> Option<ExitRecord> {
        ExitRecord::load(&Layout::exits(&self.parts.layout.pod(&pod.id)).join(id.as_str())).ok()
    }

    pub(crate) async fn kill_cgroup(&self, container: &Arc<Container>) {
        let container = Arc::clone(container);
        let killed = crate::error::blocking(move || {
            let Some(cgroup) = &container.cgroup else { return Ok(()) };
            let killed = cgroup.kill(KILL_PATIENCE).and_then(|()| cgroup.await_empty(KILL_PATIENCE));
            killed.map_err(|error| Error::internal("killing the container", error))
        });
        if let Err(error) = killed.await {
            tracing::warn!(%error, "processes of a container may be left");
        }
    }
}

/// How long killed processes may take to be gone.
pub(crate) const KILL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

pub(crate) fn from_wire(exit: wharf_wire::v1::Exit) -> wharf_types::Exit {
    use wharf_wire::v1::exit::Kind;
    let value = u8::try_from(exit.value).unwrap_or(u8::MAX);
    match exit.kind() {
        Kind::Code => wharf_types::Exit::Code(value),
        Kind::Signal => wharf_types::Exit::Signal { number: value, oom: exit.oom },
        Kind::NotStarted => wharf_types::Exit::NotStarted,
        Kind::Lost => wharf_types::Exit::Lost,
    }
}

/// The one item whose id begins so.
fn unique<'a, T>(what: &'static str, id: &str, all: impl Iterator<Item = (&'a str, T)>) -> Result<T, Error> {
    let mut found = all.filter(|(key, _)| !id.is_empty() && key.starts_with(id));
    let first = found.next().ok_or_else(|| Error::NotFound { what, id: id.to_owned() })?;
    if found.next().is_some() {
        return Err(Error::Invalid {
            field: "id",
            problem: format!("{id:?} is the beginning of several ids: give more of it"),
        });
    }
    Ok(first.1)
}

/// The state of a container that an earlier daemon left.
pub(crate) fn initial(state: ContainerState) -> tokio::sync::watch::Sender<ContainerState> {
    tokio::sync::watch::Sender::new(state)
}
