//! The first process of a pod's shared PID namespace: it reaps orphans and does nothing else.
//!
//! Containers can see it, so it leaves the host before any of them exists. Its root is an empty directory that cannot
//! be written, its other namespaces are the pod's, it runs as nobody without capabilities, and a filter refuses nearly
//! every system call. It executes the supervisor's program again, so that its memory has nothing of the supervisor's.
//! It ends with the supervisor, and everything in the namespace ends with it.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};
use wharf_isolation::{Namespaces, PodNamespaces, Report};
use wharf_sys::capabilities::{self, Capabilities};
use wharf_sys::clone::{Clone, SingleThreaded, clone, end_with_parent};
use wharf_sys::descriptors;
use wharf_sys::error::Named as _;
use wharf_sys::process::{self, Reap};
use wharf_sys::seccomp::{self, Call};
use wharf_sys::{Error, Result, socket};

use crate::kill;

/// The name under which the program runs as the reaper.
pub(crate) const NAME: &std::ffi::CStr = c"wharf-pod-reaper";
/// The user and group `nobody`.
const NOBODY: u32 = 65534;
/// How long it may take to become ready on a busy machine.
const PATIENCE_MS: u16 = 20_000;

/// The process, to join its namespace and to end it.
#[derive(Debug)]
pub(crate) struct PodReaper {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl PodReaper {
    /// Makes the PID namespace and its first process, and waits until that has left the host for the pod's
    /// `namespaces`.
    ///
    /// # Errors
    /// What that process reports, for people.
    pub(crate) fn start(
        witness: &SingleThreaded,
        pod: PodNamespaces<'_>,
        namespaces: &Namespaces,
    ) -> std::result::Result<Self, String> {
        let text = |error: Error| error.to_string();
        let program = wharf_sys::fs::open("/proc/self/exe", OFlag::O_RDONLY).map_err(text)?;
        let (ours, theirs) = socket::pair().map_err(text)?;
        match clone(witness, CloneFlags::CLONE_NEWPID, None).map_err(text)? {
            Clone::Child(child) => {
                let keep: Vec<_> = pod.descriptors().chain([program.as_fd(), theirs.as_fd()]).collect();
                if descriptors::keep_only(&child, &keep).is_ok() {
                    be_alone(pod, namespaces, &program, &theirs);
                }
                process::exit_now(1)
            }
            Clone::Parent { pid, pidfd } => {
                drop(theirs);
                let reaper = Self { pid, pidfd };
                await_ready(&ours).inspect_err(|_failed| reaper.end()).map(|()| reaper)
            }
        }
    }

    /// Whether it has ended, and everything in its namespace with it; this reaps it.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(process::wait(self.pidfd.as_fd(), Reap::Remove), Ok(Some(_)))
    }

    /// Kills it, and everything in its namespace.
    pub(crate) fn end(&self) {
        kill::signal(self.pidfd.as_fd(), 9);
    }
}

fn await_ready(line: &OwnedFd) -> std::result::Result<(), String> {
    let mut told = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    match poll(&mut told, PollTimeout::from(PATIENCE_MS)) {
        Ok(1..) => {}
        Ok(_) => return Err("its first process is not ready in time".to_owned()),
        Err(errno) => return Err(Error::new("poll", "the line to it", errno).to_string()),
    }
    match Report::receive(line.as_fd()) {
        Ok(Report::Ready { .. }) => Ok(()),
        Ok(Report::Failed { message, .. }) => Err(message),
        Ok(Report::Line { .. } | Report::Born { .. } | Report::Closed) => {
            Err("its first process ended at once".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Leaves the host and executes this program. The supervisor is told of any failure before that.
fn be_alone(pod: PodNamespaces<'_>, namespaces: &Namespaces, program: &OwnedFd, line: &OwnedFd) {
    if let Err(error) = wharf_isolation::leave_host(pod, namespaces) {
        return wharf_isolation::report_failure(line, &error);
    }
    let Err(errno) = execute(program, line);
    process::exit_now(errno as i32)
}

/// Executes this program with only the line to the supervisor open. The line stands in for all three standard streams,
/// which a program's runtime needs to be open.
fn execute(program: &OwnedFd, line: &OwnedFd) -> nix::Result<std::convert::Infallible> {
    nix::unistd::dup2_stdin(line)?;
    nix::unistd::dup2_stdout(line)?;
    nix::unistd::dup2_stderr(line)?;
    descriptors::close_on_exec_from(3).map_err(|error| error.errno)?;
    let none: [&std::ffi::CStr; 0] = [];
    nix::unistd::execveat(program, c"", &[NAME], &none, AtFlags::AT_EMPTY_PATH)
}

/// The whole life of the reaper. Only the supervisor knows of it before it reports that it is ready.
pub(crate) fn run() -> ExitCode {
    if settle().is_ok() {
        reap_for_ever();
    }
    ExitCode::FAILURE
}

fn settle() -> Result<()> {
    let [line, second, third] = descriptors::take_standard_streams()?;
    drop((second, third));
    nix::sys::prctl::set_name(NAME).named("prctl", || "PR_SET_NAME".into())?;
    become_nobody()?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_set_mask().named("sigprocmask", || "SIGCHLD".into())?;
    // After the change of user, which resets it. A supervisor that has exited by now does not receive the report.
    end_with_parent(0)?;
    seccomp::allow_only(&[Call::WRITE, Call::CLOSE, Call::RT_SIGTIMEDWAIT, Call::WAIT4, Call::EXIT_GROUP])?;
    nix::unistd::write(&line, b"R").map(drop).named("write", || "the line to the supervisor".into())
}

fn become_nobody() -> Result<()> {
    capabilities::bound(0)?;
    nix::unistd::setgroups(&[]).named("setgroups", || "none".into())?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    nix::unistd::setresgid(gid, gid, gid).named("setresgid", || NOBODY.to_string())?;
    nix::unistd::setresuid(uid, uid, uid).named("setresuid", || NOBODY.to_string())?;
    capabilities::set(&Capabilities::default())?;
    nix::sys::prctl::set_no_new_privs().named("prctl", || "PR_SET_NO_NEW_PRIVS, 1".into())?;
    // Containers with a user of the same number must not look into it either.
    nix::sys::prctl::set_dumpable(false).named("prctl", || "PR_SET_DUMPABLE, 0".into())
}

fn reap_for_ever() {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        if !matches!(child.wait(), Ok(_) | Err(Errno::EINTR)) {
            return;
        }
    }
}
