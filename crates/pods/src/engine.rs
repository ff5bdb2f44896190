//! The engine: all pods of the node, the calls that find or list them, and what their changes share.
//!
//! Each module below has the calls of one noun, and only they reach what the engine is made of. The changes: a pod's
//! life is in `pod`, a container's in `create`, `lifecycle` and `remove`; what an earlier daemon left is taken over in
//! `recovery`. Commands and clients of containers: `exec`, `exec_sync`, `interactive`, `port_forward`. What people ask:
//! `usage`, `runtime_spec`, `load`. For each pod a task watches the supervisor (`supervision`) and notes what it
//! reports; `housekeeping` goes on as long as the daemon lives. What cannot be removed at once is retried (`persist`).

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::broadcast;
use wharf_cgroup::{CgroupPath, Cgroups, Placement};
use wharf_cri_api::v1::ContainerEventType;
use wharf_host::namespaces::Template;
use wharf_host::{Additions, AdditionsConfig, Handlers, Labelled, Machine, Obstacle, UserNamespaces};
use wharf_images::Store;
use wharf_network::Network;
use wharf_nri::Plugins;
use wharf_planner::{self as planner, Defaults, Filters};
use wharf_records::Event;
use wharf_snapshots::Snapshots;
use wharf_state::Layout;
use wharf_supervision::Program;
use wharf_tasks::{Aside, Demand, Joins, Threads, Turns, pool};
use wharf_types::{ContainerId, PodId};

use crate::container::{Container, InPod};
use crate::error::{Error, Stage, blocking};
use crate::events::Events;
use crate::pod::Pod;
use crate::table::Table;

mod create;
mod exec;
mod exec_sync;
mod housekeeping;
mod interactive;
mod lifecycle;
mod load;
mod plugins;
mod pod;
mod port_forward;
mod recovery;
mod remove;
mod runtime_spec;
mod supervision;
#[cfg(test)]
mod tests;
mod usage;

use exec_sync::Commands;

pub use exec_sync::ExecOutput;
pub use interactive::Interactive;
pub use load::Load;
pub use usage::{PodUsage, Traffic};

/// The engine's configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the cgroups are.
    pub placement: Placement,
    /// Who makes the containers of pods that ask for a runtime handler.
    pub handlers: Handlers,
    /// What the node has chosen for what requests leave open.
    pub defaults: Defaults,
    /// Where files say what this machine adds to containers.
    pub additions: AdditionsConfig,
}

/// What the engine is built on.
#[derive(Debug)]
pub struct Parts {
    /// The paths of wharf's files.
    pub layout: Layout,
    /// Images.
    pub images: Arc<Store>,
    /// Writable layers.
    pub snapshots: Arc<Snapshots>,
    /// Pod networks.
    pub network: Arc<Network>,
    /// The cgroup hierarchies.
    pub cgroups: Cgroups,
    /// The path of the supervisor's program.
    pub supervisor: std::path::PathBuf,
    /// NRI plugins.
    pub plugins: Arc<Plugins>,
}

/// All pods.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    parts: Parts,
    program: Program,
    filters: Filters,
    commands: Commands,
    /// The creation of logs, whose disk may be slow.
    logs: Aside,
    events: Events,
    /// The measurements of writable layers.
    measurements: Demand,
    machine: Machine,
    /// How pods are labelled.
    selinux: Labelled,
    /// What this machine adds to containers.
    additions: Additions,
    /// Whether pods can have user namespaces.
    user_namespaces: UserNamespaces,
    /// The template for the pods' mount namespaces.
    template: Template,
    table: Table,
    /// The deletions of containers that go on: each container has one at a time.
    deletions: Joins<ContainerId, Result<(), Error>>,
    /// Limits concurrent calls of network plugins, which may hang.
    network_turns: Turns,
    /// The threads in which pods and containers are made: a directory of the host may never respond.
    making: Threads<PodId>,
}

