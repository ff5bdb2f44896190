//! A pod in memory: its request, its containers, and all that the daemon has of it, such as the connection to its
//! supervisor and those who wait for what the supervisor will report.
//!
//! Nothing here changes a pod: the changes are in `engine`, and each runs alone ([`Pod::change`]), or beside others
//! that make containers ([`Pod::take_part`]). A pod is ready from
//! the moment when everything has been set up, until something is torn down or its supervisor is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::Duration;

use wharf_cgroup::Meter;
use wharf_cri_api::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};
use wharf_host::Level;
use wharf_host::namespaces::NewNamespaces;
use wharf_network::StatsSocket;
use wharf_records::PodFacts;
use wharf_state::ExitRecord;
use wharf_supervision::{Connection, Contact, ContactWatch, Process, SupervisorError, Waiters};
use wharf_types::{ContainerId, ContainerState, Exit, PodId, Timing, Timings};

use crate::container::Container;
use crate::error::{Error, StillChanging};
use crate::lock::{Mutex, RwLock};

/// How long a change waits for containers that are being made. Its caller tries again, and until then no other can be
/// made.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// A pod. Everything that lists and statuses need is here; a change in flight holds `changing`.
#[derive(Debug)]
pub struct Pod {
    id: PodId,
    /// The request, with the resources of later updates.
    config: RwLock<Arc<PodSandboxConfig>>,
    handler: String,
    created_at_ns: i64,
    /// Held by a change of the whole pod, so that changes come one after another, and shared by those that make a
    /// container.
    changing: tokio::sync::RwLock<()>,
    /// Held by a stop, which waits for no other change: whether one has succeeded, and nothing is left to stop.
    ending: tokio::sync::Mutex<bool>,
    /// Whether somebody has asked for its end: it gets no further container.
    ends: AtomicBool,
    /// Its addresses, and whether it is ready.
    state: RwLock<State>,
    /// Its containers, exited ones included, until they are removed.
    containers: RwLock<BTreeMap<ContainerId, Arc<Container>>>,
    /// The callers that wait for the exit of a command.
    execs: Waiters<Exit>,
    /// The attached clients, which are told if they did not keep up.
    attached: Waiters<()>,
    /// Reads the counters of its network; `None` where they are read without entering it, or it has none of its own.
    network_stats: Mutex<Option<StatsSocket>>,
    /// Its namespaces, until its supervisor holds them.
    unheld: Mutex<Option<Arc<NewNamespaces>>>,
    /// What earlier readings of its cgroup have shown. Held while the kernel's files are read.
    meter: Mutex<Meter>,
    contact: ContactWatch,
    /// The process of its supervisor; `None` before it was started and after it has ended.
    supervisor: Mutex<Option<Process>>,
    /// The containers that are being made, or undone because that has failed, each with its exit if that was reported
    /// before the container was known.
    making: Mutex<BTreeMap<ContainerId, Option<ExitRecord>>>,
    /// Held while something happens and is reported, so that reports are in order.
    telling: Mutex<()>,
    /// Containers whose records cannot be read, now or by this release: they are left alone until the pod is removed.
    strangers: Mutex<BTreeSet<ContainerId>>,
    timings: Timings,
    /// Its level of SELinux; not set if it was made without labels.
    level: OnceLock<Level>,
}

/// The state of a pod that changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Whether everything has been set up and nothing torn down.
    pub(crate) ready: bool,
    pub(crate) ips: Vec<std::net::IpAddr>,
}

