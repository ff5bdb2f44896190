//! Creating processes: a container's first one, and those of execs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use wharf_isolation::{JoinPlan, Origin, Outline, PidNamespace, Place, Streams};
use wharf_sys::error::Named as _;
use wharf_types::ContainerId;

use super::Driver;
use crate::container::{Container, Exec};
use crate::machine::Failure;
use crate::pod_reaper::PodReaper;
use crate::requests::{Command, Creation, Given, internal};
use crate::spawn::{Child, pipes};
use crate::trouble::OrTell as _;
use crate::watch::{Out, Source};

impl Driver {
    /// Creates a container's first process, which sets everything up and waits for its start.
    pub(super) fn spawn(&mut self, id: &ContainerId) -> Result<(), Failure> {
        let Given::Creation(creation) = std::mem::replace(&mut self.given, Given::Nothing) else {
            return Err(internal("a container without a plan"));
        };
        let Creation { plan, whole, log_directory } = creation;
        let (streams, pipes) = pipes(plan.stdio.input).map_err(internal)?;
        let child = self.spawn_first((&plan, &whole), &streams)?;
        self.watch_child(&child, [Source::Report(id.clone()), Source::Exit(id.clone())])?;
        let terminal = plan.stdio.terminal;
        let mut container = Container::new(*plan, child);
        if !terminal {
            for (out, pipe) in [(Out::Stdout, pipes.stdout), (Out::Stderr, pipes.stderr)] {
                let watched = self.watch.add(pipe.as_fd(), Source::Output(id.clone(), out));
                watched.or_tell(format_args!("an output of container {id} will not be read"));
                container.add_output(out, pipe);
            }
        }
        container.stdin = pipes.stdin;
        // At the same time as the first process sets things up; the reply waits for both.
        let log = container.plan.stdio.log.clone();
        container.log = log.map(|log| self.log_writer.open(log, log_directory, id.clone()));
        self.containers.insert(id.clone(), container);
        Ok(())
    }

    fn spawn_first(&mut self, (plan, whole): (&Outline, &[u8]), streams: &Streams) -> Result<Child, Failure> {
        self.ensure_reaper(plan)?;
        let place = match &plan.namespaces.pid {
            PidNamespace::Container => Place::New,
            PidNamespace::Host => Place::Host,
            PidNamespace::Pod => match &self.reaper {
                Some(reaper) => Place::Of(reaper.pidfd.as_fd()),
                None => return Err(internal("the pod has no PID namespace")),
            },
            PidNamespace::Target(target) => match self.containers.get(target) {
                Some(target) => Place::Of(target.child.pidfd.as_fd()),
                None => return Err(internal(format!("target container {target} is not held"))),
            },
        };
        let cgroup = plan.cgroup.directory.as_ref().map(|path| open_directory(path.as_path()));
        let cgroup = cgroup.transpose().map_err(internal)?;
        let pod = self.held.namespaces()?;
        let mut keep = streams.descriptors();
        keep.extend(place.process());
        keep.extend(pod.descriptors());
        let body = |origin: Origin<'_>| wharf_isolation::create(whole, pod, streams, origin);
        self.spawner.spawn(place, cgroup.as_ref().map(AsFd::as_fd), &keep, body).map_err(internal)
    }

    /// Makes the first process of the pod's PID namespace if this container is the first to use it.
    fn ensure_reaper(&mut self, plan: &Outline) -> Result<(), Failure> {
        if plan.namespaces.pid != PidNamespace::Pod || self.reaper.is_some() {
            return Ok(());
        }
        let pod = self.held.namespaces()?;
        let reaper = PodReaper::start(self.spawner.witness(), pod, &plan.namespaces)
            .map_err(|error| internal(format!("the pod's PID namespace: {error}")))?;
        let watched = self.watch.add(reaper.pidfd.as_fd(), Source::Reaper);
        watched.inspect_err(|_unwatched| reaper.end()).map_err(internal)?;
        self.reaper = Some(reaper);
        Ok(())
    }

    /// Watches a child. One that cannot be watched is killed, and is reaped with the strays.
    fn watch_child(&mut self, child: &Child, sources: [Source; 2]) -> Result<(), Failure> {
        let [report, exit] = sources;
        let watched = self.watch.add(child.report.as_fd(), report);
        let watched = watched.and_then(|()| self.watch.add(child.pidfd.as_fd(), exit));
        watched.map_err(|error| {
            child.abandon();
            internal(error)
        })
    }

