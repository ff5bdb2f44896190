//! CreateContainer: image, limits, snapshot, plan, and the first process, which waits for its start.
//!
//! Everything is decided before anything is made (`decide`, then `make`); the record comes first, so that a new daemon
//! finds what a crash left. The supervisor makes the process. After a failure everything is undone, in the background
//! if it must be.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_host::{self as host, ContainerPlaces, Given, Hooked, HooksOf, Images, Planned, earlier};
use wharf_images::LayerLease;
use wharf_nri::api::Event;
use wharf_nri::{Changes, ContainerView, Shown};
use wharf_planner::{self as planner, ContainerKey, Defaults, Description, Extra, Places, Request, Switch};
use wharf_records::{ContainerFacts, ContainerRecord, save_spec};
use wharf_supervision::Connection;
use wharf_tasks::Underway;
use wharf_types::{ContainerId, ContainerState, Timings};
use wharf_wire::feature;
use wharf_wire::v1::{self, Created};

use super::Engine;
use super::plugins::{ASKING, show_pod};
use crate::container::{Belongings, Container, Layers};
use crate::error::{Error, Stage};
use crate::places;
use crate::pod::Pod;

/// A container's log while the daemon creates it, so that the supervisor, which waits for no disk, needs no process for
/// that. If its disk stalls, only the supervisor's log writer waits for it.
type LogUnderway = Underway<Result<OwnedFd, host::Error>>;

/// A container that is complete except for its first process.
struct Prepared {
    planned: Planned,
    record: ContainerRecord,
    cgroup: Cgroup,
    delegation: Switch,
    leases: Vec<LayerLease>,
    log: LogUnderway,
    timings: Timings,
}

/// A container that is asked for, and what was found for it.
struct Asked<'a> {
    id: &'a ContainerId,
    config: &'a ContainerConfig,
    images: &'a Images,
    supervisor: &'a Connection,
    defaults: &'a Defaults,
}

/// Every decision about a container, before anything is made.
struct Decision {
    /// The runtime spec that is saved for people.
    spec: Vec<u8>,
    extra: Extra,
    planned: Planned,
    record: ContainerRecord,
    /// The path of its future cgroup.
    path: CgroupPath,
}

/// A description as NRI plugins have adjusted it, and what they have changed.
type Adjusted = (Description, Box<Changes>);

impl Asked<'_> {
    /// As NRI plugins are shown it.
    fn show(&self, pod: &Pod, path: &CgroupPath, description: &Description) -> Box<Shown> {
        let record = intent(self.config, self.images, path);
        let facts = ContainerFacts::intended(self.id.clone(), pod.id().clone(), record);
        let view = ContainerView { facts: &facts, pid: 0, spec: &description.spec };
        Box::new(Shown { pod: show_pod(pod), container: Some(view.into()) })
    }
}

impl Engine {
    /// Creates a container. A retry with the same metadata joins the call in flight or gets its container. `now` is the
    /// pod's request as its caller would make it today: privileged containers may have been allowed since.
    ///
    /// # Errors
    /// NotFound, InvalidArgument, FailedPrecondition if the pod is not ready or its container of this name has exited,
    /// or the stage that failed; then nothing is left.
    pub async fn create_container(
        self: &Arc<Self>,
        pod: &str,
        mut config: ContainerConfig,
        now: &PodSandboxConfig,
    ) -> Result<ContainerId, Error> {
        planner::fill_seccomp(&mut config, &self.options.defaults);
        let pod = self.pod(pod)?;
        planner::check_privilege(&config, [&*pod.config(), now])?;
        let key = ContainerKey::of(pod.id(), &config)?;
        let engine = Arc::clone(self);
        let made =
            self.table.make_container(key, move || async move { engine.make_container(pod, config).await });
        let id = made.await?;
        let (pod, container) = self.container(id.as_str())?;
        match pod.state_of(&container).await? {
            // The container of the earlier call has already exited: it must not be returned as if it were new.
            ContainerState::Exited { .. } => Err(container.wrong_state("exited: remove it first")),
            ContainerState::Created | ContainerState::Running { .. } => Ok(id),
        }
    }

