//! A further process in a running container: it enters by the first process's descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_types::{HostPath, TerminalSize};

use crate::confine::{self, Streams};
use crate::create::{enter_cgroup, set_oom_score};
use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::plan::Process;
use crate::{report, root, terminal};

/// What a joining process does, and as whom.
#[derive(Debug)]
pub struct JoinPlan {
    /// The program; its user was resolved when the container was made.
    pub process: Process,
    /// Who it runs as.
    pub identity: Identity,
    /// `tasks` files of v1 hierarchies to enter.
    pub entries: Vec<HostPath>,
    /// Whether it has a terminal, whose master is reported.
    pub terminal: bool,
    /// The terminal's size at the beginning; without it the kernel's, which is none.
    pub size: Option<TerminalSize>,
}

/// Enters the container of `first`, and executes the program. Runs in a child of the supervisor, already in the
/// container's PID namespace, and never returns.
pub fn join(plan: &JoinPlan, first: BorrowedFd<'_>, streams: &Streams, supervisor: &OwnedFd) -> ! {
    let error = match enter(plan, first) {
        Ok(()) => run(plan, streams, supervisor),
        Err(error) => error,
    };
    report::failed(supervisor, &error);
    wharf_sys::process::exit_now(128)
}

fn enter(plan: &JoinPlan, first: BorrowedFd<'_>) -> Result<(), Error> {
    set_oom_score(&plan.process)?;
    enter_cgroup(&plan.entries)?;
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // Entering the mount namespace also moves root and working directory to the container's root.
    nix::sched::setns(first, all).stage("joining the container's namespaces")?;
    let root = wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY)
        .stage("entering the container's root")?;
    let cwd = root::open_cwd(root.as_fd(), &plan.process.cwd)?;
    root::enter_cwd(cwd.as_fd(), &plan.process.cwd)
}

fn run(plan: &JoinPlan, streams: &Streams, supervisor: &OwnedFd) -> Error {
    match connect(plan, streams, supervisor) {
        Ok(()) => confine::exec(&plan.process, &plan.identity),
        Err(error) => error,
    }
}

fn connect(plan: &JoinPlan, streams: &Streams, supervisor: &OwnedFd) -> Result<(), Error> {
    if !plan.terminal {
        return confine::connect(streams, None);
    }
    let root = wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).stage("making the terminal")?;
    let terminal = terminal::open_joined(&root, plan.size)?;
    report::ready(supervisor, &plan.identity, Some(&terminal.master))?;
    confine::connect(streams, Some(&terminal))
}
