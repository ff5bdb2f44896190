//! The keeper of the pod's sandbox, in which another runtime runs the containers: it makes the sandbox for the first of
//! them. The sandbox has taken over the pod's addresses and has no successor, so the pod ends with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_isolation::{CgroupPlan, Runtime, Sandbox};
use wharf_sys::clone::{Clone, SingleThreaded, clone};
use wharf_sys::error::Named as _;
use wharf_sys::{descriptors, process, socket};

use crate::kill;

/// The keeper, a child of the supervisor.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Read to its end once the sandbox is made, or cannot be made.
    made: OwnedFd,
    /// The keeper ends the sandbox when this is closed.
    _line: OwnedFd,
    cgroup: CgroupPlan,
}

impl Keeper {
    /// Begins to make the sandbox.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn start(
        witness: &SingleThreaded,
        runtime: &Runtime,
        sandbox: &Sandbox,
    ) -> wharf_sys::Result<Self> {
        let (line, theirs) = socket::pair()?;
        let (made, making) = nix::unistd::pipe2(OFlag::O_CLOEXEC).named("pipe2", || "O_CLOEXEC".into())?;
        match clone(witness, CloneFlags::empty(), None)? {
            Clone::Parent { pid, pidfd } => {
                Ok(Self { pid, pidfd, made, _line: line, cgroup: sandbox.cgroup.clone() })
            }
            Clone::Child(child) => {
                if descriptors::keep_only(&child, &[theirs.as_fd(), making.as_fd()]).is_err() {
                    process::exit_now(1)
                }
                wharf_runtimes::keep(runtime, sandbox, (theirs, making), &child)
            }
        }
    }

    pub(crate) fn made(&self) -> BorrowedFd<'_> {
        self.made.as_fd()
    }

    /// Kills everything in the sandbox, and so the sandbox.
    pub(crate) fn end(&self) {
        kill::kill_container(&self.cgroup);
        kill::kill_process(self.pidfd.as_fd());
    }
}
