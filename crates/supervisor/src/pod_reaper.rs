//! The first process of a pod's shared PID namespace: it reaps orphans and does nothing else.
//!
//! Containers can see it, so it leaves the host before any of them exists. Its root is an empty directory that cannot
//! be written, its other namespaces are the pod's, it runs as nobody without capabilities, and a filter refuses nearly
//! every system call. It executes the supervisor's program again, so that its memory has nothing of the supervisor's.
//! It ends with the supervisor, and everything in the namespace ends with it.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};
use wharf_isolation::{LeftHost, Outline, PodNamespaces, Report};
use wharf_sys::capabilities::{self, Capabilities};
use wharf_sys::clone::{Child, Clone, SingleThreaded, clone, end_with_parent};
use wharf_sys::descriptors;
use wharf_sys::error::Named as _;
use wharf_sys::process::{self, Reap};
use wharf_sys::seccomp::{self, Call};
use wharf_sys::{Error, Result, socket};

use crate::diagnostics::OrWarn as _;
use crate::failure::Failure;
use crate::{diagnostics, kill, leaf};

/// The name under which the program runs as the reaper.
pub(crate) const NAME: &std::ffi::CStr = c"wharf-pod-reaper";
/// The user and group `nobody`.
const NOBODY: u32 = 65534;
/// How long it may take to become ready on a busy machine.
const PATIENCE_MS: u16 = 20_000;
/// How long one may take to enter a container's cgroups, which may be frozen with their pod's.
const ENTRY_PATIENCE_MS: u16 = 5_000;
/// How long a process that was killed may take to end.
const END_PATIENCE_MS: u16 = 1_000;

/// The process, to join its namespace and to end it.
#[derive(Debug)]
pub(crate) struct PodReaper {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl PodReaper {
    /// Makes the PID namespace and its first process, and waits until that has left the host for the pod's namespaces.
    /// Of the containers in the PID namespace, `first` is the first.
    ///
    /// # Errors
    /// What that process reports.
    pub(crate) fn start(
        witness: &SingleThreaded,
        pod: PodNamespaces<'_>,
        first: &Outline,
    ) -> std::result::Result<Self, Failure> {
        let program = wharf_sys::fs::open("/proc/self/exe", OFlag::O_RDONLY)?;
        let lender = Lender::start(witness, first)?;
        let (ours, theirs) = socket::pair()?;
        match clone(witness, CloneFlags::CLONE_NEWPID, None)? {
            Clone::Child(child) => {
                let Err(error) = be_alone(&child, pod, first, (&program, &theirs, lender.0.as_fd()));
                wharf_isolation::report_failure(&theirs, &error);
                process::exit_now(1)
            }
            Clone::Parent { pid, pidfd } => {
                drop(theirs);
                let reaper = Self { pid, pidfd };
                await_ready("its first process", &ours, PATIENCE_MS)
                    .inspect_err(|_failed| reaper.end())
                    .map(|()| reaper)
            }
        }
    }

    /// Whether it has ended, and everything in its namespace with it; this reaps it.
    pub(crate) fn has_ended(&self) -> bool {
        process::wait(self.pidfd.as_fd(), Reap::Remove).map_or_else(
            // Nobody else reaps it. If it happened all the same, it has ended.
            |error| {
                diagnostics::warn(format_args!(
                    "how the first process of the pod's PID namespace ended: {error}"
                ));
                true
            },
            |ended| ended.is_some(),
        )
    }

