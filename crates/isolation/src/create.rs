//! What the container's first process does between clone and exec, as straight lists of steps, each with why it is there.
//!
//! [`Joined`] is in the container's namespaces, where the pod's files are in sight, and of the host only what the plan binds.
//! [`Rooted`] is in the container's root. [`Ready`] is in the finished container, and waits for the start. Each is
//! made of the one before, so that no step can come where it would have too much in reach, or too little.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use wharf_sys::fs::write_value;
use wharf_types::HostPath;

use crate::birth::{Inside, Origin};
use crate::error::{Error, Stage};
use crate::identity::{self, Identity};
use crate::mounts::{self, Sources};
use crate::paths::{self, Covers};
use crate::plan::{Plan, Process};
use crate::pod::PodNamespaces;
use crate::program::{self, Way};
use crate::root::{self, Make, Root};
use crate::streams::{self, Connected, Streams};
use crate::terminal::{self, Terminal};
use crate::{confine, devices, report};

/// Makes the container of an encoded plan around this process, reports, waits for the start, and executes the program. Runs in a
/// child of the supervisor, in a PID namespace of its own or in the supervisor's (and in its cgroup, on v2), and never returns.
pub fn create(plan: &[u8], pod: PodNamespaces<'_>, streams: &Streams, mut origin: Origin<'_>) -> ! {
    let error = match run(plan, pod, streams, &mut origin) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    report::failed(&origin.line, &error);
    wharf_sys::process::exit_now(128)
}

fn run(
    plan: &[u8],
    pod: PodNamespaces<'_>,
    streams: &Streams,
    origin: &mut Origin<'_>,
) -> Result<Infallible, Error> {
    // Here and not in the supervisor, which would keep the memory that this takes.
    let plan = &Plan::decode(plan)?;
    let joined = Joined::join(plan, pod, origin)?;
    let ready = joined.enter_root()?.furnish(plan, streams, origin)?;
    ready.start(plan, origin)
}

/// In the container's namespaces, where only the pod's files are in sight; of the host there is what was opened before.
struct Joined {
    root: Root,
    sources: Sources,
}

impl Joined {
    fn join(plan: &Plan, pod: PodNamespaces<'_>, origin: &Origin<'_>) -> Result<Self, Error> {
        // Modes of what is made are those that the plan says.
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        // The host's procfs is out of sight later, and the right to lower it too.
        set_oom_score(&plan.process)?;
        // By paths of the host. Before anything is allocated for the container, which is to be charged for it.
        enter_cgroup(&plan.cgroup.entries)?;
        // By paths of the host, and in its mount namespace: only there a copy is a peer of the host's mount.
        let mut sources = mounts::open_sources(&plan.mounts)?;
        // By paths of the host: the layers.
        let root = Root::make(&plan.rootfs)?;
        // It takes the descriptor of a process, and privileges over the host's user namespace.
        origin.choose_namespace()?;
        // New mounts from here on are of these namespaces: a procfs of the PID namespace, a sysfs of the network's, an mqueue
        // of the IPC's. No path leads to the host any more, and the first mount is made where the host does not see it.
        pod.enter(&plan.namespaces)?;
        // Where the pod's files are in sight: their mounts cannot be copied from elsewhere.
        sources.add_pods(&plan.mounts)?;
        Ok(Self { root, sources })
    }

    fn enter_root(self) -> Result<Rooted, Error> {
        let Self { root, sources } = self;
        // Before anything in it is looked at: no link in it can lead to the pod's files any more, whoever follows it.
        root.enter()?;
        Ok(Rooted { root, sources })
    }
}

/// In the container's root; of the host only what the plan binds is in reach.
struct Rooted {
    root: Root,
    sources: Sources,
}

impl Rooted {
    fn furnish(self, plan: &Plan, streams: &Streams, origin: &Origin<'_>) -> Result<Ready, Error> {
        let Self { root, sources } = self;
        // First, since what comes next is in the mounts: `/dev`, `/proc`, and what a volume hides.
        mounts::attach_all(&root, &plan.mounts, sources, origin)?;
        devices::make(&root, plan)?;
        // In the container's devpts, where its name is known. `/dev/console` may be a path that is masked.
        let terminal = plan.stdio.terminal.then(|| terminal::open(&root, plan)).transpose()?;
        // When all that is masked or read-only is mounted; with the container's null device.
        Covers::default().mask(&root, &plan.masked_paths)?;
        paths::make_read_only(&root, &plan.readonly_paths)?;
        // A mount may have brought the files in which the names are.
        let identity = identity::resolve(&root, &plan.process.user)?;
        // While this process may change their owner to the user that is known now.
        let connected = streams::connect(root.fd(), streams, terminal.as_ref(), identity.uid)?;
        // Made where it is missing, so before the root is read-only.
        let cwd = open_cwd(&root, &plan.process)?;
        // The last that is written has been written.
        if plan.rootfs.read_only {
            root.forbid_writing()?;
        }
        let inside = root::enter_cwd(cwd.as_fd(), &plan.process.cwd)?;
        Ok(Ready { inside, identity, terminal, connected })
    }
}

/// In the finished container, with the streams connected.
struct Ready {
    inside: Inside,
    identity: Identity,
    terminal: Option<Terminal>,
    connected: Connected,
}

impl Ready {
    fn start(self, plan: &Plan, origin: &mut Origin<'_>) -> Result<Infallible, Error> {
        let Self { inside, identity, terminal, connected } = self;
        report::ready(&origin.line, &identity, terminal.as_ref().map(|terminal| &terminal.master))?;
        drop(terminal);
        if !report::await_start(&origin.line) {
            wharf_sys::process::exit_now(128);
        }
        go_on(inside, (&plan.process, &identity), connected, origin)
    }
}

/// From the container that was entered to the program. Only after the start: whoever is among others is there as its
/// program, and not while it waits.
pub(crate) fn go_on(
    inside: Inside,
    (process, identity): (&Process, &Identity),
    connected: Connected,
    origin: &mut Origin<'_>,
) -> Result<Infallible, Error> {
    // Before this process has the program's limits, of descriptors and of memory.
    origin.leave_supervisor()?;
    let Way { script, seal } = program::way(process, identity, connected, origin)?;
    let shed = confine::shed(inside, process, identity, seal, origin.child)?;
    origin.go_on(shed, script)
}

/// Lowering the score below the inherited one needs `CAP_SYS_RESOURCE`; without it the inherited one stays.
pub(crate) fn set_oom_score(process: &Process) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj else { return Ok(()) };
    match write_value("/proc/self/oom_score_adj", &score.to_string()) {
        Err(error) if error.errno == Errno::EACCES => Ok(()),
        other => other.stage("setting oom_score_adj"),
    }
}

pub(crate) const CGROUP_STAGE: &str = "entering the cgroup";

fn enter_cgroup(entries: &[HostPath]) -> Result<(), Error> {
    entries.iter().try_for_each(|entry| write_value(entry.as_path(), "0").stage(CGROUP_STAGE))
}

/// Opens the working directory, made if it is missing.
fn open_cwd(root: &Root, process: &Process) -> Result<OwnedFd, Error> {
    drop(root.ensure(&process.cwd, Make::Directory).map_err(|source| root::cwd_error(&process.cwd, source))?);
    root::open_cwd(root.fd(), &process.cwd)
}
