//! A pod's life: it is made, stopped and removed, or undone if it could not be made. Each step of its removal can be
//! repeated.
//!
//! Everything is decided first (`planner::plan_pod`), so that an impossible pod is refused before anything is made. The
//! order is then: the record of the intent and the supervisor and, at the same time, the namespaces; the network; the
//! record of a complete pod. Containers come later, and so does the first process of a PID namespace that they share:
//! the supervisor makes it for the first of them.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use wharf_cri_api::v1::{ContainerEventType, PodSandboxConfig};
use wharf_host::namespaces::NewNamespaces;
use wharf_host::{self as host, directories, earlier, files};
use wharf_network::{StatsSocket, is_pinned, open_netns};
use wharf_nri::Window;
use wharf_nri::api::Event;
use wharf_planner::{self as planner, NetworkPlan, PodKey, PodPlan};
use wharf_records::{Phase, PodRecord, last_containers};
use wharf_supervision::SupervisorError;
use wharf_tasks::{persist, spawn};
use wharf_types::PodId;

use super::Engine;
use crate::container::Container;
use crate::error::{Error, Stage, blocking, known};
use crate::pod::{Pod, State};

/// Namespaces with a network among them, and what is needed there.
type Unconnected = (Arc<NewNamespaces>, NetworkPlan);

/// How far a pod came on one thread: each change of threads takes as long as some of its stages.
enum Built {
    /// It has these addresses, and its record says that it is whole.
    Whole(Vec<IpAddr>),
    /// It has these addresses, but its supervisor has not responded yet, so its record does not say that it is whole.
    Unanswered(Vec<IpAddr>),
    /// It waits for its turn to be connected.
    Unconnected(Unconnected),
}

impl Engine {
    /// Makes a pod. A retry with the same metadata joins the call in flight or gets its pod.
    ///
    /// # Errors
    /// InvalidArgument, FailedPrecondition if its pod is no longer ready, or the stage that failed; then nothing is
    /// left.
    pub async fn run_pod(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<PodId, Error> {
        self.options.handlers.check(&handler, &config)?;
        let key = PodKey::of(&config)?;
        planner::check_pod(&config, &self.options.defaults, &self.options.placement)?;
        let engine = Arc::clone(self);
        let id =
            self.table.make_pod(key, move || async move { engine.make_pod(config, handler).await }).await?;
        // This retries a call whose pod has been stopped since then: nobody may take that for a new one.
        let pod = self.pod(id.as_str())?;
        if pod.is_ready() { Ok(id) } else { Err(pod.wrong_state("not ready any more: remove it first")) }
    }

    async fn make_pod(self: Arc<Self>, config: PodSandboxConfig, handler: String) -> Result<PodId, Error> {
        let id = PodId::from_random(wharf_sys::random::bytes().stage("making an id")?);
        let pod = Arc::new(Pod::new(id.clone(), config, handler, self.table.creation_time()));
        self.table.reserve(id.clone());
        match self.build_pod(&pod).await {
            Ok(_window) => {
                let _order = pod.telling();
                self.table.insert(Arc::clone(&pod));
                self.events.tell(ContainerEventType::ContainerCreatedEvent, id.as_str(), &pod);
                self.events.tell(ContainerEventType::ContainerStartedEvent, id.as_str(), &pod);
                Ok(id)
            }
            Err(error) => {
                self.undo_pod(&pod).await;
                Err(error)
            }
        }
    }

    /// Builds a pod. As long as the window is held, no NRI plugin comes that has not been told of the pod.
    async fn build_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<Window<'_>, Error> {
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        let built = self.making.run(pod.id(), "building it", move || engine.build_blocking(&of)).await;
        let ips = match built.stage("making the pod")?? {
            Built::Whole(ips) => ips,
            Built::Unanswered(ips) => self.complete_pod(pod, ips).await?,
            Built::Unconnected(network) => {
                let joined = pod.timings().time_async("network", self.join_network(pod, network));
                self.complete_pod(pod, joined.await?).await?
            }
        };
        *pod.write_state() = State { ips, ready: true };
        let window = self.parts.plugins.window().await;
        self.tell(Event::RunPodSandbox, pod, None).await?;
        Ok(window)
    }

    /// Records a pod that is whole once its supervisor has responded.
    async fn complete_pod(self: &Arc<Self>, pod: &Arc<Pod>, ips: Vec<IpAddr>) -> Result<Vec<IpAddr>, Error> {
        let greeted = pod.timings().time_async("first response of the supervisor", pod.connected()).await;
        if greeted.is_err() && pod.contact().is_gone() {
            let log = self.supervisor_log(pod).await.unwrap_or_default();
            let last_line = log.into_iter().next_back().unwrap_or_else(|| "it has logged nothing".into());
            return Err(Error::at("starting the pod's supervisor", SupervisorError::Stillborn { last_line }));
        }
        greeted?;
        self.blocking(pod, Self::record_whole_pod).await?;
        Ok(ips)
    }