    /// Kills it, and everything in its namespace.
    pub(crate) fn end(&self) {
        kill::kill_process(self.pidfd.as_fd());
    }
}

fn await_ready(who: &str, line: &OwnedFd, patience_ms: u16) -> std::result::Result<(), Failure> {
    let mut told = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    match poll(&mut told, PollTimeout::from(patience_ms)) {
        Ok(1..) => {}
        Ok(_) => {
            return Err(Failure::precondition(format!(
                "{who} was not ready within {patience_ms} ms: is a cgroup frozen?"
            )));
        }
        Err(errno) => return Err(Failure::of(Error::new("poll", "the line to its first process", errno))),
    }
    match Report::receive(line.as_fd())? {
        Report::Ready { .. } => Ok(()),
        Report::Failed { class, message } => Err(Failure::reported(class, message)),
        Report::Line { .. } | Report::Born { .. } | Report::Executed | Report::Closed => {
            Err(Failure::fault(format!("{who} exited before it was ready")))
        }
    }
}

/// Leaves the host and executes this program.
fn be_alone(
    child: &Child,
    pod: PodNamespaces<'_>,
    first: &Outline,
    (program, line, lender): (&OwnedFd, &OwnedFd, BorrowedFd<'_>),
) -> std::result::Result<Infallible, wharf_isolation::Error> {
    let keep: Vec<_> = pod.descriptors().chain([program.as_fd(), line.as_fd(), lender]).collect();
    descriptors::keep_only(child, &keep).map_err(|source| failed("closing descriptors", source))?;
    let left = wharf_isolation::leave_host(pod, first, lender)?;
    execute(left, program, line)
        .map_err(|source| failed("executing the supervisor's program as the reaper", source))
}

/// A process in a container's cgroups, which has a cgroup namespace for the reaper. The reaper itself must not be in
/// these: it would die with that container. The cgroup namespace leads nowhere once they are removed.
struct Lender(OwnedFd);

impl Lender {
    fn start(witness: &SingleThreaded, container: &Outline) -> std::result::Result<Self, Failure> {
        let cgroup = container.cgroup.directory.as_ref();
        let cgroup = cgroup.map(|path| leaf::open_directory(path.as_path())).transpose()?;
        let (ours, theirs) = socket::pair()?;
        let supervisor = std::process::id();
        match clone(witness, CloneFlags::empty(), cgroup.as_ref().map(AsFd::as_fd))? {
            Clone::Child(child) => {
                if let Err(error) = lend(&child, supervisor, &theirs, container) {
                    wharf_isolation::report_failure(&theirs, &error);
                    process::exit_now(1);
                }
                // Until it is killed.
                loop {
                    nix::unistd::pause();
                }
            }
            Clone::Parent { pidfd, .. } => {
                drop(theirs);
                let lender = Self(pidfd);
                await_ready("a process in the container's cgroups", &ours, ENTRY_PATIENCE_MS).map(|()| lender)
            }
        }
    }
}

/// Makes the cgroup namespace, as a child of this supervisor.
fn lend(
    child: &Child,
    supervisor: u32,
    line: &OwnedFd,
    container: &Outline,
) -> std::result::Result<(), wharf_isolation::Error> {
    if !end_with_parent(supervisor).unwrap_or_default() {
        process::exit_now(1);
    }
    descriptors::keep_only(child, &[line.as_fd()]).map_err(|source| failed("closing descriptors", source))?;
    wharf_isolation::enter_cgroups(container)?;
    socket::send(line.as_fd(), b"R", &[]).map_err(|source| failed("reporting", source))
}

impl Drop for Lender {
    /// It must be gone before the container's own processes, which have a limit.
    fn drop(&mut self) {
        kill::kill_process(self.0.as_fd());
        let mut ended = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        // If its cgroup is frozen it is reaped with the strays, once that thaws.
        if matches!(poll(&mut ended, PollTimeout::from(END_PATIENCE_MS)), Ok(1..)) {
            process::wait(self.0.as_fd(), Reap::Remove).map(drop).or_warn("reaping a lender of cgroups");
        }
    }
}

fn failed(stage: &'static str, source: Error) -> wharf_isolation::Error {
    wharf_isolation::Error::Stage { stage, source }
}

/// Executes this program with only the line to the supervisor open. The line stands in for all three standard streams,
/// which a program's runtime needs to be open.
fn execute(_left: LeftHost, program: &OwnedFd, line: &OwnedFd) -> Result<Infallible> {
    let onto = |stream: &str| format!("the line to the supervisor, onto {stream}");
    nix::unistd::dup2_stdin(line).named("dup2", || onto("standard input"))?;
    nix::unistd::dup2_stdout(line).named("dup2", || onto("standard output"))?;
    nix::unistd::dup2_stderr(line).named("dup2", || onto("standard error"))?;
    descriptors::close_on_exec_from(3)?;
    let none: [&std::ffi::CStr; 0] = [];
    nix::unistd::execveat(program, c"", &[NAME], &none, AtFlags::AT_EMPTY_PATH)
        .named("execveat", || "this program".into())
}

/// The whole life of the reaper. Only the supervisor knows of it before it reports that it is ready.
pub(crate) fn run() -> ExitCode {
    // Without the line nothing can be said.
    let Ok([line, second, third]) = descriptors::take_standard_streams() else { return ExitCode::FAILURE };
    drop((second, third));
    match settle(&line) {
        Ok(()) => {
            // Nobody who gets at this process may find a way to the supervisor.
            drop(line);
            reap_for_ever();
        }
        Err(error) => wharf_isolation::report_failure(&line, &failed("confining the reaper", error)),
    }
    ExitCode::FAILURE
}

/// The whole life of the first process in a sandbox, where nothing of the host can be seen.
pub(crate) fn reap() -> ExitCode {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    if child.thread_set_mask().is_ok() {
        reap_for_ever();
    }
    ExitCode::FAILURE
}

fn settle(line: &OwnedFd) -> Result<()> {
    nix::sys::prctl::set_name(NAME).named("prctl", || "PR_SET_NAME".into())?;
    become_nobody()?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_set_mask().named("sigprocmask", || "SIGCHLD".into())?;
    // After the change of user, which resets it. A supervisor that has exited by now does not receive the report.
    end_with_parent(0)?;
    seccomp::allow_only(&[Call::WRITE, Call::CLOSE, Call::RT_SIGTIMEDWAIT, Call::WAIT4, Call::EXIT_GROUP])?;
    nix::unistd::write(line, b"R").map(drop).named("write", || "the line to the supervisor".into())
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