    async fn make_container(
        self: Arc<Self>,
        pod: Arc<Pod>,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        // A creation that is stuck there is not waited for in vain.
        pod.check_lasts()?;
        let _order = pod.take_part().await;
        pod.check_lasts()?;
        let id = ContainerId::from_random(wharf_sys::random::bytes().stage("making an id")?);
        pod.making().insert(id.clone(), None);
        let mut window = self.parts.plugins.window().await;
        let built = window.during(Box::pin(self.build_container(&pod, &id, config))).await;
        match built.and_then(|container| self.publish(&pod, &container).map(|()| container)) {
            Ok(container) => {
                if let Ok(supervisor) = pod.connection() {
                    self.count_traffic(&pod, &supervisor).await;
                }
                drop(window);
                self.tell(Event::PostCreateContainer, &pod, Some(&container)).await?;
                Ok(id)
            }
            Err(error) => {
                self.parts.plugins.not_created(&id).await;
                self.undo_container(&pod, &id).await;
                Err(pod.end_or(error))
            }
        }
    }

    async fn build_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        id: &ContainerId,
        config: ContainerConfig,
    ) -> Result<Arc<Container>, Error> {
        let own = id.clone();
        let supervisor = pod.connected().await?;
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        let prepare = move || engine.prepare(&of, &own, &config, &supervisor);
        let prepared = self.making.run(pod.id(), "preparing the container", prepare).await;
        let mut prepared = prepared.stage("making the container")??;
        // That may have taken long: the host's directories are looked up there.
        pod.check_lasts()?;
        let created = self.first_process(pod, &mut prepared).await?;
        prepared.record.identify(created.identity.unwrap_or_default());
        let hooked = self.hooked(pod, id, &prepared.record, created.pid);
        let hooks = hooked.execute(HooksOf::Life, pod.id(), Hooked::create);
        prepared.timings.time_async("hooks", hooks).await?;
        let own = id.clone();
        let container = self.blocking(pod, |engine, pod| engine.complete(pod, own, prepared)).await?;
        container.set_pid(created.pid);
        Ok(Arc::new(container))
    }

    /// Has the pod's supervisor create the first process, which waits for its start.
    async fn first_process(&self, pod: &Pod, prepared: &mut Prepared) -> Result<Created, Error> {
        let Prepared { planned: Planned { plan, .. }, log, timings, .. } = prepared;
        host::ensure_profile(plan.process.apparmor.as_ref()).await?;
        let log = self.logs.end(log.take()).await?.transpose()?;
        let supervisor = pod.connected().await?;
        let creating = supervisor.create(plan, log.as_ref(), timings);
        timings.time_async("first process, until it waits", creating).await.map_err(Error::of_creation)
    }

    /// Records a complete container.
    fn complete(&self, pod: &Pod, id: ContainerId, prepared: Prepared) -> Result<Container, Error> {
        // Its hooks may have taken long, and what is recorded as whole is no longer undone by the next daemon.
        pod.check_lasts()?;
        let Prepared { planned, record, cgroup, delegation, leases, timings, .. } = prepared;
        host::set_rules(&cgroup, &planned)?;
        host::delegate(&cgroup, delegation, (record.uid, &pod.namespaces()))?;
        let path = self.parts.layout.container_record(pod.id(), &id);
        timings.time("record of the whole container", || record.save(&path))?;
        let layers = Layers::leased(&id, leases, Arc::clone(&self.parts.images));
        let belongings = Belongings { cgroup: Some(cgroup), layers };
        Ok(Container::created(pod, id, record, belongings).made_by(timings))
    }

    fn prepare(
        &self,
        pod: &Pod,
        id: &ContainerId,
        config: &ContainerConfig,
        supervisor: &Connection,
    ) -> Result<Prepared, Error> {
        planner::check(config, &pod.namespaces(), self.machine.modules)?;
        let images = Images::find(&self.parts.images, config)?;
        let timings = Timings::default();
        let defaults = &*self.options.handlers.defaults(pod.handler(), &self.options.defaults)?;
        let asked = Asked { id, config, images: &images, supervisor, defaults };
        let decision = timings.time("description and plan", || self.decide(pod, &asked))?;
        let (cgroup, log) = self.make(pod, id, &decision, &timings)?;
        let Decision { planned, record, extra: Extra { delegation, .. }, .. } = decision;
        Ok(Prepared { planned, record, cgroup, delegation, leases: images.into_leases(), log, timings })
    }

    /// Decides everything about a container. The only things made are directories of the host that are to be mounted
    /// and do not exist.
    fn decide(&self, pod: &Pod, asked: &Asked<'_>) -> Result<Decision, Error> {
        let Asked { id, config, images, .. } = asked;
        let path = self.container_cgroup(pod, id)?;
        let (mut description, changes) = self.describe(pod, asked, &path)?;
        let of_pod = &*pod.config();
        let given = self.given((pod, of_pod), config, &path);
        let planned = self.options.handlers.plan(&mut description, &given);
        let mut planned = planned.map_err(|error| blame(&changes, error))?;
        asked.supervisor.features().fit(&mut planned.plan).stage("creating the container")?;
        self.selinux.check(&planned.plan)?;
        let mut record =
            ContainerRecord { is_enclosed: planned.is_enclosed, ..intent(config, images, &path) };
        changes.note_in(&mut record.config, &description);
        let Description { spec, extra } = description;
        let (spec, hooks) = planner::to_saved(spec, extra.seccomp)?;
        record.hooks = hooks;
        (record.stop_signal, record.created_at_ns) = (extra.stop_signal.clone(), self.table.creation_time());
        Ok(Decision { extra, spec, planned, record, path })
    }

    fn given<'a>(
        &'a self,
        (pod, config): (&'a Pod, &'a PodSandboxConfig),
        container: &'a ContainerConfig,
        path: &'a CgroupPath,
    ) -> Given<'a> {
        let (layout, cgroup, filters) = (&self.parts.layout, (&self.parts.cgroups, path), &self.filters);
        Given { handler: pod.handler(), layout, pod: (pod.id(), config), container, cgroup, filters }
    }

    /// Describes a container as NRI plugins want it.
    fn describe(&self, of: &Pod, asked: &Asked<'_>, cgroup: &CgroupPath) -> Result<Adjusted, Error> {
        let (pod, places) = (of, self.places(of, asked, cgroup)?);
        let Asked { id, config: container, images, defaults, .. } = *asked;
        let selinux = self.selinux.of(pod.level());
        let mounted = &images.mounted_layers(&pod.namespaces(), selinux)?;
        let (pod_id, pod, image) = (pod.id(), &*pod.config(), &images.config);
        let profile = images.profile();
        let unasked_apparmor = self.unasked_apparmor(of, asked);
        let request = Request {
            pod_id,
            pod,
            id,
            container,
            image,
            mounted,
            profile,
            defaults,
            unasked_apparmor,
            selinux,
        };
        let mut description = host::describe(&request, &self.machine, &places, &self.additions)?;
        let show = |made: &Description| asked.show(of, cgroup, made);
        let inject = |made: &mut Description, names: &[String]| self.additions.devices(made, names);
        let changes = self.parts.plugins.adjust(&mut description, show, inject).stage(ASKING)?;
        Ok((description, changes))
    }

    /// Whether a container gets an AppArmor profile that it does not ask for.
    fn unasked_apparmor(&self, pod: &Pod, asked: &Asked<'_>) -> Switch {
        let has_apparmor = self.machine.modules.apparmor == Switch::On;
        (has_apparmor && asked.supervisor.features().may_add(feature::APPARMOR, pod.id())).into()
    }

    fn places(&self, pod: &Pod, asked: &Asked<'_>, cgroup: &CgroupPath) -> Result<Places, Error> {
        let (layout, held) = (&self.parts.layout, asked.supervisor.held());
        let files = held.path(v1::Held::Files).unwrap_or_else(|| earlier::files(layout, pod.id()));
        let from = ContainerPlaces {
            snapshots: &self.parts.snapshots,
            container: asked.id,
            image: &asked.images.own,
            cgroup: &self.parts.cgroups.at(cgroup),
            reserve: self.parts.images.reserve(),
            pod_files: &files,
            namespaces: places::pins(layout, pod.id(), &held)?,
        };
        Ok(from.places()?)
    }

    /// Makes what was decided. The record comes first, so that everything made later can be found from it.
    fn make(
        &self,
        pod: &Pod,
        id: &ContainerId,
        decision: &Decision,
        timings: &Timings,
    ) -> Result<(Cgroup, LogUnderway), Error> {
        let layout = &self.parts.layout;
        timings.time("record and spec", || {
            decision.record.save(&layout.container_record(pod.id(), id))?;
            save_spec(&layout.container_spec(pod.id(), id), &planner::kept(&decision.spec))?;
            self.hooked(pod, id, &decision.record, 0).make_bundle(&decision.spec)
        })?;
        let cgroup = timings.time("cgroup and limits", || {
            let cgroup = self.parts.cgroups.create(&decision.path).stage("making the container's cgroup")?;
            let cgroup = decision.record.of_cgroup(cgroup);
            cgroup.apply(&decision.planned.limits).stage("setting the container's limits")?;
            Ok::<_, Error>(cgroup)
        })?;
        timings.time("writable layer and volumes", || self.make_files(pod, id, decision))?;
        // Not on this thread, because the log's disk may be slow.
        let log = decision.planned.plan.stdio.log.clone();
        let log = log.and_then(|log| self.logs.begin(move || host::make_log(&log)));
        Ok((cgroup, log))
    }

    fn make_files(&self, pod: &Pod, id: &ContainerId, decision: &Decision) -> Result<(), Error> {
        let Decision { extra, planned, .. } = decision;
        if let Some(top) = extra.layers.lowers.first() {
            let ids = planned.plan.namespaces.user.as_ref().map(|user| user.ids);
            let made = self.parts.snapshots.prepare(id, top.as_path(), ids);
            made.stage("preparing the container's root file system")?;
        }
        for number in 0..extra.volumes.len() {
            self.parts.snapshots.volume(id, number).stage("making the image's volumes")?;
        }
        Ok(host::relabel(&extra.relabelled, &planned.plan, &|| pod.check_lasts().is_ok())?)
    }

    /// The path of a container's cgroup, whether or not it exists.
    pub(super) fn container_cgroup(&self, pod: &Pod, id: &ContainerId) -> Result<CgroupPath, Error> {
        let path = self.options.placement.container(&self.pod_cgroup(pod)?, id.as_str());
        path.map_err(|error| Error::invalid("cgroup_parent", error))
    }
}

/// A refusal is the plugins' that have changed the description, if any has.
fn blame(changes: &Changes, error: host::Error) -> Error {
    let host::Error::Refused(refusal) = error else { return error.into() };
    changes.blame(refusal).map_or_else(Error::from, |error| Error::at(ASKING, error))
}

/// The record of a container that is about to be made.
fn intent(config: &ContainerConfig, images: &Images, cgroup: &CgroupPath) -> ContainerRecord {
    ContainerRecord {
        config: config.clone(),
        image_id: images.own.id.clone(),
        image_ref: images.own.reference.clone(),
        cgroup: cgroup.to_string(),
        layers: images.layers().map(ToString::to_string).collect(),
        mounted_images: images.mounted_ids(),
        ..ContainerRecord::default()
    }
}
