//! All plugins, and what they are asked.
//!
//! Every event for plugins goes through here: which of them subscribe to it, in which order they are asked, that each
//! hears of it once, and how their answers are merged. It knows no pod: pods are shown to it ([`Shown`]), and the
//! [`Node`] carries out what plugins request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard, mpsc};
use tokio::time::timeout;
use wharf_cri_api::v1::LinuxContainerResources;
use wharf_planner::{Description, Refusal};
use wharf_types::{ContainerId, chain, lock};

use crate::adjust::adjust;
use crate::api::{
    Container, ContainerEviction, ContainerRequest, ContainerState, ContainerUpdate, CreateContainerRequest,
    CreateContainerResponse, Empty, Event, LinuxResources, PodSandbox, PostUpdatePodSandboxRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StopContainerResponse, StopPodSandboxRequest,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use crate::convert::{of_cri, to_update};
use crate::merge::{Changes, Merged};
use crate::plugin::{Plugin, Question, bit};
use crate::progress::{Progress, Stage};
use crate::settings::Validation;
use crate::validator::Subject;
use crate::wire::PLUGIN_SERVICE;
use crate::{Error, Existing, Node, Settings, Shown, Update};

/// All plugins. A request goes through a clone of the list, so a plugin that connects or leaves meanwhile changes
/// nothing.
#[derive(Debug)]
pub struct Plugins {
    /// Locked to be cloned or replaced, never while a plugin is asked.
    list: RwLock<Arc<Vec<Arc<Plugin>>>>,
    /// The events to which at least one of them subscribes.
    wanted: AtomicI32,
    validation: Validation,
    /// Carries out what they request.
    node: OnceLock<Weak<dyn Node>>,
    /// Held for reading from the moment plugins have been asked about a new pod or container until that is listed, and
    /// for writing while a plugin is added: so it learns of everything, either when it is synchronised or by an event.
    /// A container whose creation takes long lets it pass: it is in `creating` if plugins were asked about it, and the
    /// new plugin is sent its event once it is listed.
    gate: tokio::sync::RwLock<()>,
    /// The events that plugins have been sent for each listed pod and container, by its id.
    progress: Mutex<BTreeMap<String, Arc<Progress>>>,
    /// The containers that are being created and not listed yet. Locked before the list, while that is read for the
    /// plugins to be asked about one of them, and while a plugin is added.
    creating: Mutex<BTreeMap<String, Box<Shown>>>,
    /// The containers that have stopped and of which plugins have not been told yet. The queue is bounded; for a
    /// container that does not fit, plugins are told when somebody stops or removes it.
    stopped: (mpsc::Sender<ContainerId>, Mutex<Option<mpsc::Receiver<ContainerId>>>),
}

/// How many stopped containers may wait until plugins are told.
const STOPPED_MAX: usize = 4096;
/// How long a plugin that connects waits for a container that is being created: what an image or a pod does may make
/// that last, and must not keep plugins away.
const CREATION_PATIENCE: Duration = Duration::from_secs(1);

/// The name for plugins whose adjustments have been merged.
const UNNAMED: &str = "asked about an event";

/// A pod or container is being made; a plugin that connects now must not learn of it too early.
#[derive(Debug)]
pub struct Window<'a> {
    gate: Option<RwLockReadGuard<'a, ()>>,
}

impl Window<'_> {
    /// Waits until a container has been created, or could not be. If that takes longer than a moment, a plugin that
    /// connects waits no longer. It is shown the container as one that is being created, if plugins were asked about
    /// it.
    pub async fn during<T>(&mut self, creation: impl Future<Output = T>) -> T {
        let mut creation = std::pin::pin!(creation);
        if let Ok(created) = timeout(CREATION_PATIENCE, &mut creation).await {
            return created;
        }
        drop(self.gate.take());
        creation.await
    }
}