impl Pod {
    pub(crate) fn new(id: PodId, config: PodSandboxConfig, handler: String, created_at_ns: i64) -> Self {
        Self {
            id,
            config: RwLock::new(Arc::new(config)),
            handler,
            created_at_ns,
            changing: tokio::sync::RwLock::default(),
            ending: tokio::sync::Mutex::default(),
            ends: AtomicBool::default(),
            state: RwLock::default(),
            containers: RwLock::default(),
            execs: Waiters::default(),
            attached: Waiters::default(),
            network_stats: Mutex::default(),
            unheld: Mutex::default(),
            meter: Mutex::default(),
            contact: ContactWatch::default(),
            supervisor: Mutex::default(),
            making: Mutex::default(),
            telling: Mutex::default(),
            strangers: Mutex::default(),
            timings: Timings::default(),
            level: OnceLock::new(),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &PodId {
        &self.id
    }

    /// The request, with the resources of later updates.
    #[must_use]
    pub fn config(&self) -> Arc<PodSandboxConfig> {
        Arc::clone(&self.config.read())
    }

    pub(crate) fn change_config(&self, config: PodSandboxConfig) {
        *self.config.write() = Arc::new(config);
    }

    /// The facts about it at this moment.
    #[must_use]
    pub fn facts(&self) -> PodFacts {
        PodFacts {
            id: self.id.clone(),
            config: self.config(),
            handler: self.handler.clone(),
            created_at_ns: self.created_at_ns,
            is_ready: self.is_ready(),
            ips: self.read_state().ips.clone(),
            selinux_level: self.level().map(|level| level.as_str().to_owned()),
        }
    }

    /// Its level of SELinux; `None` if it was made without labels.
    pub(crate) fn level(&self) -> Option<&Level> {
        self.level.get()
    }

    /// Gives it a level, if it is to have one, which it keeps for its whole life.
    pub(crate) fn set_level(&self, level: Option<Level>) {
        if let Some(level) = level {
            self.level.get_or_init(|| level);
        }
    }

    /// The runtime handler in its request.
    pub(crate) fn handler(&self) -> &str {
        &self.handler
    }

    /// Waits for its turn to stop the pod, which waits for no other change: what is being made may be stuck. The caller
    /// notes that it has been stopped.
    pub(crate) async fn end(&self) -> tokio::sync::MutexGuard<'_, bool> {
        self.ends.store(true, Relaxed);
        self.ending.lock().await
    }

    /// Waits for its turn to change the whole pod. See `lock` for the order.
    ///
    /// # Errors
    /// Unavailable if containers are being made or undone for too long, or another change takes too long: they may be
    /// stuck.
    pub(crate) async fn change(&self) -> Result<tokio::sync::RwLockWriteGuard<'_, ()>, Error> {
        let turn = tokio::time::timeout(TURN_PATIENCE, self.changing.write()).await;
        let made = || self.making().keys().map(ContainerId::short).collect::<Vec<_>>().join(", ");
        turn.map_err(|_late| Error::at("waiting for a turn to change the pod", StillChanging(made())))
    }

    /// Waits for its turn to make a container, beside others that do.
    pub(crate) async fn take_part(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.changing.read().await
    }

    /// How it was made; nothing if an earlier daemon made it.
    #[must_use]
    pub fn stages(&self) -> Vec<Timing> {
        self.timings.all()
    }

    /// Where its making is noted.
    pub(crate) fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Its connection to its supervisor.
    pub(crate) fn contact(&self) -> &ContactWatch {
        &self.contact
    }

