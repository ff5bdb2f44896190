//! CreateContainer: image, limits, snapshot, plan, and the first process that waits for its start.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32};

use wharf_cgroup::{Cgroup, CgroupPath, StatsReader};
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_images::Hold;
use wharf_isolation::{Plan, Rootfs};
use wharf_types::{ContainerId, ContainerPath, ContainerState, HostPath};
use wharf_wire::v1::{self, reply, request};

use super::Engine;
use crate::container::{Container, Layers};
use crate::error::{Error, Stage, blocking};
use crate::images::ImageView;
use crate::key::ContainerKey;
use crate::lock::{Mutex, RwLock};
use crate::lower::{self, Context, Disk};
use crate::pod::{Making, Pod, is_privileged};
use crate::records::{self, ContainerRecord};
use crate::supervisor::SupervisorError;
use crate::{refuse, resources};

/// A container that is made but for its first process.
struct Prepared {
    plan: Plan,
    record: ContainerRecord,
    cgroup: Cgroup,
    hold: Hold,
}

impl Engine {
    /// Makes a container; a retry with the same metadata joins the call in flight or gets its container. `now` is the pod's
    /// request as its caller would make it today: it may have privileged containers only since.
    ///
    /// # Errors
    /// NotFound, InvalidArgument, FailedPrecondition if the pod is not ready or its container of this name has exited, or
    /// the stage that failed; then nothing is left.
    pub async fn create_container(
        self: &Arc<Self>,
        pod: &str,
        config: ContainerConfig,
        now: &PodSandboxConfig,
    ) -> Result<ContainerId, Error> {
        let pod = self.pod(pod)?;
        if asks_for_privilege(&config) && !(is_privileged(&pod.config) || is_privileged(now)) {
            return Err(Error::invalid("privileged", "the pod sandbox is not privileged"));
        }
        let key = ContainerKey::of(&pod.id, &config)?;
        let engine = Arc::clone(self);
        let made =
            self.container_calls.run(key, move || async move { engine.make_container(pod, config).await });
        let id = made.await?;
        // A retry of a call whose container ran since then: nobody may take that for a new one.
        match self.container(id.as_str())?.1.is_exited() {
            true => {
                Err(Error::State { what: "container", id: id.to_string(), state: "exited: remove it first" })
            }
            false => Ok(id),
        }
    }

    async fn make_container(
        self: Arc<Self>,
        pod: Arc<Pod>,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        let _order = pod.changing.lock().await;
        if !pod.is_ready() {
            return Err(Error::State { what: "pod sandbox", id: pod.id.to_string(), state: "not ready" });
        }
        let id = ContainerId::from_random(wharf_sys::random::bytes().stage("making an id")?);
        *pod.making() = Some(Making { id: id.clone(), exit: None });
        match self.build_container(&pod, &id, config).await {
            Ok(container) => {
                self.publish(&pod, &container).await;
                Ok(id)
            }
            Err(error) => {
                *pod.making() = None;
                self.undo_container(&pod, &id).await;
                Err(error)
            }
        }
    }

