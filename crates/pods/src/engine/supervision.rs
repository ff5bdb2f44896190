//! Watches a pod's supervisor from the pod's beginning to the supervisor's end: connects, reconnects whenever the
//! connection breaks, and notes what the supervisor reports. Only the process shows whether a supervisor exists, never
//! the connection. A supervisor is killed only for the end of its own pod.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use wharf_cri_api::v1::ContainerEventType;
use wharf_host::namespaces::NewNamespaces;
use wharf_network::{StatsSocket, open_netns};
use wharf_planner::can_make_interfaces;
use wharf_records::{Recovered, Word, decide, end_of, exit_or_lost, remove_left_exit};
use wharf_state::{ExitRecord, Layout};
use wharf_supervision::{Connection, Contact, KILL_PATIENCE, Process, Signal, SupervisorError, patiently};
use wharf_tasks::{CrowdLimits, Threads, persist};
use wharf_types::{ContainerId, chain};
use wharf_wire::exit_of;
use wharf_wire::v1::{self, message::Body};

use super::Engine;
use crate::container::Container;
use crate::error::{Error, Stage, blocking};
use crate::pod::Pod;

/// The first pause between two attempts to connect; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a disk that does not say how a container has ended is asked again, and how often.
const DISK_PATIENCE: Duration = Duration::from_mins(1);
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// Threads in which it is asked: one that hangs keeps so many, and none of the pool's.
pub(super) static READERS: LazyLock<Threads<()>> =
    LazyLock::new(|| Threads::new("exits", CrowdLimits { of_one: READERS_LIMIT, of_all: READERS_LIMIT }));
pub(super) const READERS_LIMIT: usize = 8;

impl Engine {
    /// Watches a pod's supervisor until it is gone; `socket` is a connection to it, if there is one.
    pub(super) fn watch_over(self: &Arc<Self>, pod: &Arc<Pod>, mut socket: Option<OwnedFd>) {
        let (engine, pod) = (Arc::clone(self), Arc::clone(pod));
        tokio::spawn(async move {
            while let Some(mut events) = engine.make_contact(&pod, socket.take()).await {
                while let Some(event) = events.recv().await {
                    engine.note(&pod, event);
                }
                pod.contact().set(Contact::Connecting);
                // Execs end with the connection of their request, and nobody reports their ends any more.
                pod.execs().clear();
            }
            engine.supervisor_gone(&pod).await;
        });
    }