    /// Creates a process that enters a container and executes a command.
    pub(super) fn enter(&mut self, number: u64, id: ContainerId) -> Result<(), Failure> {
        let Given::Command(command) = std::mem::replace(&mut self.given, Given::Nothing) else {
            return Err(internal("a command without its streams"));
        };
        let Some(container) = self.containers.get(&id) else {
            return Err(internal(format!("container {id} is not held")));
        };
        let entries = container.entries().map_err(internal)?;
        let leaf = container.plan.cgroup.kill_directory.as_path().join(format!("exec-{number}"));
        let own = make_leaf(container, &leaf).map_err(internal)?;
        let mut plan = join_plan(container, &command, (entries, &own));
        // What it inherits need not be set.
        plan.process.oom_score_adj =
            plan.process.oom_score_adj.filter(|score| self.score.of("self") != Some(*score));
        let child = self.spawn_command(container, &command.streams, (&plan, &own));
        let mut child = child.inspect_err(|_failed| remove_leaf(&leaf))?;
        child.awaits_ready = command.terminal;
        self.watch_child(&child, [Source::ExecReport(number), Source::ExecExit(number)])?;
        self.execs.insert(number, Exec { container: id, child, terminal: None, leaf });
        Ok(())
    }

    fn spawn_command(
        &self,
        container: &Container,
        streams: &Streams,
        (plan, own): (&JoinPlan<'_>, &Leaf),
    ) -> Result<Child, Failure> {
        let first = container.child.pidfd.as_fd();
        let mut keep = streams.descriptors();
        keep.push(first);
        keep.extend(&plan.entries);
        let cgroup = match own {
            Leaf::Directory(directory) => Some(directory.as_fd()),
            Leaf::Tasks(_) => None,
        };
        let body = |origin: Origin<'_>| wharf_isolation::join(plan, first, streams, origin);
        self.spawner.spawn(Place::Of(first), cgroup, &keep, body).map_err(internal)
    }
}

fn open_directory(path: &Path) -> wharf_sys::Result<OwnedFd> {
    wharf_sys::fs::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// An exec's own cgroup, opened in the way in which it is entered.
enum Leaf {
    /// In the unified hierarchy: the exec is cloned into it.
    Directory(OwnedFd),
    /// In a v1 hierarchy: the exec enters it as its first step.
    Tasks(OwnedFd),
}

/// The container's own process with other arguments, in its own cgroup below the container's.
fn join_plan<'a>(
    container: &Container,
    command: &Command,
    (mut entries, own): (Vec<BorrowedFd<'a>>, &'a Leaf),
) -> JoinPlan<'a> {
    let mut process = container.plan.process.clone();
    process.args.clone_from(&command.args);
    process.oom_score_adj = container.oom_score().or(process.oom_score_adj);
    if command.terminal && !process.env.iter().any(|variable| variable.starts_with(b"TERM=")) {
        process.env.push(b"TERM=xterm".to_vec());
    }
    if let Leaf::Tasks(tasks) = own {
        entries.push(tasks.as_fd());
    }
    let identity = container.identity.clone();
    JoinPlan { process, identity, entries, terminal: command.terminal, size: command.size }
}

/// Makes an exec's own cgroup below the container's.
fn make_leaf(container: &Container, leaf: &Path) -> wharf_sys::Result<Leaf> {
    let made = std::fs::create_dir(leaf);
    made.named("mkdir", || format!("{}, the exec's cgroup", leaf.display()))?;
    let opened = if container.has_unified() {
        open_directory(leaf).map(Leaf::Directory)
    } else {
        wharf_sys::fs::open(leaf.join("tasks"), OFlag::O_WRONLY).map(Leaf::Tasks)
    };
    opened.inspect_err(|_failed| remove_leaf(leaf))
}

/// Removes the cgroup of an exec from which nothing can be left.
pub(super) fn remove_leaf(leaf: &Path) {
    match std::fs::remove_dir(leaf) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.or_tell(format_args!("removing cgroup {}", leaf.display())),
    }
}