impl Plugins {
    /// No plugins yet, with the rules for those that will connect. Without settings none ever does.
    #[must_use]
    pub fn new(settings: Option<&Settings>) -> Self {
        let validation = settings.map(|settings| settings.validation.clone()).unwrap_or_default();
        let wanted = if validation.is_on { bit(Event::CreateContainer) } else { 0 };
        let (stopped, to_tell) = mpsc::channel(STOPPED_MAX);
        Self {
            list: RwLock::default(),
            wanted: AtomicI32::new(wanted),
            validation,
            node: OnceLock::new(),
            gate: tokio::sync::RwLock::default(),
            progress: Mutex::default(),
            creating: Mutex::default(),
            stopped: (stopped, Mutex::new(Some(to_tell))),
        }
    }

    /// Notes that a container has stopped: [`Node::stopped`] is called in a task of its own.
    pub fn note_stopped(&self, container: &ContainerId) {
        if self.wants(Event::StopContainer) && self.stopped.0.try_send(container.clone()).is_err() {
            tracing::warn!(
                container = container.short(),
                "NRI plugins learn later that a container has stopped"
            );
        }
    }

    pub(crate) fn take_stopped(&self) -> Option<mpsc::Receiver<ContainerId>> {
        lock::lock(&self.stopped.1).take()
    }

    pub(crate) fn serve(&self, node: &Arc<dyn Node>) {
        self.node.get_or_init(|| Arc::downgrade(node));
    }

    pub(crate) fn node(&self) -> Option<Arc<dyn Node>> {
        self.node.get().and_then(Weak::upgrade)
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.wanted.load(Ordering::SeqCst) & bit(event) != 0
    }