    /// Connects a pod to the network in its turn: a plugin may do it, and may hang as long as it likes.
    async fn join_network(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        (namespaces, plan): Unconnected,
    ) -> Result<Vec<IpAddr>, Error> {
        let _turn = self.network_turns.make().await;
        self.blocking(pod, move |engine, pod| engine.join_network_blocking(pod, &namespaces, &plan)).await
    }

    /// Decides everything about a pod. What its request names must be here.
    fn plan_pod(&self, pod: &Pod) -> Result<PodPlan, Error> {
        let config = &*pod.config();
        host::check_profile(&self.parts.images, config)?;
        pod.set_level(self.selinux.level(config)?);
        let names = host::names(config)?;
        let plan = planner::plan_pod(config, names, &self.options.defaults, self.selinux.of(pod.level()))?;
        plan.labels.as_ref().map_or(Ok(()), host::check_labels)?;
        Ok(plan)
    }

    fn build_blocking(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<Built, Error> {
        let ips = match self.begin_blocking(pod)? {
            None => Vec::new(),
            Some(network) => match self.network_turns.make_now() {
                None => return Ok(Built::Unconnected(network)),
                Some(_turn) => {
                    let join = || self.join_network_blocking(pod, &network.0, &network.1);
                    pod.timings().time("network", join)?
                }
            },
        };
        if pod.connection().is_err() {
            return Ok(Built::Unanswered(ips));
        }
        self.record_whole_pod(pod)?;
        Ok(Built::Whole(ips))
    }

    /// Makes a pod except for its network, if that is its own.
    fn begin_blocking(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<Option<Unconnected>, Error> {
        self.user_namespaces.check(&pod.config())?;
        let PodPlan { namespaces, files, network, .. } = self.plan_pod(pod)?;
        let directory = self.parts.layout.pod(pod.id());
        let timings = pod.timings();
        // Everything else happens in the time in which the kernel makes a network. Namespaces need no record: without
        // this process nothing is left of them.
        let making = self.template.begin(namespaces);
        timings.time("record and directories", || self.intend_pod(pod, &directory))?;
        let files = timings.time("files for /etc", || files::make(&files))?;
        let start = || self.program.start(&directory);
        let (process, socket) = timings.time("start of the supervisor", start)?;
        *pod.supervisor() = Some(process);
        let namespaces = Arc::new(timings.time("end of the namespaces", || making.end(files))?);
        *pod.unheld() = Some(Arc::clone(&namespaces));
        // The supervisor responds while the pod is being connected to its network.
        self.watch_over(pod, Some(socket));
        Ok(namespaces.net.is_some().then_some((namespaces, network)))
    }

    /// Intent first: what is made after the record is found by it.
    fn intend_pod(&self, pod: &Pod, directory: &Path) -> Result<(), Error> {
        directories::make(directory)?;
        self.record_pod(pod, Phase::Making)?;
        Ok(directories::make_for_logs(&pod.config().log_directory)?)
    }

    fn record_whole_pod(&self, pod: &Pod) -> Result<(), Error> {
        pod.timings().time("record of the whole pod", || self.record_pod(pod, Phase::Made))
    }

    pub(super) fn record_pod(&self, pod: &Pod, phase: Phase) -> Result<(), Error> {
        Ok(PodRecord::of(&pod.facts(), phase).save(&self.parts.layout.pod_record(pod.id()))?)
    }

    fn join_network_blocking(
        &self,
        pod: &Pod,
        namespaces: &NewNamespaces,
        NetworkPlan { ports, sysctls }: &NetworkPlan,
    ) -> Result<Vec<IpAddr>, Error> {
        let Some(netns) = namespaces.net.as_ref().map(AsFd::as_fd) else { return Ok(Vec::new()) };
        let (config, pin) = (pod.config(), self.parts.layout.namespace(pod.id(), "net"));
        let attachment = planner::attachment(pod.id(), &config, (netns, &pin), ports);
        let addresses = self.parts.network.attach(&attachment).stage("attaching the pod to the network")?;
        if !self.parts.network.counts(pod.id()) {
            *pod.network_stats() = Some(StatsSocket::open(netns).stage("counting the pod's traffic")?);
        }
        self.template.set_sysctls(namespaces, sysctls)?;
        Ok(addresses.ips)
    }

    /// The addresses of a pod that an earlier daemon attached. A plugin's, whose record may be lost, are those in the
    /// pod's namespace, which is pinned for it.
    pub(super) fn find_addresses(&self, pod: &Pod) -> Result<Vec<IpAddr>, Error> {
        const STAGE: &str = "looking for the pod's addresses";
        let (config, pin) = (pod.config(), self.parts.layout.namespace(pod.id(), "net"));
        let mut found = self.parts.network.addresses(pod.id());
        if found.is_none() && is_pinned(&pin).stage(STAGE)? {
            let (netns, ports) = (open_netns(&pin).stage(STAGE)?, planner::host_ports(&config)?);
            let attachment = planner::attachment(pod.id(), &config, (netns.as_fd(), &pin), &ports);
            found = self.parts.network.adopt(&attachment).stage(STAGE)?;
        }
        Ok(found.map(|addresses| addresses.ips).unwrap_or_default())
    }

    /// Stops a pod: kills its processes and releases its addresses; its containers stay listed. Unknown and stopped
    /// pods are success.
    ///
    /// # Errors
    /// The stage that failed; the next call continues from there.
    pub async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Some(pod) = known(self.pod(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move { engine.stop_in_turn(&pod).await }).await
    }

    /// Stops a pod unless it is stopped: from then on, it gets nothing that could be stopped.
    async fn stop_in_turn(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        let mut is_stopped = pod.end().await;
        if !*is_stopped {
            self.stop_whole(pod).await?;
            *is_stopped = true;
        }
        Ok(())
    }

    /// Stops everything in a pod. A container that is being made gets no first process without a supervisor, and ends
    /// if it has one: its making, which may be stuck, sees that as soon as it goes on, and undoes it.
    async fn stop_whole(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        self.stop_all(pod, pod.containers()).await?;
        self.pod_stopped(pod);
        self.end_supervisor(pod).await?;
        // One may have been listed meanwhile.
        let mut late = pod.containers();
        late.retain(|container| !container.is_exited());
        self.stop_all(pod, late).await?;
        self.tell(Event::StopPodSandbox, pod, None).await?;
        // The stop is not recorded: a pod without a supervisor is stopped, and this must work without disk space.
        self.release(pod).await
    }

    async fn stop_all(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        containers: Vec<Arc<Container>>,
    ) -> Result<(), Error> {
        let stop = |container| self.stop((Arc::clone(pod), container), Duration::ZERO);
        join_all(containers.into_iter().map(stop)).await.into_iter().collect()
    }

    /// Disconnects a pod from the network, and releases its namespaces.
    async fn release(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        // A pod on the host's network has no plugin that could hang.
        let _turn = if pod.is_host_network() { None } else { self.network_turns.unmake().await };
        let released = self.blocking(pod, Self::release_blocking).await;
        self.network_turns.unmade();
        released
    }

    fn release_blocking(&self, pod: &Pod) -> Result<(), Error> {
        let layout = &self.parts.layout;
        *pod.network_stats() = None;
        *pod.unheld() = None;
        let netns = layout.namespace(pod.id(), "net");
        if !pod.is_host_network() {
            self.parts.network.detach(pod.id(), Some(&netns)).stage("detaching the pod from the network")?;
        }
        // From now on they may be another pod's.
        pod.write_state().ips.clear();
        Ok(earlier::release(layout, pod.id())?)
    }

    /// Removes a pod with all its containers; an unknown one is success.
    ///
    /// # Errors
    /// The stage that failed; the next call continues from there.
    pub async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Some(pod) = known(self.pod(id))? else { return Ok(()) };
        let engine = Arc::clone(self);
        spawn(async move {
            engine.stop_in_turn(&pod).await?;
            // What is being made must have been undone.
            let _order = pod.change().await?;
            if engine.table.has(pod.id()) { engine.remove_stopped(&pod).await } else { Ok(()) }
        })
        .await
    }

    async fn remove_stopped(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        let containers = pod.containers();
        let removed = join_all(containers.iter().map(|container| self.remove(pod, container))).await;
        removed.into_iter().collect::<Result<(), _>>()?;
        self.delete_pod(pod).await?;
        self.tell(Event::RemovePodSandbox, pod, None).await?;
        let _order = pod.telling();
        self.table.remove(pod);
        self.events.tell(ContainerEventType::ContainerDeletedEvent, pod.id().as_str(), pod);
        Ok(())
    }

    pub(super) async fn delete_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        // What could not be undone yet is found by its record, now and by the next daemon. What was left alone goes
        // with its pod.
        let (layout, of) = (self.parts.layout.clone(), pod.id().clone());
        let last = blocking(move || Ok(last_containers(&layout, &of)?)).await?;
        let undone = join_all(last.iter().map(|id| self.delete(pod, id))).await;
        undone.into_iter().collect::<Result<(), _>>()?;
        let last = planner::last_cgroup(pod.id(), &pod.config(), &self.options.placement)?;
        self.remove_cgroup(last).await?;
        let directory = self.parts.layout.pod(pod.id());
        blocking(move || Ok(directories::remove(&directory)?)).await
    }

    /// Undoes a pod that could not be made.
    pub(super) async fn undo_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let (engine, pod) = (Arc::clone(self), Arc::clone(pod));
        persist("a pod that could not be made", pod.id().to_string(), move || {
            let (engine, pod) = (Arc::clone(&engine), Arc::clone(&pod));
            async move { engine.try_undo_pod(&pod).await }
        })
        .await;
    }

    async fn try_undo_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        self.end_supervisor(pod).await?;
        self.release(pod).await?;
        self.delete_pod(pod).await?;
        self.table.release(pod.id());
        Ok(())
    }
}