impl Engine {
    /// Makes an engine without pods; [`Engine::recover`] finds those of an earlier daemon.
    ///
    /// # Errors
    /// The supervisor's program cannot be read, the state directory or the template for mount namespaces cannot be
    /// made, or containers are to be labelled and the policy has nothing for them.
    #[expect(clippy::disallowed_methods, reason = "no task exists yet")]
    pub fn new(options: Options, parts: Parts) -> Result<Arc<Self>, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let program = Program::load(&parts.supervisor, &parts.cgroups, &options.placement);
        let program = program.stage("loading the supervisor's program")?;
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(parts.layout.pods())
            .stage("making the state directory")?;
        let additions = Additions::new(options.additions.clone());
        let selinux = Labelled::look(&options.defaults)?;
        Ok(Arc::new(Self {
            options,
            user_namespaces: UserNamespaces::try_out(parts.layout.root()),
            parts,
            program,
            filters: Filters::default(),
            commands: Commands::default(),
            logs: Aside::new(pool::LOGS, pool::LOGS_PATIENCE),
            events: Events::new(),
            measurements: Demand::default(),
            machine: Machine::look()?,
            selinux,
            additions,
            template: Template::make()?,
            table: Table::default(),
            deletions: Joins::default(),
            network_turns: Turns::new(pool::NETWORK),
            making: Threads::with_pool("making", pool::MAKING_LIMITS, pool::MAKING),
        }))
    }

    /// Problems in the files of CDI and of hooks, as text. Blocking: it reads them.
    #[must_use]
    pub fn problems_of_additions(&self) -> Vec<String> {
        self.additions.problems()
    }

    /// Whether pods can have user namespaces, as was tried when the engine was made, or when a pod last asked for one.
    ///
    /// # Errors
    /// The step that failed.
    pub fn user_namespaces(&self) -> Result<(), Arc<Obstacle>> {
        self.user_namespaces.outcome()
    }

    /// All pods that have something here: beside those that are listed, those of an earlier daemon that cannot be used
    /// now and are left alone.
    #[must_use]
    pub fn owners(&self) -> HashSet<PodId> {
        self.table.owners()
    }

    /// What finds and ends supervisors whose pods are not listed.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The runtime handlers.
    #[must_use]
    pub fn handlers(&self) -> &Handlers {
        &self.options.handlers
    }

    /// What this machine can do.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The path of the cgroup that contains those of a pod's containers, whether or not it exists.
    pub(crate) fn pod_cgroup(&self, pod: &Pod) -> Result<CgroupPath, Error> {
        Ok(planner::cgroup(pod.id(), &pod.config(), &self.options.placement)?)
    }

    /// Runs work on a pod that may wait for a disk or the kernel, on the thread pool for that.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        work: impl FnOnce(&Self, &Pod) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (engine, pod) = (Arc::clone(self), Arc::clone(pod));
        blocking(move || work(&engine, &pod)).await
    }

    /// All pods, sorted by id.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.table.pods()
    }

    /// All containers.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.pods().iter().flat_map(|pod| pod.containers()).collect()
    }

    /// The pod with an id, or with a unique prefix of one.
    ///
    /// # Errors
    /// NotFound; InvalidArgument if the prefix is not unique.
    pub fn pod(&self, id: &str) -> Result<Arc<Pod>, Error> {
        self.table.pod(id)
    }

    /// The container with an id, or with a unique prefix of one, and its pod.
    ///
    /// # Errors
    /// NotFound; InvalidArgument if the prefix is not unique.
    pub fn container(&self, id: &str) -> Result<InPod, Error> {
        self.table.container(id)
    }

    /// The lifecycle events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Notes that a listener was so slow that it missed this many events.
    pub fn missed(&self, events: u64) {
        self.events.missed(events);
    }

    /// How many listen to events, and how many events slow listeners have missed.
    #[must_use]
    pub fn listeners(&self) -> (usize, u64) {
        self.events.listeners()
    }

    /// Ends the streams of events, because the daemon is about to exit.
    pub fn end_events(&self) {
        self.events.end();
    }

    /// Lists a container that was just created.
    ///
    /// # Errors
    /// FailedPrecondition if its pod ends.
    pub(crate) fn publish(self: &Arc<Self>, pod: &Pod, container: &Arc<Container>) -> Result<(), Error> {
        let early = {
            let _order = pod.telling();
            // Whoever ends the pod says so before it has this lock, and afterwards ends what is listed.
            pod.check_lasts()?;
            let mut making = pod.making();
            self.table.insert_container(pod, container);
            self.events.tell(ContainerEventType::ContainerCreatedEvent, container.id().as_str(), pod);
            making.remove(container.id()).flatten()
        };
        self.parts.plugins.created(container.id());
        if let Some(exit) = early {
            self.ended(pod, container, exit);
        }
        Ok(())
    }

    pub(crate) async fn kill_container(&self, container: &Container) -> Result<(), Error> {
        match container.cgroup() {
            Some(cgroup) => Ok(wharf_supervision::kill_cgroup(cgroup).await?),
            None => Ok(()),
        }
    }
}