    /// How wharfd stands with its supervisor, in a word; `None` if there is none.
    pub fn standing(&self) -> Option<&'static str> {
        self.contact.standing()
    }

    /// The callers that wait for the exit of a command.
    pub(crate) fn execs(&self) -> &Waiters<Exit> {
        &self.execs
    }

    /// The attached clients, which are told if they did not keep up.
    pub(crate) fn attached(&self) -> &Waiters<()> {
        &self.attached
    }

    pub(crate) fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock()
    }

    /// Notes a container whose record cannot be read: it is left alone.
    pub(crate) fn leave_alone(&self, container: ContainerId) {
        self.strangers.lock().insert(container);
    }

    /// Whether it has been set up, and nothing torn down.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.read_state().ready && !self.contact.is_gone()
    }

    /// Checks that containers can be created in it.
    pub(crate) fn check_lasts(&self) -> Result<(), Error> {
        let lasts = self.is_ready() && !self.ends.load(Relaxed);
        if lasts { Ok(()) } else { Err(self.wrong_state("not ready")) }
    }

    /// Why a container could not be made: whatever fails while the pod ends, fails for that reason.
    pub(crate) fn end_or(&self, error: Error) -> Error {
        if self.ends.load(Relaxed) { self.wrong_state("not ready") } else { error }
    }

    /// The connection to its supervisor, if it exists.
    pub(crate) fn connection(&self) -> Result<Arc<Connection>, Error> {
        match self.contact.now() {
            Contact::Up(client) => Ok(client),
            Contact::Connecting => {
                Err(Error::at("reaching the pod's supervisor", SupervisorError::NotConnected))
            }
            Contact::Gone => Err(self.wrong_state("not ready")),
        }
    }

    /// The error of a call for which it is in the wrong state.
    pub(crate) fn wrong_state(&self, state: &'static str) -> Error {
        Error::State { what: "pod sandbox", id: self.id.to_string(), state }
    }

    /// The connection to its supervisor; waits for one that is being made.
    pub(crate) async fn connected(&self) -> Result<Arc<Connection>, Error> {
        self.contact.settled().await;
        self.connection()
    }

    /// A container's state, for a decision: if it is unknown, waits for the supervisor's response.
    ///
    /// # Errors
    /// Unavailable while there is no response.
    pub(crate) async fn state_of(&self, container: &Container) -> Result<ContainerState, Error> {
        if container.known().is_none() {
            self.connected().await?;
        }
        let unknown =
            || Error::at("asking the pod's supervisor for its containers", SupervisorError::NotConnected);
        container.known().ok_or_else(unknown)
    }

    pub(crate) fn making(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Option<ExitRecord>>> {
        self.making.lock()
    }

    pub(crate) fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock()
    }

    pub(crate) fn is_stranger(&self, container: &ContainerId) -> bool {
        self.strangers.lock().contains(container)
    }

    pub(crate) fn supervisor(&self) -> MutexGuard<'_, Option<Process>> {
        self.supervisor.lock()
    }

    pub(crate) fn read_state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read()
    }

    pub(crate) fn write_state(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    pub(crate) fn unheld(&self) -> MutexGuard<'_, Option<Arc<NewNamespaces>>> {
        self.unheld.lock()
    }

    pub(crate) fn network_stats(&self) -> MutexGuard<'_, Option<StatsSocket>> {
        self.network_stats.lock()
    }

    /// Its containers, sorted by id.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.read().values().cloned().collect()
    }

    /// The container with an id, if it is in this pod.
    pub(crate) fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.containers.read().get(id).cloned()
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        let mut containers = self.containers.write();
        containers.insert(container.id().clone(), container);
    }

    pub(crate) fn forget(&self, container: &ContainerId) {
        self.containers.write().remove(container);
    }

    /// The namespaces in the request; unset ones are the pod's.
    pub(crate) fn namespaces(&self) -> NamespaceOption {
        wharf_planner::namespaces_of(&self.config())
    }

    pub(crate) fn is_host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::ContainerConfig;
    use wharf_records::ContainerRecord;
    use wharf_types::{ErrorKind, Failure as _};

    fn pod() -> Pod {
        let config = PodSandboxConfig { log_directory: "/var/log/pods/web".to_owned(), ..Default::default() };
        Pod::new(PodId::from_random([1; 32]), config, "kata".to_owned(), 7)
    }

    #[test]
    fn a_pod_is_ready_from_its_last_step_to_its_first_of_the_end() {
        let pod = pod();
        assert!(!pod.facts().is_ready);
        pod.write_state().ready = true;
        let facts = pod.facts();
        assert!(facts.is_ready);
        assert_eq!((facts.handler.as_str(), facts.created_at_ns), ("kata", 7));
        pod.contact().set(Contact::Gone);
        assert!(!pod.facts().is_ready);
    }

    #[test]
    fn a_containers_log_is_in_the_directory_of_its_pod() {
        let config = ContainerConfig { log_path: "main/0.log".to_owned(), ..Default::default() };
        let record = ContainerRecord { config, ..Default::default() };
        let container = Container::bare(&pod(), 2, record);
        assert_eq!(container.facts().log_path, "/var/log/pods/web/main/0.log");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_waits_too_long_says_for_what() {
        let pod = pod();
        let _part = pod.take_part().await;
        let why = async || pod.change().await.unwrap_err().why();
        let other =
            "another call, or the undoing of a container with its hooks, still changes it: try again; ";
        assert!(why().await.starts_with(other));
        let [one, other] = [2, 3].map(|byte| ContainerId::from_random([byte; 32]));
        pod.making().extend([(one.clone(), None), (other.clone(), None)]);
        let both = format!(
            "containers still being made, or undone with their hooks: {}, {}: try again; ",
            one.short(),
            other.short()
        );
        assert!(why().await.starts_with(&both));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_knows_is_no_answer_to_decide_by() {
        let pod = pod();
        let container = Container::unknown(&pod, 2);
        let error = pod.state_of(&container).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        container.note_start(10);
        assert_eq!(pod.state_of(&container).await.unwrap(), ContainerState::Running { started_at_ns: 10 });
    }
}
