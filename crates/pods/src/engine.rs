//! All pods of the node, and the calls that find or list them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, broadcast};
use wharf_cgroup::{Cgroup, Cgroups};
use wharf_cri_api::v1::{ContainerEventResponse, ContainerEventType};
use wharf_images::Store;
use wharf_network::Network;
use wharf_snapshots::Snapshots;
use wharf_state::Layout;
use wharf_types::{ContainerId, PodId, chain};

use crate::container::{Container, InPod};
use crate::error::{Error, Stage, blocking};
use crate::events::Events;
use crate::exec_sync::Commands;
use crate::joins::Joins;
use crate::launch::Program;
use crate::logs::Logs;
use crate::pod::Pod;
use crate::seccomp::Seccomp;

mod create;
mod lifecycle;
mod run;
mod supervision;
mod supervisor;
mod teardown;

pub(crate) use create::{container, container_key, pod_cgroup};
pub(crate) use run::pod_key;
pub(crate) use supervision::Reached;

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
/// How long killed processes may take to be gone.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// All pods.
#[derive(Debug)]
pub struct Engine {
    pub(crate) options: Options,
    pub(crate) parts: Parts,
    pub(crate) program: Program,
    pub(crate) seccomp: Seccomp,
    pub(crate) commands: Commands,
    pub(crate) logs: Logs,
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
        use std::os::unix::fs::DirBuilderExt;
        let program = Program::load(&parts.supervisor).stage("loading the supervisor's program")?;
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(parts.layout.pods())
            .stage("making the state directory")?;
        let bounding = wharf_sys::capabilities::bounding().stage("reading this process's capabilities")?;
        Ok(Arc::new(Self {
            options,
            parts,
            program,
            seccomp: Seccomp::default(),
            commands: Commands::default(),
            logs: Logs::default(),
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

    /// No later pod is older than this one, which an earlier daemon made.
    pub(crate) fn was_created(&self, created_at_ns: i64) {
        self.last_created_ns.fetch_max(created_at_ns, std::sync::atomic::Ordering::Relaxed);
    }

    /// Every pod, in the order of ids.
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
        let container = pod.container(key.as_str());
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

    /// Makes a container known that was just made.
    pub(crate) async fn publish(self: &Arc<Self>, pod: &Arc<Pod>, container: &Arc<Container>) {
        let early = {
            let _order = pod.telling();
            let mut making = pod.making();
            self.insert(pod, container);
            self.events.tell(ContainerEventType::ContainerCreatedEvent, container.id.as_str(), pod);
            making.take().and_then(|making| making.exit)
        };
        if let Some(exit) = early {
            self.ended(pod, container, exit);
        }
        // Whoever noticed that the supervisor is gone may not have known the container yet.
        if pod.link.is_gone() && !container.is_exited() {
            self.end_unwatched(pod, container).await;
        }
    }

    pub(crate) fn insert(&self, pod: &Pod, container: &Arc<Container>) {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container.id.clone(), pod.id.clone());
        drop(containers);
        pod.insert(Arc::clone(container));
    }

    /// Makes a container unknown; false if it was not known any more.
    pub(crate) fn forget(&self, pod: &Pod, container: &Container) -> bool {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        let known = containers.remove(&container.id).is_some();
        drop(containers);
        pod.forget(&container.id);
        if known {
            self.container_calls.free(&container_key(&pod.id, &container.record()));
        }
        known
    }

    pub(crate) async fn kill_container(&self, container: &Container) -> Result<(), Error> {
        match &container.cgroup {
            Some(cgroup) => kill_cgroup(cgroup).await,
            None => Ok(()),
        }
    }
}

/// Kills every process in a cgroup, and waits until they are gone. Each attempt is short: what does not die, as it waits
/// for a disk, would else keep a thread of the pool that all others need.
///
/// # Errors
/// DeadlineExceeded if some are left after [`KILL_PATIENCE`].
pub(crate) async fn kill_cgroup(cgroup: &Cgroup) -> Result<(), Error> {
    const ATTEMPT: Duration = Duration::from_millis(100);
    const PAUSE: Duration = Duration::from_millis(400);
    let until = Instant::now() + KILL_PATIENCE;
    loop {
        let of = cgroup.clone();
        let killed = blocking(move || {
            let killed = of.kill(ATTEMPT).and_then(|()| of.await_empty(ATTEMPT));
            killed.stage("killing what runs in a cgroup")
        });
        match killed.await {
            Err(error) if Instant::now() < until => {
                tracing::debug!(error = chain(&error), "processes are killed again");
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

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
