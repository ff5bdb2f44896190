//! What the supervisor holds for one container, and for one exec in it: processes, descriptors and cgroups. The phase
//! of its life is not here: only the machine knows it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_isolation::{CgroupPlan, Identity, Outline};
use wharf_sys::process::{Ended, Reap};
use wharf_types::signal::{SHELL_BASE, SIGKILL};
use wharf_types::{ContainerId, Exit, HostPath};
use wharf_wire::v1::{self, container_status};

use crate::child::{Child, Role};
use crate::clients::Clients;
use crate::diagnostics::{self, OrWarn as _};
use crate::kill;
use crate::leaf;
use crate::log::writer::LogWriter;
use crate::machine::container::Phase;
use crate::output::{Output, Sink, Tail};
use crate::score::Score;
use crate::spawn::set_nonblocking;
use crate::stages::Stages;
use crate::watch::{Out, Source, Watch};

/// How many cgroups of ended execs are retried at the end of the next one.
const LEAVES_AT_ONCE: usize = 4;
/// The exit code of a shell whose command was killed.
const SHELL_OF_KILLED: u8 = SHELL_BASE + SIGKILL;

/// A container, from the request to create it to the request to remove it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) plan: Outline,
    /// Whose PID namespace it is in, for its whole life: the container that it was made beside may go before it. `None`
    /// for the pod's or the host's.
    pub(crate) home: Option<ContainerId>,
    pub(crate) identity: Identity,
    pub(crate) child: Child,
    pub(crate) first: First,
    /// The number by which the log writer knows its log, if it has one.
    pub(crate) log: Option<u64>,
    pub(crate) clients: Clients,
    pub(crate) outputs: BTreeMap<Out, Output>,
    /// What the runtime that makes it has written to its standard error.
    pub(crate) said: Tail,
    /// Kept open so that the container does not see the end of its input; given to the client if the input ends with
    /// the client.
    pub(crate) stdin: Option<OwnedFd>,
    /// Cgroups of ended execs that left a process running.
    leaves: VecDeque<PathBuf>,
    /// The OOM kills counted when its first process was last known to have survived them.
    oom_kills_before: u64,
    /// The `tasks` files that its execs enter, opened for the first exec and kept: opening eight of them in eight
    /// hierarchies is a good part of an exec's cost.
    entries: OnceCell<Vec<OwnedFd>>,
    score: Score,
    pub(crate) stages: Stages,
}

/// What has happened to a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// It is setting up the container, or waits for its start.
    Made,
    /// It has been told to execute the program; the process that does so may not exist yet.
    Started,
    /// It is a zombie, or about to become one.
    Ended,
    /// Its pid may belong to another process.
    Reaped,
}

impl Container {
    pub(crate) fn new(mut plan: Outline, home: Option<ContainerId>, child: Child, stages: Stages) -> Self {
        let oom_kills_before = oom_kills(&plan);
        // It has them from the whole plan, and commands have others.
        plan.process.args = Vec::new();
        Self {
            plan,
            home,
            identity: Identity::default(),
            child,
            first: First::Made,
            log: None,
            clients: Clients::default(),
            outputs: BTreeMap::new(),
            said: Tail::default(),
            stdin: None,
            leaves: VecDeque::new(),
            oom_kills_before,
            entries: OnceCell::new(),
            score: Score::default(),
            stages,
        }
    }

    /// The pid of its first process, as long as it can be no other's.
    pub(crate) fn number(&self) -> Option<i32> {
        (self.first != First::Reaped).then_some(self.child.pid)
    }

    /// The `oom_score_adj` of its first process, which an update may have changed.
    pub(crate) fn oom_score(&self) -> wharf_sys::Result<Option<i32>> {
        self.score.of(&self.child.pid.to_string())
    }

