//! The first process of a pod's shared PID namespace: it reaps orphans and does nothing else, with no rights, no open
//! file and no name of its own in the file system.

use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use wharf_sys::process::{self, Clone, SingleThreaded};

/// The process, for joining its namespace and for ending it.
#[derive(Debug)]
pub(crate) struct PodReaper {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl PodReaper {
    /// Makes the PID namespace and its first process.
    pub(crate) fn start(witness: &SingleThreaded) -> wharf_sys::Result<Self> {
        match process::clone(witness, CloneFlags::CLONE_NEWPID, None)? {
            Clone::Parent { pid, pidfd } => Ok(Self { pid, pidfd }),
            Clone::Child => {
                // Without rights this process is worth no attack; if giving them up fails it must not go on.
                let code = i32::from(give_up_rights(witness).is_err());
                if code == 0 {
                    reap_for_ever();
                }
                process::exit_now(code)
            }
        }
    }
}

fn give_up_rights(witness: &SingleThreaded) -> wharf_sys::Result<()> {
    process::keep_only(witness, &[])?;
    process::bound_capabilities(0)?;
    process::set_capabilities(&process::Capabilities::default())
}

fn reap_for_ever() {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    if child.thread_set_mask().is_err() {
        return;
    }
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        if child.wait().is_err() {
            return;
        }
    }
}