    async fn build_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        id: &ContainerId,
        config: ContainerConfig,
    ) -> Result<Arc<Container>, Error> {
        const STAGE: &str = "creating the container";
        let (engine, of, with) = (Arc::clone(self), Arc::clone(pod), id.clone());
        let mut prepared = blocking(move || engine.prepare(&of, &with, &config)).await?;
        let supervisor = pod.connected().await?;
        supervisor.features().fit(&mut prepared.plan.mounts).stage(STAGE)?;
        let plan = wharf_wire::to_file(&v1::Plan::from(&prepared.plan)).stage(STAGE)?;
        let log = match prepared.plan.stdio.log.clone() {
            Some(log) => self.logs.make(log).await?,
            None => None,
        };
        let body = request::Body::Create(v1::Create { container: id.to_string() });
        let descriptors: Vec<_> = [&plan].into_iter().chain(&log).map(AsFd::as_fd).collect();
        let answer = supervisor.call(STAGE, body, &descriptors).await?;
        let reply::Result::Created(created) = answer else {
            return Err(Error::at(
                STAGE,
                SupervisorError::Protocol { expected: "the container's first process" },
            ));
        };
        prepared.record.identify(created.identity.unwrap_or_default());
        let (engine, of, with) = (Arc::clone(self), Arc::clone(pod), id.clone());
        let container = blocking(move || {
            let Prepared { record, cgroup, hold, .. } = prepared;
            records::save_container(&engine.parts.layout.container_record(&of.id, &with), &record)?;
            let layers = Layers::held(hold, Arc::clone(&engine.parts.images));
            Ok(container(&of, &with, record, Some(cgroup), (ContainerState::Created, layers)))
        });
        let container = container.await?;
        container.set_pid(created.pid);
        Ok(Arc::new(container))
    }

    fn prepare(&self, pod: &Pod, id: &ContainerId, config: &ContainerConfig) -> Result<Prepared, Error> {
        let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let image = ImageView::find(&self.parts.images, name)?;
        let context =
            Context { layout: &self.parts.layout, pod, config, image: &image, bounding: self.bounding };
        let security = context.security();
        refuse::container(config, &pod.namespaces())?;
        let asked = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        resources::check(&asked)?;
        let capabilities = lower::capabilities(&context)?;
        let filter = self.seccomp.program(&security, capabilities.bounding)?;
        let path = self.container_cgroup(pod, id)?;
        // Intent first: what is made from here on is found by this record.
        let mut record = lower::record(&context, &path, self.creation_time());
        record.layers = image.layers.iter().map(ToString::to_string).collect();
        records::save_container(&self.parts.layout.container_record(&pod.id, id), &record)?;
        let cgroup = self.parts.cgroups.create(&path).stage("making the container's cgroup")?;
        let limits = resources::limits(&asked, Some(lower::device_rules(&context)?));
        cgroup.apply(&limits).stage("setting the container's limits")?;
        let rootfs = self.rootfs(&image, id, security.readonly_rootfs.into())?;
        let disk = Disk { rootfs, volumes: self.volumes(id, lower::volumes(&context)?)? };
        let plan = lower::plan(&context, id, &cgroup, disk, filter.as_deref())?;
        Ok(Prepared { plan, record, cgroup, hold: image.hold })
    }

    /// Where a container's cgroup is, whether it was made or not.
    pub(crate) fn container_cgroup(&self, pod: &Pod, id: &ContainerId) -> Result<CgroupPath, Error> {
        let path = pod_cgroup(&self.options.cgroup_parent, pod)?;
        path.child(id.as_str()).map_err(|error| Error::invalid("cgroup_parent", error))
    }

    fn rootfs(&self, image: &ImageView, id: &ContainerId, access: Access) -> Result<Rootfs, Error> {
        const STAGE: &str = "preparing the container's root file system";
        let top = image.layers.first().ok_or_else(|| Error::invalid("image", "it has no layers"))?;
        let snapshot = self.parts.snapshots.prepare(id, top.as_path()).stage(STAGE)?;
        Ok(Rootfs {
            lowers: image.layers.clone(),
            upper: HostPath::new(&snapshot.upper.to_string_lossy()).stage(STAGE)?,
            work: HostPath::new(&snapshot.work.to_string_lossy()).stage(STAGE)?,
            read_only: access == Access::ReadOnly,
        })
    }

    /// A directory for each of the image's volumes.
    fn volumes(
        &self,
        id: &ContainerId,
        volumes: Vec<ContainerPath>,
    ) -> Result<Vec<(ContainerPath, HostPath)>, Error> {
        const STAGE: &str = "making the image's volumes";
        let made = volumes.into_iter().enumerate().map(|(number, target)| {
            let directory = self.parts.snapshots.volume(id, number).stage(STAGE)?;
            Ok((target, HostPath::new(&directory.to_string_lossy()).stage(STAGE)?))
        });
        made.collect()
    }
}

fn asks_for_privilege(config: &ContainerConfig) -> bool {
    let linux = config.linux.as_ref();
    linux.and_then(|linux| linux.security_context.as_ref()).is_some_and(|context| context.privileged)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    Writable,
}

impl From<bool> for Access {
    fn from(read_only: bool) -> Self {
        if read_only { Self::ReadOnly } else { Self::Writable }
    }
}

/// The cgroup that holds a pod's containers: the request's, or one of the pod's own.
pub(crate) fn pod_cgroup(default_parent: &str, pod: &Pod) -> Result<CgroupPath, Error> {
    let asked = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
    let fail = |error| Error::invalid("cgroup_parent", error);
    if asked.is_empty() {
        let parent = CgroupPath::new(default_parent).map_err(fail)?;
        return parent.child(pod.id.as_str()).map_err(fail);
    }
    CgroupPath::new(asked).map_err(fail)
}

/// A container in memory.
pub(crate) fn container(
    pod: &Pod,
    id: &ContainerId,
    record: ContainerRecord,
    cgroup: Option<Cgroup>,
    (state, layers): (ContainerState, Layers),
) -> Container {
    let directory = pod.config.log_directory.trim_end_matches('/');
    let name = &record.config.log_path;
    let log_path =
        if directory.is_empty() || name.is_empty() { String::new() } else { format!("{directory}/{name}") };
    let stats = cgroup.as_ref().map(StatsReader::new);
    Container {
        id: id.clone(),
        pod: pod.id.clone(),
        record: RwLock::new(record),
        state: tokio::sync::watch::Sender::new(state),
        stats,
        cgroup,
        pid: AtomicI32::new(0),
        meter: Mutex::default(),
        log_path,
        changing: tokio::sync::Mutex::new(()),
        guessed: AtomicBool::new(false),
        _layers: layers,
    }
}
