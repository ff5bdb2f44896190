//! What the container's first process does between clone and exec, as a straight list.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_sys::fs::write_value;
use wharf_sys::mount::{self, Depth, Propagation};

use crate::birth::{Inside, Origin};
use crate::error::{Error, Stage};
use crate::identity::{self, Identity};
use crate::paths::{self, Covers};
use crate::plan::{Namespaces, Plan, Process};
use crate::root::{self, Make, Root};
use crate::streams::{self, Connected, Streams};
use crate::terminal::{self, Terminal};
use crate::{confine, devices, mounts, report};

/// Makes the container around this process, reports, waits for the start, and executes the program. Runs in a child of
/// the supervisor, in a PID namespace of its own or in the supervisor's (and in its cgroup, on v2), and never returns.
pub fn create(plan: &Plan, streams: &Streams, origin: &Origin<'_>) -> ! {
    let error = match set_up(plan, streams, origin).and_then(|ready| start(plan, ready, origin)) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    report::failed(origin.supervisor, &error);
    wharf_sys::process::exit_now(128)
}

/// All is made, and the streams are connected.
struct Ready {
    inside: Inside,
    identity: Identity,
    terminal: Option<Terminal>,
    connected: Connected,
}

fn set_up(plan: &Plan, streams: &Streams, origin: &Origin<'_>) -> Result<Ready, Error> {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    set_oom_score(&plan.process)?;
    // By paths of the host, as long as they are in sight.
    enter_cgroup(&plan.cgroup.entries)?;
    let sources = mounts::open_sources(&plan.mounts)?;
    origin.choose_namespace()?;
    join_namespaces(&plan.namespaces)?;
    leave_host_mounts()?;
    let root = Root::mount(&plan.rootfs)?;
    root.enter()?;
    // From here on nothing of the host is in reach but what the plan binds.
    mounts::attach_all(&root, &plan.mounts, sources, origin)?;
    devices::make(&root, plan)?;
    let terminal = plan.stdio.terminal.then(|| terminal::open(&root, plan)).transpose()?;
    Covers::default().mask(&root, &plan.masked_paths)?;
    paths::make_read_only(&root, &plan.readonly_paths)?;
    let identity = identity::resolve(&root, &plan.process.user)?;
    let connected = streams::connect(root.fd(), streams, terminal.as_ref(), identity.uid)?;
    let cwd = open_cwd(&root, &plan.process)?;
    if plan.rootfs.read_only {
        root.forbid_writing()?;
    }
    let inside = root::enter_cwd(cwd.as_fd(), &plan.process.cwd)?;
    Ok(Ready { inside, identity, terminal, connected })
}

fn start(plan: &Plan, ready: Ready, origin: &Origin<'_>) -> Result<Infallible, Error> {
    let Ready { inside, identity, terminal, connected } = ready;
    report::ready(origin.supervisor, &identity, terminal.as_ref().map(|terminal| &terminal.master))?;
    if !report::await_start(origin.supervisor) {
        wharf_sys::process::exit_now(128);
    }
    let shed = confine::shed(inside, &plan.process, &identity, origin)?;
    // Only now: whoever is among others is there as its program, and not while it waits for the start.
    let born = origin.be_born(shed)?;
    Err(confine::execute(born, &plan.process, &identity, connected))
}

/// Lowering the score below the inherited one needs `CAP_SYS_RESOURCE`; without it the inherited one stays.
pub(crate) fn set_oom_score(process: &Process) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj else { return Ok(()) };
    match write_value("/proc/self/oom_score_adj", &score.to_string()) {
        Err(error) if error.errno == Errno::EACCES => Ok(()),
        other => other.stage("setting oom_score_adj"),
    }
}

pub(crate) fn enter_cgroup(entries: &[wharf_types::HostPath]) -> Result<(), Error> {
    entries.iter().try_for_each(|entry| write_value(entry.as_path(), "0").stage("entering the cgroup"))
}

pub(crate) fn join_namespaces(namespaces: &Namespaces) -> Result<(), Error> {
    let join = |path: Option<&wharf_types::HostPath>, kind| {
        let Some(path) = path else { return Ok(()) };
        let fd =
            wharf_sys::fs::open(path.as_path(), OFlag::O_RDONLY).stage("joining the pod's namespaces")?;
        nix::sched::setns(&fd, kind).stage("joining the pod's namespaces")
    };
    join(namespaces.net.as_ref(), CloneFlags::CLONE_NEWNET)?;
    join(namespaces.ipc.as_ref(), CloneFlags::CLONE_NEWIPC)?;
    join(namespaces.uts.as_ref(), CloneFlags::CLONE_NEWUTS)?;
    let mut own = CloneFlags::CLONE_NEWNS;
    own.set(CloneFlags::CLONE_NEWCGROUP, namespaces.cgroup);
    nix::sched::unshare(own).stage("making the mount namespace")
}

/// Nothing mounted from here on is seen by the host. Bound trees are detached copies by now and keep their own way.
pub(crate) fn leave_host_mounts() -> Result<(), Error> {
    let root =
        wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).stage("leaving the host's mounts")?;
    mount::propagate(root.as_fd(), Propagation::Private, Depth::Recursive).stage("leaving the host's mounts")
}

/// Opens the working directory, made if it is missing.
fn open_cwd(root: &Root, process: &Process) -> Result<OwnedFd, Error> {
    drop(root.ensure(&process.cwd, Make::Directory).map_err(|source| root::cwd_error(&process.cwd, source))?);
    root::open_cwd(root.fd(), &process.cwd)
}
