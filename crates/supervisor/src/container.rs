//! What the supervisor holds of one container.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use wharf_isolation::{Identity, Plan};
use wharf_sys::process::{Ended, Reap};
use wharf_types::{ContainerId, Exit};
use wharf_wire::v1;

use crate::audience::Audience;
use crate::kill;
use crate::lifecycle::Phase;
use crate::log::{Log, Stream};
use crate::output::{More, Output, Sink};
use crate::spawn::Child;
use crate::watch::Out;

/// A container, from the request to make it until the request to remove it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) phase: Phase,
    pub(crate) plan: Plan,
    pub(crate) identity: Identity,
    pub(crate) child: Child,
    pub(crate) sink: Sink,
    pub(crate) outputs: BTreeMap<Out, Output>,
    /// Kept open so that the container does not see the end of its input; the client's own where that is to end it.
    pub(crate) stdin: Option<OwnedFd>,
    oom_kills_before: u64,
}

impl Container {
    pub(crate) fn new(plan: Plan, child: Child, log: Option<Log>, request: u64) -> Self {
        let oom_kills_before = oom_kills(&plan);
        Self {
            phase: Phase::Creating { request },
            plan,
            identity: Identity::default(),
            child,
            sink: Sink { log, audience: Audience::default() },
            outputs: BTreeMap::new(),
            stdin: None,
            oom_kills_before,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase != Phase::Exited
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// How the first process ended, if it has; it stays a zombie until it is reaped.
    pub(crate) fn ended(&self) -> Option<Exit> {
        let ended = wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Leave).ok().flatten()?;
        let oom = oom_kills(&self.plan) > self.oom_kills_before;
        Some(match ended {
            // A shell tells of a child's SIGKILL as 137; with a kill counted meanwhile, that child was the victim.
            Ended::Signal(9) | Ended::Code(137) if oom => Exit::Signal { number: 9, oom: true },
            Ended::Signal(number) => Exit::Signal { number, oom: false },
            Ended::Code(code) => Exit::Code(code),
        })
    }

    pub(crate) fn reap(&self) {
        drop(wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Remove));
    }

    /// Sends a signal to the first process.
    pub(crate) fn signal(&self, number: i32) -> wharf_sys::Result<()> {
        wharf_sys::process::signal(self.child.pidfd.as_fd(), number)
    }

    /// Kills every process of the container.
    pub(crate) fn kill_all(&self) {
        drop(self.signal(9));
        let cgroup = &self.plan.cgroup;
        kill::kill_all(cgroup.kill_directory.as_path());
        kill::thaw(cgroup.entries.iter().filter_map(|entry| entry.as_path().parent()));
    }

    pub(crate) fn add_output(&mut self, out: Out, source: OwnedFd) {
        self.outputs.insert(out, Output::new(source, Stream::from(out)));
    }

    /// Reads an output for one turn; `true` when it has ended and is to be dropped.
    pub(crate) fn pump(&mut self, out: Out, buffer: &mut [u8]) -> bool {
        let Some(output) = self.outputs.get_mut(&out) else { return false };
        output.pump(&mut self.sink, buffer) == More::Never
    }

    /// Reads everything that was written before the exit, and what is held back.
    pub(crate) fn drain(&mut self, buffer: &mut [u8]) {
        for output in self.outputs.values_mut() {
            if output.drain(&mut self.sink, buffer) == More::Later {
                output.finish(&mut self.sink);
            }
        }
    }

    pub(crate) fn status(&self) -> v1::ContainerStatus {
        let (phase, started_at_ns) = match self.phase {
            Phase::Creating { .. } | Phase::Failed => (v1::container_status::Phase::Unknown, 0),
            Phase::Created | Phase::Starting { .. } | Phase::NotStarted => {
                (v1::container_status::Phase::Created, 0)
            }
            Phase::Running { started_at_ns } => (v1::container_status::Phase::Running, started_at_ns),
            Phase::Exited => (v1::container_status::Phase::Exited, 0),
        };
        v1::ContainerStatus {
            id: self.plan.container.to_string(),
            phase: phase.into(),
            pid: self.child.pid,
            identity: Some(wire_identity(&self.identity)),
            started_at_ns,
            ..v1::ContainerStatus::default()
        }
    }
}

fn oom_kills(plan: &Plan) -> u64 {
    plan.cgroup.oom_file.as_ref().map_or(0, |file| kill::oom_kills(file.as_path()))
}

pub(crate) fn wire_identity(identity: &Identity) -> v1::Identity {
    v1::Identity { uid: identity.uid, gid: identity.gid, groups: identity.groups.clone() }
}

/// A further process in a container.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) container: ContainerId,
    pub(crate) child: Child,
    /// The request that is answered once the program was executed.
    pub(crate) request: Option<u64>,
    /// The cgroup of its own, by which all it started is reached.
    pub(crate) leaf: PathBuf,
}

impl Exec {
    pub(crate) fn kill(&self) {
        drop(wharf_sys::process::signal(self.child.pidfd.as_fd(), 9));
        kill::kill_all(&self.leaf);
    }

    /// How it ended, once it has; it is reaped.
    pub(crate) fn ended(&self) -> Option<Exit> {
        let ended = wharf_sys::process::wait(self.child.pidfd.as_fd(), Reap::Remove).ok().flatten()?;
        Some(match ended {
            Ended::Code(code) => Exit::Code(code),
            Ended::Signal(number) => Exit::Signal { number, oom: false },
        })
    }
}