    /// How the first process ended, if it has. It stays a zombie until it is reaped.
    pub(crate) fn ended(&self) -> Option<Exit> {
        let ended = match wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Leave) {
            Ok(ended) => ended?,
            // Nobody else reaps it. If it happened all the same, a container that never ends would be worse.
            Err(error) => {
                diagnostics::warn(format_args!("how container {} ended: {error}", self.plan.container));
                return Some(Exit::Lost);
            }
        };
        let oom = oom_kills(&self.plan) > self.oom_kills_before;
        Some(match ended {
            // If an OOM kill was counted in the meantime, the shell's child was the victim.
            Ended::Signal(SIGKILL) | Ended::Code(SHELL_OF_KILLED) if oom => {
                Exit::Signal { number: SIGKILL, oom: true }
            }
            Ended::Signal(number) => Exit::Signal { number, oom: false },
            Ended::Code(code) => Exit::Code(code),
        })
    }

    pub(crate) fn reap(&mut self) {
        self.first = First::Reaped;
        let reaped = wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Remove).map(drop);
        reaped.or_warn(format_args!("reaping container {}", self.plan.container));
    }

    /// Sends a signal to the first process on request. If the process ends now, an OOM kill of one of its children long
    /// ago is not the reason.
    pub(crate) fn signal(&mut self, number: i32) -> wharf_sys::Result<()> {
        self.excuse_oom_kills();
        self.child.signal(number)
    }

    /// Kills every process of the container on request.
    pub(crate) fn kill(&mut self) {
        self.excuse_oom_kills();
        self.child.kill();
        self.kill_rest();
    }

    /// Marks the OOM kills so far as not those of the first process, if it still exists.
    fn excuse_oom_kills(&mut self) {
        let kills = oom_kills(&self.plan);
        match wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Leave) {
            Ok(None) => self.oom_kills_before = kills,
            Ok(Some(_)) => {}
            Err(error) => {
                let id = &self.plan.container;
                diagnostics::warn(format_args!("whether container {id} has ended: {error}"));
            }
        }
    }

    /// Notes that its first process has ended, and kills all others. No command begins in it any more, so their
    /// environment goes: it may be large, and a container may stay for as long as its pod.
    pub(crate) fn end(&mut self) {
        self.first = First::Ended;
        self.plan.process.env = Vec::new();
        self.kill_rest();
    }

    fn kill_rest(&self) {
        kill::kill_container(&self.plan.cgroup);
    }

    /// Whether its processes are reached through its cgroup in the unified hierarchy. If so, an exec is cloned into its
    /// own cgroup below.
    pub(crate) fn has_unified(&self) -> bool {
        self.plan.cgroup.directory.is_some()
    }

    /// The v1 `tasks` files that its execs enter, except the one of the hierarchy in which each exec has its own
    /// cgroup. They stay open.
    pub(crate) fn entries(&self) -> wharf_sys::Result<Vec<BorrowedFd<'_>>> {
        let entries = match self.entries.get() {
            Some(entries) => entries,
            None => {
                let opened = self.open_entries()?;
                self.entries.get_or_init(|| opened)
            }
        };
        Ok(entries.iter().map(AsFd::as_fd).collect())
    }

    fn open_entries(&self) -> wharf_sys::Result<Vec<OwnedFd>> {
        let own = (!self.has_unified()).then(|| leaf::parent(&self.plan.cgroup));
        let entries = self.plan.cgroup.entries.iter().map(HostPath::as_path);
        let shared = entries.filter(|entry| own.is_none() || entry.parent() != own);
        shared.map(|entry| wharf_sys::fs::open(entry, OFlag::O_WRONLY)).collect()
    }

    /// Takes one of its outputs, and has it watched.
    pub(crate) fn add_output(&mut self, out: Out, source: OwnedFd, watch: &mut Watch) {
        let id = &self.plan.container;
        let watched = watch.add(source.as_fd(), Source::Output(id.clone(), out));
        watched.or_warn(format_args!("an output of container {id} will not be read"));
        self.outputs.insert(out, Output::new(source, out.into()));
    }

    /// Takes its terminal, which is one output for both streams.
    pub(crate) fn add_terminal(&mut self, terminal: OwnedFd, watch: &mut Watch) {
        let id = &self.plan.container;
        set_nonblocking(&terminal).or_warn(format_args!("the terminal of container {id}"));
        self.add_output(Out::Stdout, terminal, watch);
    }

    /// Its output, and where that goes.
    pub(crate) fn output<'a>(
        &'a mut self,
        out: Out,
        writer: &'a mut LogWriter,
    ) -> Option<(&'a Output, Sink<'a>)> {
        let log = self.log.map(|log| (log, writer));
        // The program does not run yet.
        let is_runtimes = out == Out::Stderr && self.first == First::Made && self.plan.runtime.is_some();
        let tail = is_runtimes.then_some(&mut self.said);
        Some((self.outputs.get(&out)?, Sink { log, clients: &mut self.clients, tail }))
    }

    /// Removes the cgroup of an ended exec. If the command left a process running, this is retried at the end of a
    /// later exec; at the latest, the cgroup is removed with the container.
    pub(crate) fn remove_leaf(&mut self, leaf: PathBuf) {
        self.leaves.push_front(leaf);
        for _ in 0..LEAVES_AT_ONCE.min(self.leaves.len()) {
            let Some(leaf) = self.leaves.pop_front() else { return };
            match leaf::remove(&leaf) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => self.leaves.push_back(leaf),
                removed => removed.or_warn(format_args!("removing cgroup {}", leaf.display())),
            }
        }
    }

    pub(crate) fn status(&self, phase: Phase) -> v1::ContainerStatus {
        use container_status::Phase as Wire;
        let mut status = v1::ContainerStatus {
            id: self.plan.container.to_string(),
            pid: self.child.pid,
            ..v1::ContainerStatus::default()
        };
        let phase = match phase {
            Phase::Creating { .. } | Phase::Failed | Phase::Removing { .. } | Phase::Gone => Wire::Unknown,
            Phase::Created => Wire::Created,
            Phase::Starting { .. } | Phase::NotStarted => Wire::Starting,
            Phase::Running { started_at_ns } => {
                status.started_at_ns = started_at_ns;
                Wire::Running
            }
            Phase::Ended(record)
            | Phase::Recording(record)
            | Phase::Unrecorded(record)
            | Phase::Exited(record) => {
                status.started_at_ns = record.started_at_ns;
                status.finished_at_ns = record.finished_at_ns;
                status.exit = Some(record.exit.into());
                Wire::Exited
            }
        };
        status.set_phase(phase);
        status
    }
}

