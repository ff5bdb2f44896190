//! An exec: a further process that enters a running container through the descriptor of its first process.
//!
//! It makes nothing: every namespace, mount and cgroup is there already. It relies on the first process to live until
//! it has entered; on v2 the supervisor has cloned it into a cgroup below the container's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_sys::error::Named as _;
use wharf_sys::fs::write_fd;
use wharf_types::{IdMaps, TerminalSize};

use crate::birth::Origin;
use crate::create::{CGROUP_STAGE, set_oom_score};
use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::plan::Process;
use crate::pod::become_root;
use crate::program::{Part, Runner};
use crate::streams::{self, Streams};
use crate::terminal::{self, Terminal};
use crate::{apparmor, report, root, selinux};

/// What a joining process does, and as which user.
#[derive(Debug)]
pub struct JoinPlan<'a> {
    /// The program; its user was resolved when the container was made.
    pub process: Process,
    /// The identity with which it runs.
    pub identity: Identity,
    /// The ids of the container's user namespace, if it is not the host's.
    pub ids: Option<IdMaps>,
    /// The `tasks` files of v1 hierarchies to enter, open for writing.
    pub entries: Vec<BorrowedFd<'a>>,
    /// Whether it has a terminal, which it reports.
    pub terminal: bool,
    /// The terminal's initial size; without it the terminal has none.
    pub size: Option<TerminalSize>,
}

/// Enters the container of `first`, and executes the program in the PID namespace of the origin. Runs in a child of the
/// supervisor, in the supervisor's PID namespace, and never returns.
pub fn join(plan: &JoinPlan<'_>, first: BorrowedFd<'_>, streams: &Streams, mut origin: Origin<'_>) -> ! {
    let error = match run(plan, first, streams, &mut origin) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    report::failed(&origin.line, &error);
    wharf_sys::process::exit_now(128)
}

fn run(
    plan: &JoinPlan<'_>,
    first: BorrowedFd<'_>,
    streams: &Streams,
    origin: &mut Origin<'_>,
) -> Result<std::convert::Infallible, Error> {
    // These three write to this process's own files in the host's /proc, which it does not see any more in the
    // container. The labels have no effect before the program is executed.
    set_oom_score(&plan.process)?;
    apparmor::confine(&plan.process)?;
    selinux::confine(&plan.process)?;
    // Before anything is allocated for the command, so that the container is charged for all of it.
    plan.entries.iter().try_for_each(|entry| write_fd(*entry, "0")).stage(CGROUP_STAGE)?;
    // While this process may still give them away.
    streams.give(plan.identity.on_host(plan.ids)?)?;
    // Only for a process that is made after everything else has been left: the container must never see this one, whose
    // root, until the next step, is the host's.
    origin.choose_namespace()?;
    // All at once: between two of them the container's files would be there with the host's rights, or the reverse.
    let root = enter_namespaces(first, plan.ids)?;
    // The container may have put a link in its place, and changes it while this runs: so the directory is opened
    // without links of procfs, entered by that descriptor, and asked for its name from the root.
    let cwd = root::open_cwd(root.as_fd(), &plan.process.cwd)?;
    let inside = root::enter_cwd(cwd.as_fd(), &plan.process.cwd)?;
    // In the container's own devpts. The container can replace paths: its end is opened by the descriptor of the other.
    let terminal = open_terminal(plan, &root, origin)?;
    terminal
        .iter()
        .try_for_each(|terminal| streams::give(terminal.peer.as_fd(), plan.identity.uid.number()))?;
    // From its root, too: an input that nobody asked for is the container's own null device.
    let connected = streams::connect(root.as_fd(), streams, terminal.as_ref())?;
    // The program must have none of them.
    drop((terminal, cwd, root));
    let runner = Runner { process: &plan.process, identity: &plan.identity, part: Part::Command };
    origin.go_on(inside, connected, runner)
}

/// Entering the mount namespace also changes root and working directory to the container's root, which is returned. In
/// a user namespace this process is its root user afterwards.
fn enter_namespaces(first: BorrowedFd<'_>, ids: Option<IdMaps>) -> Result<OwnedFd, Error> {
    const STAGE: &str = "joining the container's namespaces";
    let mut all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // Not always: nobody can enter the user namespace in which he is.
    all.set(CloneFlags::CLONE_NEWUSER, ids.is_some());
    nix::sched::setns(first, all).named("setns", || format!("{all:?}")).stage(STAGE)?;
    ids.map_or(Ok(()), |_ids| become_root()).stage(STAGE)?;
    wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).stage(STAGE)
}

fn open_terminal(
    plan: &JoinPlan<'_>,
    root: &OwnedFd,
    origin: &Origin<'_>,
) -> Result<Option<Terminal>, Error> {
    if !plan.terminal {
        return Ok(None);
    }
    let terminal = terminal::open_joined(root, plan.size)?;
    report::ready(&origin.line, &plan.identity, Some(&terminal.master), &[])?;
    Ok(Some(terminal))
}