    /// Waits while a plugin is being added. Hold it until what plugins are told or asked of is listed.
    pub async fn window(&self) -> Window<'_> {
        Window { gate: Some(self.gate.read().await) }
    }

    /// Sends an event to the plugins that subscribe to it, once. If a plugin fails at something that has happened
    /// already, that is logged and nothing is undone.
    ///
    /// # Errors
    /// The plugin that refuses to let a pod run or a container start. Plugins have then been told that the pod is gone.
    pub async fn tell<F: Future<Output = Box<Shown>>>(
        &self,
        event: Event,
        id: &str,
        show: impl FnOnce() -> F,
    ) -> Result<(), Error> {
        let stage = match event {
            Event::StopPodSandbox | Event::StopContainer => Some(Stage::Stopped),
            Event::RemovePodSandbox | Event::RemoveContainer => Some(Stage::Removed),
            _others => None,
        };
        if !self.wants(event) {
            if let (Some(stage), Some(progress)) = (stage, lock::lock(&self.progress).get(id)) {
                progress.note(stage);
            }
            return Ok(());
        }
        let progress = Arc::clone(lock::lock(&self.progress).entry(id.to_owned()).or_default());
        let turn = match stage {
            Some(stage) => progress.reach(stage).await,
            None => Some(progress.turn().await),
        };
        let Some(_turn) = turn else { return Ok(()) };
        let shown = show().await;
        let done = match &shown.container {
            Some(container) => self.container(event, &shown.pod, container).await,
            None => self.pod(event, &shown.pod).await,
        };
        if event == Event::RemovePodSandbox {
            self.forget(id);
        }
        match event {
            Event::RunPodSandbox => done.inspect_err(|_refused| self.forget(id)),
            Event::StartContainer => done,
            _happened => {
                warn_of(done);
                Ok(())
            }
        }
    }

    /// Forgets which events were sent for a container that is not listed any more.
    pub fn forget_container(&self, container: &ContainerId) {
        self.forget(container.as_str());
    }

    fn forget(&self, id: &str) {
        lock::lock(&self.progress).remove(id);
    }

    /// The existing pods and containers, and those of `creating` that are not listed yet, except those of whose removal
    /// plugins have been told. Of those that have stopped, no stop is reported again.
    pub(crate) async fn existing(&self, creating: Vec<Container>) -> Option<Existing> {
        let (mut pods, mut containers) = self.node()?.existing().await;
        let is_listed = |id: &str| containers.iter().any(|listed| listed.id == id);
        let unlisted: Vec<_> = creating.into_iter().filter(|made| !is_listed(&made.id)).collect();
        containers.extend(unlisted);
        let mut progress = lock::lock(&self.progress);
        let is_there = |id: &str| progress.get(id).is_none_or(|at| !at.is_removed());
        pods.retain(|pod| is_there(&pod.id));
        containers.retain(|container| is_there(&container.id));
        for stopped in containers.iter().filter(|known| known.state() == ContainerState::ContainerStopped) {
            progress.entry(stopped.id.clone()).or_default().note(Stage::Stopped);
        }
        Some((pods, containers))
    }

    async fn pod(&self, event: Event, pod: &PodSandbox) -> Result<(), Error> {
        let told = self.tell_pod(event, pod).await;
        if told.is_err() && event == Event::RunPodSandbox {
            for event in [Event::StopPodSandbox, Event::RemovePodSandbox] {
                warn_of(self.tell_pod(event, pod).await);
            }
        }
        told
    }

    async fn tell_pod(&self, event: Event, pod: &PodSandbox) -> Result<(), Error> {
        let about = (pod, None);
        let pod = Some(pod.clone());
        match event {
            Event::RunPodSandbox => {
                self.tell_all(event, "RunPodSandbox", Box::new(RunPodSandboxRequest { pod }), about).await
            }
            Event::StopPodSandbox => {
                self.tell_all(event, "StopPodSandbox", Box::new(StopPodSandboxRequest { pod }), about).await
            }
            Event::RemovePodSandbox => {
                self.tell_all(event, "RemovePodSandbox", Box::new(RemovePodSandboxRequest { pod }), about)
                    .await
            }
            Event::PostUpdatePodSandbox => {
                self.tell_all(
                    event,
                    "PostUpdatePodSandbox",
                    Box::new(PostUpdatePodSandboxRequest { pod }),
                    about,
                )
                .await
            }
            _of_containers => Ok(()),
        }
    }

    /// Tells plugins what the kubelet has set on a pod's own cgroup: overhead and resources.
    ///
    /// # Errors
    /// The plugin that refuses.
    pub async fn update_pod(
        &self,
        pod: PodSandbox,
        [overhead, resources]: [Option<LinuxContainerResources>; 2],
    ) -> Result<(), Error> {
        let request = Box::new(UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead.as_ref().map(of_cri),
            linux_resources: resources.as_ref().map(of_cri),
        });
        for plugin in self.list().iter() {
            let (event, method) = (Event::UpdatePodSandbox, "UpdatePodSandbox");
            plugin.ask::<Empty>(Question { event, method, message: &*request }).await?;
        }
        Ok(())
    }

    async fn container(&self, event: Event, pod: &PodSandbox, container: &Container) -> Result<(), Error> {
        let method = match event {
            Event::PostCreateContainer => "PostCreateContainer",
            Event::StartContainer => "StartContainer",
            Event::PostStartContainer => "PostStartContainer",
            Event::PostUpdateContainer => "PostUpdateContainer",
            Event::RemoveContainer => "RemoveContainer",
            Event::StopContainer => return self.stop(pod, container).await,
            _others => return Ok(()),
        };
        self.tell_all(event, method, of_container(pod, container), (pod, Some(container))).await
    }

    /// Tells plugins that a container has stopped, and carries out the updates of others that they then request.
    async fn stop(&self, pod: &PodSandbox, container: &Container) -> Result<(), Error> {
        let request = of_container(pod, container);
        let mut merged = Box::new(Merged::default());
        for plugin in self.list().iter() {
            let (event, method) = (Event::StopContainer, "StopContainer");
            let asked = plugin.ask::<StopContainerResponse>(Question { event, method, message: &*request });
            if let Some(response) = asked.await? {
                merged.stopped(&plugin.name, response)?;
            }
        }
        self.change_others(Box::new(merged.changes())).await;
        Ok(())
    }

    /// Asks what to adjust in a container that is about to be created, and adjusts its description; `inject` adds
    /// devices of the Container Device Interface by their names. It blocks its thread until all plugins have
    /// responded. If the container is not created after all, [`Plugins::not_created`] follows, else
    /// [`Plugins::created`].
    ///
    /// # Errors
    /// The plugin that refuses, a conflict, what a validator rejects, or what cannot be adjusted.
    pub fn adjust(
        &self,
        description: &mut Description,
        show: impl FnOnce(&Description) -> Box<Shown>,
        inject: impl FnOnce(&mut Description, &[String]) -> Result<(), Refusal>,
    ) -> Result<Box<Changes>, Error> {
        if !self.wants(Event::CreateContainer) {
            return Ok(Box::default());
        }
        let mut shown = show(description);
        if let Some(container) = &mut shown.container {
            container.state = ContainerState::ContainerUnknown.into();
        }
        let Some(container) = &shown.container else { return Ok(Box::default()) };
        let plugins = self.to_ask(container.id.clone(), &shown);
        let mut changes = Handle::current().block_on(self.create(&plugins, &shown.pod, container))?;
        let devices: Vec<String> =
            changes.adjust.cdi_devices.iter().map(|device| device.name.clone()).collect();
        inject(description, &devices).map_err(|refusal| Error::of(refusal, &changes.authors))?;
        adjust(description, &changes)?;
        let (updates, evictions) =
            (std::mem::take(&mut changes.updates), std::mem::take(&mut changes.evictions));
        let others = Box::new(Changes { updates, evictions, ..Changes::default() });
        Handle::current().block_on(self.change_others(others));
        Ok(changes)
    }

    /// Notes that a container is being created, and returns the plugins to ask about it: whichever is added later finds
    /// the container when it is synchronised.
    fn to_ask(&self, id: String, shown: &Shown) -> Arc<Vec<Arc<Plugin>>> {
        let mut creating = lock::lock(&self.creating);
        creating.insert(id, Box::new(shown.clone()));
        self.list()
    }

    /// Notes that a container is listed.
    pub fn created(&self, container: &ContainerId) {
        lock::lock(&self.creating).remove(container.as_str());
    }

    /// Tells plugins that a container about whose creation they were asked could not be made.
    pub async fn not_created(&self, container: &ContainerId) {
        let shown = lock::lock(&self.creating).remove(container.as_str());
        if let Some((pod, Some(container))) = shown.map(|shown| (shown.pod, shown.container)).as_ref() {
            for event in [Event::StopContainer, Event::RemoveContainer] {
                warn_of(self.container(event, pod, container).await);
            }
        }
    }

    async fn create(
        &self,
        plugins: &[Arc<Plugin>],
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Box<Changes>, Error> {
        let mut merged = Box::new(Merged::creating(container.clone()));
        for plugin in plugins.iter() {
            let (pod, container) = (Some(pod.clone()), Some(merged.container().clone()));
            let message = Box::new(CreateContainerRequest { pod, container });
            let (event, method) = (Event::CreateContainer, "CreateContainer");
            let asked = plugin.ask::<CreateContainerResponse>(Question { event, method, message: &*message });
            if let Some(response) = asked.await? {
                merged.created(&plugin.name, response)?;
            }
        }
        self.validate(plugins, pod, container, &merged).await?;
        Ok(Box::new(merged.changes()))
    }

    /// By those that were asked: one that has connected since then has adjusted nothing.
    async fn validate(
        &self,
        plugins: &[Arc<Plugin>],
        pod: &PodSandbox,
        container: &Container,
        merged: &Merged,
    ) -> Result<(), Error> {
        let present = plugins.iter().filter(|plugin| !plugin.connection().is_ended());
        let names: Vec<String> = present.clone().map(|plugin| plugin.base.clone()).collect();
        let subject = Subject { pod, container, owners: merged.owners(), plugins: &names };
        self.validation.check(&subject)?;
        if !self.wants(Event::ValidateContainerAdjustment) {
            return Ok(());
        }
        let request = Box::new(ValidateContainerAdjustmentRequest {
            pod: Some(pod.clone()),
            container: Some(container.clone()),
            adjust: Some(merged.adjustment().clone()),
            update: merged.updates().to_vec(),
            owners: Some(merged.owners().message()),
            plugins: present.map(|plugin| plugin.instance()).collect(),
        });
        let validations = plugins.iter().map(|plugin| validated_by(plugin, &request));
        futures_util::future::try_join_all(validations).await.map(drop)
    }

    /// Asks plugins about a container's update, and returns it with their changes. Updates of others that they request
    /// are made in the background: they may have to wait for the end of this one.
    ///
    /// # Errors
    /// The plugin that refuses, a conflict, or what cannot be updated.
    pub async fn update<F: Future<Output = Box<Shown>>>(
        self: &Arc<Self>,
        asked: Box<Update>,
        show: impl FnOnce() -> F,
    ) -> Result<Box<Update>, Error> {
        if !self.wants(Event::UpdateContainer) {
            return Ok(asked);
        }
        let shown = show().await;
        let id = shown.container.as_ref().map_or("", |container| container.id.as_str());
        let mut merged = Box::new(Merged::updating(id, of_cri(&asked.asked)));
        for plugin in self.list().iter() {
            let message = Box::new(UpdateContainerRequest {
                pod: Some(shown.pod.clone()),
                container: shown.container.clone(),
                linux_resources: merged.resources().cloned(),
            });
            let (event, method) = (Event::UpdateContainer, "UpdateContainer");
            let asked = plugin.ask::<UpdateContainerResponse>(Question { event, method, message: &*message });
            if let Some(response) = asked.await? {
                merged.updated(&plugin.name, response)?;
            }
        }
        let changes = Box::new(merged.changes());
        let mut update = Box::new(to_update(&changes.resources.clone().unwrap_or_default(), UNNAMED)?);
        update.asked.oom_score_adj = asked.asked.oom_score_adj;
        let plugins = Arc::clone(self);
        tokio::spawn(async move { plugins.change_others(changes).await });
        Ok(update)
    }

    async fn change_others(&self, changes: Box<Changes>) {
        let Changes { updates, evictions, .. } = *changes;
        // Failures are logged there, and nobody waits for the result.
        drop(self.obey(UNNAMED, updates, evictions).await);
    }

    /// Updates and evicts containers as a plugin requests, and returns the updates that failed.
    pub(crate) async fn obey(
        &self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Vec<ContainerUpdate> {
        let Some(node) = self.node() else { return updates };
        for ContainerEviction { container_id, reason } in evictions {
            tracing::info!(plugin, container = container_id, reason, "an NRI plugin evicts a container");
            if let Err(error) = Arc::clone(&node).evict(container_id).await {
                tracing::warn!(plugin, error, "an NRI plugin cannot evict a container");
            }
        }
        let mut failed = Vec::new();
        for update in updates.into_iter().filter(|update| !is_empty(update)) {
            let resources = update.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
            let done = match to_update(&resources, plugin) {
                Ok(change) => Arc::clone(&node).update(update.container_id.clone(), Box::new(change)).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = done {
                let container = &update.container_id;
                tracing::warn!(
                    plugin,
                    container,
                    error,
                    "a container could not be updated for an NRI plugin"
                );
                failed.extend((!update.ignore_failure).then_some(update));
            }
        }
        failed
    }

    /// Tells all plugins that the daemon is about to exit, and disconnects them.
    pub async fn shut_down(&self, patience: Duration) {
        let plugins = self.list();
        let tell = plugins.iter().map(|plugin| dismiss(plugin, patience));
        futures_util::future::join_all(tell).await;
    }

    async fn tell_all(
        &self,
        event: Event,
        method: &'static str,
        message: impl prost::Message,
        about: (&PodSandbox, Option<&Container>),
    ) -> Result<(), Error> {
        for plugin in self.list().iter() {
            plugin.tell(Question { event, method, message: &message }, about).await?;
        }
        Ok(())
    }

    fn list(&self) -> Arc<Vec<Arc<Plugin>>> {
        Arc::clone(&lock::read(&self.list))
    }

    /// Waits until nothing is being made, and keeps anything from being made until the guard is dropped.
    pub(crate) async fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// Adds a plugin to the list, after those with the same index, and returns the containers that are being created
    /// without it.
    pub(crate) fn add(&self, plugin: Arc<Plugin>) -> Vec<Container> {
        let creating = lock::lock(&self.creating);
        self.change(|plugins| {
            plugins.push(plugin);
            plugins.sort_by(|one, other| one.index.cmp(&other.index));
        });
        creating.values().filter_map(|shown| shown.container.clone()).collect()
    }

    /// The plugins that are connected, in the order in which they are asked: `10-logger`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.list().iter().map(|plugin| plugin.name.clone()).collect()
    }

    /// Plugins that are not connected, and without which no container is created unless its pod says otherwise.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let there = self.list();
        let is_there = |name: &String| there.iter().any(|plugin| plugin.base == *name);
        self.validation.required().iter().filter(|name| !is_there(name)).cloned().collect()
    }

    pub(crate) fn remove(&self, plugin: &Arc<Plugin>) {
        self.change(|plugins| plugins.retain(|known| !Arc::ptr_eq(known, plugin)));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Plugin>>)) {
        let mut list = lock::write(&self.list);
        let mut plugins = Vec::clone(&list);
        change(&mut plugins);
        let own = if self.validation.is_on { bit(Event::CreateContainer) } else { 0 };
        let mut wanted = plugins.iter().fold(own, |wanted, plugin| wanted | plugin.events());
        // A plugin that only validates is asked at creations, too.
        if wanted & bit(Event::ValidateContainerAdjustment) != 0 {
            wanted |= bit(Event::CreateContainer);
        }
        *list = Arc::new(plugins);
        self.wanted.store(wanted, Ordering::SeqCst);
    }
}

