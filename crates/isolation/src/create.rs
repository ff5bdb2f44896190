//! What the container's first process does between clone and exec, as a straight list.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_sys::fs::write_value;
use wharf_sys::mount::{self, Depth, Propagation};

use crate::confine::{self, Streams};
use crate::error::{Error, Stage};
use crate::identity::{self, Identity};
use crate::paths::{self, Covers};
use crate::plan::{Namespaces, Plan, Process};
use crate::root::{self, Make, Root};
use crate::terminal::{self, Terminal};
use crate::{devices, mounts, report};

/// Makes the container around this process, reports, waits for the start, and executes the program. Runs in a child of
/// the supervisor, already in the right PID namespace (and in its cgroup, on v2), and never returns.
pub fn create(plan: &Plan, streams: &Streams, supervisor: &OwnedFd) -> ! {
    let error = match set_up(plan) {
        Ok((identity, terminal)) => start(plan, streams, supervisor, &(identity, terminal)),
        Err(error) => error,
    };
    report::failed(supervisor, &error);
    wharf_sys::process::exit_now(128)
}

fn set_up(plan: &Plan) -> Result<(Identity, Option<Terminal>), Error> {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    set_oom_score(&plan.process)?;
    enter_cgroup(&plan.cgroup.entries)?;
    let sources = mounts::open_sources(&plan.mounts)?;
    join_namespaces(&plan.namespaces)?;
    leave_host_mounts()?;
    let root = Root::mount(&plan.rootfs)?;
    mounts::attach_all(&root, &plan.mounts, sources)?;
    devices::make(&root, &plan.devices)?;
    let terminal = plan.stdio.terminal.then(|| terminal::open(&root)).transpose()?;
    let mut covers = Covers::open()?;
    covers.mask(&root, &plan.masked_paths)?;
    paths::make_read_only(&root, &plan.readonly_paths)?;
    let identity = identity::resolve(&root, &plan.process.user)?;
    let cwd = open_cwd(&root, &plan.process)?;
    if plan.rootfs.read_only {
        root.forbid_writing()?;
    }
    root.enter()?;
    root::enter_cwd(cwd.as_fd(), &plan.process.cwd)?;
    Ok((identity, terminal))
}

fn start(
    plan: &Plan,
    streams: &Streams,
    supervisor: &OwnedFd,
    ready: &(Identity, Option<Terminal>),
) -> Error {
    let (identity, terminal) = ready;
    if let Err(error) =
        report::ready(supervisor, identity, terminal.as_ref().map(|terminal| &terminal.master))
    {
        return error;
    }
    if !report::await_start(supervisor) {
        wharf_sys::process::exit_now(128);
    }
    match confine::connect(streams, terminal.as_ref()) {
        Ok(()) => confine::exec(&plan.process, identity),
        Err(error) => error,
    }
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

fn join_namespaces(namespaces: &Namespaces) -> Result<(), Error> {
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
fn leave_host_mounts() -> Result<(), Error> {
    let root =
        wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).stage("leaving the host's mounts")?;
    mount::propagate(root.as_fd(), Propagation::Private, Depth::Recursive).stage("leaving the host's mounts")
}

/// Opens the working directory, made if it is missing.
fn open_cwd(root: &Root, process: &Process) -> Result<OwnedFd, Error> {
    drop(root.ensure(&process.cwd, Make::Directory).map_err(|source| root::cwd_error(&process.cwd, source))?);
    root::open_cwd(root.fd(), &process.cwd)
}