    /// Connects until the supervisor has responded; `None` once it is gone.
    async fn make_contact(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        mut socket: Option<OwnedFd>,
    ) -> Option<Receiver<Body>> {
        let mut pause = FIRST_PAUSE;
        loop {
            let reached = match socket.take() {
                Some(socket) => Ok(Some(socket)),
                None if pod.contact().is_gone() => return None,
                None => self.reach(pod).await,
            };
            let process = pod.supervisor().clone();
            match self.try_contact(pod, reached, process.as_ref()).await? {
                Ok(events) => return Some(events),
                Err(error) => {
                    let error = chain(&error);
                    tracing::debug!(pod = pod.id().short(), error, "cannot connect to a pod's supervisor");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = Process::ended_if_any(process.as_ref()) => return None,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One attempt; `None` if the supervisor is gone.
    async fn try_contact(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        reached: Result<Option<OwnedFd>, Error>,
        process: Option<&Process>,
    ) -> Option<Result<Receiver<Body>, Error>> {
        match (reached, process) {
            (Ok(Some(socket)), Some(process)) => tokio::select! {
                greeted = self.greet(pod, socket) => Some(greeted),
                () = process.ended() => None,
            },
            (Ok(None), None) => None,
            (Err(error), _) => Some(Err(error)),
            (Ok(_), _) => Some(Err(Error::at("connecting", SupervisorError::Gone))),
        }
    }

    /// Connects to a pod's supervisor through its socket, and notes its process if that is not known; `None` if nobody
    /// listens.
    ///
    /// # Errors
    /// It cannot be told now.
    pub(super) async fn reach(&self, pod: &Arc<Pod>) -> Result<Option<OwnedFd>, Error> {
        let (path, pod) = (Layout::supervisor_socket(&self.parts.layout.pod(pod.id())), Arc::clone(pod));
        blocking(move || Ok(Process::reach(&path, &mut pod.supervisor())?)).await
    }

    /// Asks what the supervisor holds, however long the response takes, and adopts it.
    async fn greet(self: &Arc<Self>, pod: &Arc<Pod>, socket: OwnedFd) -> Result<Receiver<Body>, Error> {
        let (supervisor, events) = Connection::new(socket)?;
        let supervisor = Arc::new(supervisor);
        let unheld = pod.unheld().clone();
        let hold = unheld.as_deref().map(NewNamespaces::to_hold).unwrap_or_default();
        let found = patiently(pod.id(), supervisor.greet(&hold)).await?;
        *pod.unheld() = None;
        self.reconcile(pod, &supervisor, found).await;
        self.count_traffic(pod, &supervisor).await;
        pod.contact().set(Contact::Up(supervisor));
        Ok(events)
    }

    /// Opens the counters of the pod's interfaces if they are not those of `eth0` alone, which everybody can read from
    /// outside.
    pub(super) async fn count_traffic(self: &Arc<Self>, pod: &Arc<Pod>, supervisor: &Connection) {
        let is_found = pod.read_state().ready && !pod.is_host_network() && !supervisor.held().is_nothing();
        if !is_found || pod.network_stats().is_some() || self.has_eth0_alone(pod) {
            return;
        }
        let opened = match supervisor.lend(v1::Held::Network).await {
            Ok(netns) => {
                let open = move || StatsSocket::open(netns.as_fd()).stage("entering the pod's network");
                blocking(open).await
            }
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok(socket) => *pod.network_stats() = Some(socket),
            Err(error) => {
                let (pod, error) = (pod.id().short(), chain(&error));
                tracing::warn!(pod, error, "a pod's network statistics could not be read");
            }
        }
    }

    fn has_eth0_alone(&self, pod: &Pod) -> bool {
        let makes_more = |container: &Arc<Container>| container.with_config(can_make_interfaces);
        self.parts.network.counts(pod.id()) && !pod.containers().iter().any(makes_more)
    }

    /// A pod's network namespace.
    pub(super) async fn network_namespace(&self, pod: &Pod) -> Result<OwnedFd, Error> {
        let supervisor = pod.connected().await?;
        if !supervisor.held().is_nothing() {
            return Ok(supervisor.lend(v1::Held::Network).await?);
        }
        let pin = self.parts.layout.namespace(pod.id(), "net");
        blocking(move || open_netns(&pin).stage("opening the pod's network namespace")).await
    }

    /// Adopts what the supervisor reports, whatever the state of its containers was thought to be.
    async fn reconcile(self: &Arc<Self>, pod: &Arc<Pod>, supervisor: &Arc<Connection>, found: v1::State) {
        // First, because one that is being made may be listed at any moment.
        for status in found.containers.iter().filter(|status| pod.container(&status.id).is_none()) {
            if !end_of(status).is_some_and(|exit| self.note_end(pod, &status.id, exit)) {
                self.disown_unknown(pod, supervisor, &status.id);
            }
        }
        for container in pod.containers().iter().filter(|container| !container.end_is_known()) {
            let status = found.containers.iter().find(|status| status.id == container.id().as_str());
            if let Some(status) = status {
                container.set_pid(status.pid);
            }
            self.settle(pod, container, Word::Given(status)).await;
        }
    }

    /// Gives a container the state that was decided for it.
    async fn settle(self: &Arc<Self>, pod: &Arc<Pod>, container: &Arc<Container>, word: Word<'_>) {
        match decide(&container.record(), None, word) {
            Recovered::Created => container.note_created(),
            Recovered::Running { started_at_ns } => self.started(pod, container, started_at_ns),
            Recovered::Ended(exit) => self.ended(pod, container, exit),
            Recovered::Lost => self.note_lost_in_time(pod, container).await,
            Recovered::HalfMade => self.undo_half_made(pod, container),
            Recovered::Unknown => {}
        }
    }

    /// Disowns a container unless it is listed, or will be.
    pub(super) fn disown_unknown(&self, pod: &Pod, supervisor: &Arc<Connection>, id: &str) {
        // In this order: one that is made is listed before it is no longer in the making.
        let is_in_the_making = pod.making().contains_key(id);
        if !is_in_the_making && pod.container(id).is_none() {
            self.disown(pod, supervisor, id);
        }
    }

    /// Has the supervisor forget a container that belongs to nobody, because the call that made it has failed, or that
    /// is being removed: until it is, its exit record stays.
    pub(super) fn disown(&self, pod: &Pod, supervisor: &Arc<Connection>, id: &str) {
        let Ok(container) = id.parse::<ContainerId>() else { return };
        if pod.is_stranger(&container) {
            return;
        }
        let (supervisor, layout, pod) = (Arc::clone(supervisor), self.parts.layout.clone(), pod.id().clone());
        tokio::spawn(async move {
            tracing::debug!(container = container.short(), "a supervisor is asked to forget a container");
            // If it does not accept this now, it is asked again when it reports the container's exit.
            drop(supervisor.signal(&container, Signal::KillAll).await);
            if supervisor.remove(&container).await.is_ok() {
                drop(blocking(move || Ok(remove_left_exit(&layout, &pod, &container)?)).await);
            }
        });
    }

    fn note(self: &Arc<Self>, pod: &Arc<Pod>, event: Body) {
        match event {
            Body::ContainerStarted(started) => {
                if let Some(container) = pod.container(&started.container) {
                    self.started(pod, &container, started.started_at_ns);
                }
            }
            Body::ContainerExited(exited) => self.note_exit(pod, exited),
            Body::ExecExited(exited) => {
                pod.execs().tell(exited.exec, exit_of(exited.exit));
            }
            Body::Detached(detached) => pod.attached().tell(detached.attach, ()),
            Body::Reply(_) => {}
        }
    }

    fn note_exit(self: &Arc<Self>, pod: &Arc<Pod>, exited: v1::ContainerExited) {
        let exit = exit_of(exited.exit);
        let exit = ExitRecord { exit, started_at_ns: 0, finished_at_ns: exited.finished_at_ns };
        if !self.note_end(pod, &exited.container, exit)
            && let Ok(supervisor) = pod.connection()
        {
            self.disown_unknown(pod, &supervisor, &exited.container);
        }
    }

    /// Notes the end of a container, which may still be in the making; `false` if nobody knows it.
    fn note_end(self: &Arc<Self>, pod: &Pod, id: &str, exit: ExitRecord) -> bool {
        let mut making = pod.making();
        if let Some(container) = pod.container(id) {
            drop(making);
            self.ended(pod, &container, exit);
            return true;
        }
        making.get_mut(id).map(|early| *early = Some(exit)).is_some()
    }

    /// Notes that a container's program runs.
    pub(super) fn started(&self, pod: &Pod, container: &Container, started_at_ns: i64) {
        let _order = pod.telling();
        if container.note_start(started_at_ns) {
            self.events.tell(ContainerEventType::ContainerStartedEvent, container.id().as_str(), pod);
        }
    }

    /// Notes that a container's first process has exited.
    pub(super) fn ended(self: &Arc<Self>, pod: &Pod, container: &Arc<Container>, exit: ExitRecord) {
        let _order = pod.telling();
        if exit.started_at_ns > 0 && container.note_start(exit.started_at_ns) {
            self.events.tell(ContainerEventType::ContainerStartedEvent, container.id().as_str(), pod);
        }
        if container.note_exit(exit) {
            self.parts.plugins.note_stopped(container.id());
            self.events.tell(ContainerEventType::ContainerStoppedEvent, container.id().as_str(), pod);
            self.end_cgroup(container);
        }
    }

    /// Notes that a container's processes are gone and nobody reports how: without an exit record on disk, it is
    /// unknown.
    ///
    /// # Errors
    /// The disk does not say within this time whether there is one.
    async fn note_lost(
        self: &Arc<Self>,
        pod: &Pod,
        container: &Arc<Container>,
        patience: Duration,
    ) -> Result<(), Error> {
        const STAGE: &str = "reading how the container ended";
        let path = self.parts.layout.exit_record(pod.id(), container.id());
        let lost = container.lost();
        let reading = timeout(patience, READERS.run(&(), STAGE, move || exit_or_lost(&path, lost))).await;
        let exit = reading.map_err(std::io::Error::from).stage(STAGE)?.stage(STAGE)??;
        self.ended(pod, container, exit);
        Ok(())
    }

    /// The same, as soon as the disk says it; after so long it counts as unknown, because what has no end cannot be
    /// stopped or removed.
    pub(super) async fn note_lost_within(
        self: &Arc<Self>,
        pod: &Pod,
        container: &Arc<Container>,
        patience: Duration,
    ) {
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        while let Err(error) = self.note_lost(pod, container, left()).await {
            if Instant::now() >= until {
                let (id, error) = (container.id().short(), chain(&error));
                tracing::warn!(container = id, error, "nobody can read how a container ended: it is lost");
                return self.ended(pod, container, container.lost());
            }
            tokio::time::sleep(DISK_PAUSE).await;
        }
    }

    /// The same without waiting for more than one short attempt.
    async fn note_lost_in_time(self: &Arc<Self>, pod: &Arc<Pod>, container: &Arc<Container>) {
        let Err(error) = self.note_lost(pod, container, DISK_PAUSE).await else { return };
        let (id, error) = (container.id().short(), chain(&error));
        tracing::warn!(container = id, error, "a container has ended; trying again to read how");
        let (engine, pod, container) = (Arc::clone(self), Arc::clone(pod), Arc::clone(container));
        tokio::spawn(async move { engine.note_lost_within(&pod, &container, DISK_PATIENCE).await });
    }

    /// Handles the supervisor's end, whether it died or was asked to exit: its containers have ended, or are ended now.
    async fn supervisor_gone(self: &Arc<Self>, pod: &Arc<Pod>) {
        pod.contact().set(Contact::Gone);
        self.pod_stopped(pod);
        pod.execs().clear();
        pod.attached().clear();
        let mut ends = pod.containers();
        ends.retain(|container| !container.is_exited());
        if !ends.is_empty() {
            let pod = pod.id().short();
            tracing::warn!(pod, containers = ends.len(), "a pod's supervisor is gone: ending its containers");
        }
        futures_util::future::join_all(ends.iter().map(|container| self.end_unwatched(pod, container))).await;
    }

    /// Kills what is left of a container that has no supervisor any more. Until that has ended, it counts as running.
    async fn end_unwatched(self: &Arc<Self>, pod: &Arc<Pod>, container: &Arc<Container>) {
        let (engine, own, it) = (Arc::clone(self), Arc::clone(pod), Arc::clone(container));
        persist("a container without a supervisor", container.id().to_string(), move || {
            let (engine, pod, container) = (Arc::clone(&engine), Arc::clone(&own), Arc::clone(&it));
            async move {
                engine.kill_container(&container).await?;
                engine.settle(&pod, &container, Word::Gone).await;
                Ok::<_, Error>(())
            }
        })
        .await;
    }

    /// Ends a pod's supervisor, by request or else by force.
    ///
    /// # Errors
    /// DeadlineExceeded if the kernel does not let it die; the next call continues to wait.
    pub(super) async fn end_supervisor(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        if let Contact::Up(supervisor) = pod.contact().now()
            && !supervisor.is_silent()
        {
            // One that does not exit is killed.
            drop(supervisor.shut_down(KILL_PATIENCE).await);
        }
        // The process of one that never responded may not be known yet.
        if pod.supervisor().is_none() && !pod.contact().is_gone() {
            drop(self.reach(pod).await);
        }
        pod.contact().set(Contact::Gone);
        let process = pod.supervisor().clone();
        if let Some(process) = process {
            process.kill();
            let ended = tokio::time::timeout(KILL_PATIENCE, process.ended()).await;
            let ended = ended.map_err(|_elapsed| SupervisorError::Undead { patience: KILL_PATIENCE });
            ended.stage("ending the supervisor")?;
            *pod.supervisor() = None;
        }
        Ok(())
    }

    /// The last lines of the log of a pod's supervisor, which is usually empty.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn supervisor_log(&self, pod: &Pod) -> Result<Vec<String>, Error> {
        let directory = self.parts.layout.pod(pod.id());
        blocking(move || Ok(wharf_supervision::last_lines(&directory)?)).await
    }

    /// Notes that a pod is no longer ready, whatever the reason.
    pub(super) fn pod_stopped(&self, pod: &Pod) {
        let _order = pod.telling();
        if std::mem::take(&mut pod.write_state().ready) {
            self.events.tell(ContainerEventType::ContainerStoppedEvent, pod.id().as_str(), pod);
        }
    }
}