fn oom_kills(plan: &Outline) -> u64 {
    plan.cgroup.oom_file.as_ref().map_or(0, |file| kill::oom_kills(file.as_path()))
}

pub(crate) fn wire_identity(identity: &Identity) -> v1::Identity {
    v1::Identity {
        uid: identity.uid.number(),
        gid: identity.gid.number(),
        groups: identity.groups.iter().map(|group| group.number()).collect(),
    }
}

/// An exec: a further process in a container.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) container: ContainerId,
    pub(crate) child: Child,
    /// Its terminal, to be sent with the reply.
    pub(crate) terminal: Option<OwnedFd>,
    /// Its own cgroup, through which everything that it started is reached.
    pub(crate) leaf: PathBuf,
    /// Whether it is to be killed as soon as it is known.
    pub(crate) condemned: bool,
}

impl Exec {
    /// Kills it, in a container with this cgroup. One that a runtime is making is not in its own cgroup
    /// yet, and is the child of nobody who would find it: whoever calls the runtime is told to hurry, and to name it
    /// first.
    pub(crate) fn kill(&mut self, container: Option<&CgroupPlan>) {
        if self.child.role == Role::Caller {
            self.condemned = true;
            match wharf_sys::socket::send(self.child.report.as_fd(), b"K", &[]) {
                // It has ended by itself, which will be seen soon.
                Err(error) if error.errno == Errno::EPIPE => {}
                told => told.or_warn("hurrying the call of a runtime"),
            }
            return;
        }
        self.child.kill();
        kill::kill_command(&self.leaf, container);
    }

    /// How it ended, once it has; this reaps it.
    pub(crate) fn ended(&self) -> Option<Exit> {
        match wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Remove) {
            Ok(ended) => ended.map(|ended| match ended {
                Ended::Code(code) => Exit::Code(code),
                Ended::Signal(number) => Exit::Signal { number, oom: false },
            }),
            Err(error) => {
                diagnostics::warn(format_args!(
                    "how a command in container {} ended: {error}",
                    self.container
                ));
                Some(Exit::Lost)
            }
        }
    }
}

#[cfg(test)]
mod tests;