fn of_container(pod: &PodSandbox, container: &Container) -> Box<ContainerRequest> {
    Box::new(ContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) })
}

async fn validated_by(plugin: &Plugin, request: &ValidateContainerAdjustmentRequest) -> Result<(), Error> {
    let (event, method) = (Event::ValidateContainerAdjustment, "ValidateContainerAdjustment");
    let question = Question { event, method, message: request };
    match plugin.ask::<ValidateContainerAdjustmentResponse>(question).await? {
        Some(verdict) if verdict.reject => {
            let validator = format!("NRI plugin {}", plugin.name);
            Err(Error::Rejected { validator, reason: verdict.reason })
        }
        _ => Ok(()),
    }
}

async fn dismiss(plugin: &Plugin, patience: Duration) {
    let call = plugin.connection().call::<Empty>((PLUGIN_SERVICE, "Shutdown"), &Empty {}, patience);
    if !matches!(tokio::time::timeout(patience, call).await, Ok(Ok(_))) {
        tracing::debug!(plugin = plugin.name, "an NRI plugin did not respond to Shutdown");
    }
    plugin.connection().close();
}

fn warn_of(told: Result<(), Error>) {
    if let Err(error) = told {
        tracing::warn!(error = chain(&error), "an NRI plugin was not told");
    }
}

/// Whether an update changes nothing.
fn is_empty(update: &ContainerUpdate) -> bool {
    let resources = update.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    resources.is_none_or(|resources| *resources == LinuxResources::default())
}
