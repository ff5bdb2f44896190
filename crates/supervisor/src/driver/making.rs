//! Creating processes: a container's first one, and those of execs.
//!
//! A process is cloned here and prepares itself; nothing waits for it. Its descriptors, its cgroup and the pipes of its
//! streams are made before the clone, so that a failure there leaves no process.

use std::os::fd::{AsFd, OwnedFd};

use wharf_isolation::{JoinPlan, Origin, Others, Outline, PidNamespace, Place, Runtime, Sandbox, Streams};
use wharf_runtimes::Command;
use wharf_types::{ContainerId, capability};

use super::Driver;
use crate::child::Child;
use crate::container::{Container, Exec, First};
use crate::failure::Failure;
use crate::leaf::{self, Leaf};
use crate::pod_reaper::PodReaper;
use crate::requests::{NewContainer, NewExec};
use crate::sandbox::Keeper;
use crate::spawn::{Pipes, pipes};
use crate::stages::Stages;
use crate::watch::{Out, Owner, Source};

impl Driver {
    /// Creates a container's first process, which sets everything up and waits for its start.
    // Its frame is large: inlined, it would be a part of each turn's, and so of every supervisor's memory.
    #[inline(never)]
    pub(super) fn spawn(&mut self, id: &ContainerId) -> Result<(), Failure> {
        let stages = Stages::begin();
        let NewContainer { plan, whole, log_directory } = self.payload.take_container()?;
        let home = self.home(&plan);
        self.check_unsealed(&plan, home.as_ref())?;
        let (streams, pipes) = pipes(plan.stdio.input)?;
        self.ensure_namespaces(&plan)?;
        let place = self.place(&plan, home.as_ref())?;
        let cgroup = birthplace(&plan)?;
        let pod = self.held.namespaces()?;
        let mut keep = streams.descriptors();
        keep.extend(place.descriptor());
        keep.extend(pod.descriptors());
        let body = |origin: Origin<'_>| match origin.place {
            Place::Runtimes(_) | Place::Sandbox(_) => wharf_runtimes::create(&whole, pod, &streams, origin),
            _ => wharf_isolation::create(&whole, pod, &streams, origin),
        };
        let child = self.spawner.spawn(place, cgroup.as_ref().map(AsFd::as_fd), &keep, body);
        self.hold(id, Container::new(*plan, home, child?, stages), pipes, log_directory)
    }

    /// Holds a container whose first process is setting everything up, and has its log opened at the same time; the
    /// reply waits for both.
    fn hold(
        &mut self,
        id: &ContainerId,
        mut container: Container,
        pipes: Pipes,
        log_directory: Option<OwnedFd>,
    ) -> Result<(), Failure> {
        container.child.watch(&mut self.watch, &Owner::Container(id.clone()))?;
        self.connect_pipes(&mut container, pipes);
        let log = container.plan.stdio.log.clone();
        container.log = log.map(|log| self.log_writer.open(log, log_directory, id.clone()));
        self.containers.insert(id.clone(), Box::new(container));
        Ok(())
    }

    /// Makes what containers of the pod are in if this is the first of them that needs it.
    fn ensure_namespaces(&mut self, plan: &Outline) -> Result<(), Failure> {
        match &plan.runtime {
            Some(runtime @ Runtime { sandbox: Some(sandbox), .. }) => self.ensure_sandbox(runtime, sandbox),
            _ => self.ensure_reaper(plan),
        }
    }

    /// Makes the first process of the pod's PID namespace if this container is the first to use it.
    fn ensure_reaper(&mut self, plan: &Outline) -> Result<(), Failure> {
        if plan.namespaces.pid != PidNamespace::Pod || self.reaper.is_some() {
            return Ok(());
        }
        let pod = self.held.namespaces()?;
        let reaper = PodReaper::start(self.spawner.witness(), pod, plan)
            .map_err(|failure| failure.within("making the pod's PID namespace"))?;
        let watched = self.watch.add(reaper.pidfd.as_fd(), Source::Reaper);
        watched.inspect_err(|_unwatched| reaper.end())?;
        self.reaper = Some(reaper);
        Ok(())
    }

    /// Has the pod's sandbox made if this container is the first in it.
    fn ensure_sandbox(&mut self, runtime: &Runtime, sandbox: &Sandbox) -> Result<(), Failure> {
        if self.sandbox.is_some() {
            return Ok(());
        }
        let keeper = Keeper::start(self.spawner.witness(), runtime, sandbox)?;
        let watched = self.watch.add(keeper.pidfd.as_fd(), Source::Sandbox);
        watched.inspect_err(|_unwatched| keeper.end())?;
        self.sandbox = Some(keeper);
        Ok(())
    }

    /// Where a container's program runs.
    fn place(&self, plan: &Outline, home: Option<&ContainerId>) -> Result<Place<'_>, Failure> {
        let namespace = || self.namespace(plan, home);
        match &plan.runtime {
            None => namespace(),
            Some(Runtime { sandbox: None, .. }) => Ok(Place::Runtimes(namespace()?.process())),
            Some(Runtime { sandbox: Some(_), .. }) => self.in_sandbox(),
        }
    }

    fn in_sandbox(&self) -> Result<Place<'_>, Failure> {
        let keeper = self.sandbox.as_ref();
        let keeper = keeper.ok_or_else(|| Failure::precondition("the pod's sandbox has ended"))?;
        Ok(Place::Sandbox(keeper.made()))
    }

    fn namespace(&self, plan: &Outline, home: Option<&ContainerId>) -> Result<Place<'_>, Failure> {
        let process = match &plan.namespaces.pid {
            PidNamespace::Container => return Ok(Place::New),
            PidNamespace::Host => return Ok(Place::Host),
            PidNamespace::Pod => {
                let reaper =
                    self.reaper.as_ref().ok_or_else(|| Failure::fault("the pod has no PID namespace"))?;
                &reaper.pidfd
            }
            PidNamespace::Target(target) => &self.container(target)?.child.pidfd,
        };
        Ok(Place::Of(process.as_fd(), self.others(plan, home)))
    }

    /// What the processes may be in the PID namespace of a container, its own included.
    pub(super) fn others(&self, plan: &Outline, home: Option<&ContainerId>) -> Others {
        let alive = self.containers.values().filter(|container| container.first != First::Reaped);
        let there = alive.filter(|container| container.home.as_ref() == home);
        if there.map(|container| &container.plan).chain([plan]).any(may_trace) {
            Others::Tracers
        } else {
            Others::Bystanders
        }
    }

    /// Refuses a container that may trace while a process begins beside it that is not under its filter yet, because
    /// nobody could trace it so far. All that begin later are asked to be under theirs.
    fn check_unsealed(&self, plan: &Outline, home: Option<&ContainerId>) -> Result<(), Failure> {
        if !may_trace(plan) {
            return Ok(());
        }
        let firsts = self.containers.values().filter(|container| container.first == First::Started);
        let firsts = firsts.map(|container| (container, &container.child));
        let commands = self.execs.values();
        let commands = commands.filter_map(|exec| Some((self.containers.get(&exec.container)?, &exec.child)));
        let mut unsealed = firsts.chain(commands).filter(|(of, child)| {
            let Outline { process, runtime, .. } = &of.plan;
            child.begins()
                && runtime.is_none()
                && of.home.as_ref() == home
                && !wharf_isolation::is_sealed_at_birth(&process.seccomp, child.report.as_fd())
        });
        unsealed.next().map_or(Ok(()), |(of, _)| {
            Err(Failure::precondition(format!(
                "container {} is starting a program that is not under its seccomp profile yet; a container with \
                 CAP_SYS_PTRACE can join it only after that: try again",
                of.plan.container
            )))
        })
    }

    /// Whose PID namespace a container that is made now is in: that of a container, or else the pod's or the host's.
    fn home(&self, plan: &Outline) -> Option<ContainerId> {
        match &plan.namespaces.pid {
            PidNamespace::Container => Some(plan.container.clone()),
            PidNamespace::Target(target) => {
                self.containers.get(target).map_or_else(|| Some(target.clone()), |target| target.home.clone())
            }
            PidNamespace::Pod | PidNamespace::Host => None,
        }
    }

    /// A terminal comes later, with the report that the process is ready.
    fn connect_pipes(&mut self, container: &mut Container, pipes: Pipes) {
        container.stdin = pipes.stdin;
        if container.plan.stdio.terminal {
            return;
        }
        for (out, pipe) in [(Out::Stdout, pipes.stdout), (Out::Stderr, pipes.stderr)] {
            container.add_output(out, pipe, &mut self.watch);
        }
    }

    /// Creates a process that enters a container and executes a command.
    // The same.
    #[inline(never)]
    pub(super) fn enter(&mut self, number: u64, id: ContainerId) -> Result<(), Failure> {
        let new = self.payload.take_exec()?;
        let container = self.container(&id)?;
        let mut plan = self.join_plan(container, &new)?;
        let leaf = Leaf::make(&container.plan.cgroup, number)?;
        plan.entries.extend(leaf.tasks());
        let spawned = self.spawn_command(container, &plan, &leaf, &new.streams);
        let mut child = spawned.map_err(|error| {
            leaf::discard(&leaf.path);
            leaf::refused(error)
        })?;
        child.awaits_ready = new.terminal;
        child.watch(&mut self.watch, &Owner::Exec(number))?;
        let exec = Exec { container: id, child, terminal: None, leaf: leaf.path, condemned: false };
        self.execs.insert(number, Box::new(exec));
        Ok(())
    }

    /// Spawns the process, which enters the container by itself, or is replaced by one that the container's runtime
    /// makes.
    fn spawn_command(
        &self,
        container: &Container,
        plan: &JoinPlan<'_>,
        leaf: &Leaf,
        streams: &Streams,
    ) -> wharf_sys::Result<Child> {
        let Outline { container: id, runtime, cgroup, .. } = &container.plan;
        if let Some(runtime) = runtime {
            let command = Command { container: id, runtime, cgroup, leaf: &leaf.path, plan };
            let body = |origin: Origin<'_>| wharf_runtimes::execute(&command, streams, origin);
            let keeper = self.sandbox.as_ref();
            let place = keeper.map_or(Place::Runtimes(None), |keeper| Place::Sandbox(keeper.made()));
            return self.spawner.spawn(place, None, &streams.descriptors(), body);
        }
        let first = container.child.pidfd.as_fd();
        let keep = [&streams.descriptors()[..], &[first], &plan.entries].concat();
        let body = |origin: Origin<'_>| wharf_isolation::join(plan, first, streams, origin);
        self.spawner.spawn(
            Place::Of(first, self.others(&container.plan, container.home.as_ref())),
            leaf.directory(),
            &keep,
            body,
        )
    }

    /// The container's own process with other arguments.
    fn join_plan<'a>(&self, container: &'a Container, new: &NewExec) -> wharf_sys::Result<JoinPlan<'a>> {
        let mut process = container.plan.process.clone();
        process.args.clone_from(&new.args);
        let score = container.oom_score()?.or(process.oom_score_adj);
        // What it inherits need not be set.
        let inherited = self.score.of("self")?;
        process.oom_score_adj = score.filter(|score| inherited != Some(*score));
        if new.terminal && !process.env.iter().any(|variable| variable.starts_with(b"TERM=")) {
            process.env.push(b"TERM=xterm".to_vec());
        }
        let (identity, entries) = (container.identity.clone(), container.entries()?);
        let ids = container.plan.namespaces.user.as_ref().map(|user| user.ids);
        Ok(JoinPlan { process, identity, ids, entries, terminal: new.terminal, size: new.size })
    }
}

fn may_trace(plan: &Outline) -> bool {
    plan.process.capabilities.bounding & capability::SYS_PTRACE != 0
}

/// The unified cgroup in which a container's first process begins, if it is not another runtime's.
fn birthplace(plan: &Outline) -> wharf_sys::Result<Option<OwnedFd>> {
    let cgroup = plan.cgroup.directory.as_ref().filter(|_| plan.runtime.is_none());
    cgroup.map(|path| leaf::open_directory(path.as_path())).transpose()
}
