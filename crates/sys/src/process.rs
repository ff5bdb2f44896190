//! Processes through descriptors: signals, exits and namespaces. A pid may belong to another process by the time it is
//! used.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::fs::{Gid, Uid};
use wharf_types::OwnerId;
use wharf_types::signal::SIGKILL;

use crate::clone::Child;
use crate::error::{Error, Named, Result};
use crate::fs::kernel_text;

/// Ends this process at once: no destructor and no handler runs, and no buffer is flushed.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Takes these groups, this group and this user, in an order in which each change is still allowed. Afterwards no other
/// process of this user may look into this one until it executes a program. The witness has no other thread: to the
/// kernel each thread has its own, and C libraries interrupt all of them around each change.
///
/// # Errors
/// The kernel's error.
pub fn become_user(_alone: &Child, uid: OwnerId, gid: OwnerId, groups: &[OwnerId]) -> Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let who = || format!("{uid}:{gid}");
    let group = |id: OwnerId| Gid::from_raw_unchecked(id.number());
    let groups: Vec<Gid> = groups.iter().copied().map(group).collect();
    set_thread_groups(&groups).named("setgroups", who)?;
    let (uid, gid) = (Uid::from_raw_unchecked(uid.number()), group(gid));
    set_thread_res_gid(gid, gid, gid).named("setresgid", who)?;
    set_thread_res_uid(uid, uid, uid).named("setresuid", who)?;
    // A change of user has set this to fs.suid_dumpable, whatever it was before.
    nix::sys::prctl::set_dumpable(false).named("prctl", || "PR_SET_DUMPABLE, 0".into())
}

/// Sends a signal to the process; ESRCH once it has been reaped.
///
/// # Errors
/// The kernel's error.
pub fn signal(process: BorrowedFd<'_>, number: i32) -> Result<()> {
    // SAFETY: no pointer but a null siginfo, which the kernel fills in.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("pidfd_send_signal", number.to_string(), errno))
}

/// Kills the process; ESRCH once it has been reaped.
///
/// # Errors
/// The kernel's error.
pub fn kill(process: BorrowedFd<'_>) -> Result<()> {
    signal(process, SIGKILL.into())
}

/// Kills every process of a group, by the number of a leader that has not been reaped.
///
/// # Errors
/// The kernel's error.
pub fn kill_group(leader: u32) -> Result<()> {
    let group = nix::unistd::Pid::from_raw(leader.cast_signed());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).named("killpg", || leader.to_string())
}

/// Opens a pidfd of a running process.
///
/// # Errors
/// ESRCH if there is none.
pub fn open_pidfd(pid: i32) -> Result<OwnedFd> {
    // A negative one would be a mistake of the caller's for rustix.
    let pid = rustix::process::Pid::from_raw(pid.max(0));
    let pid = pid.ok_or_else(|| Error::new("pidfd_open", "no process's number", Errno::ESRCH))?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .named("pidfd_open", || pid.as_raw_nonzero().to_string())
}

/// Duplicates a descriptor of another process.
///
/// # Errors
/// EPERM without the right to trace it, EBADF if it has no such descriptor.
pub fn descriptor_of(process: BorrowedFd<'_>, number: i32) -> Result<OwnedFd> {
    rustix::process::pidfd_getfd(process, number, rustix::process::PidfdGetfdFlags::empty())
        .named("pidfd_getfd", || number.to_string())
}

/// A pidfd of the process at the other end of a Unix socket; ENOPROTOOPT before Linux 6.5.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut pidfd: libc::c_int = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: both places live through the call, and `length` is the size of the first.
    let result = unsafe {
        let value = (&raw mut pidfd).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, value, &raw mut length)
    };
    Errno::result(result).map_err(|errno| Error::new("getsockopt(SO_PEERPIDFD)", "a connection", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Opens the PID namespace of a process.
///
/// # Errors
/// ENOTTY before Linux 6.11, ESRCH once the process has been reaped.
pub fn pid_namespace(process: BorrowedFd<'_>) -> Result<OwnedFd> {
    /// `PIDFD_GET_PID_NAMESPACE`.
    const REQUEST: u32 = 0xff05;
    // SAFETY: the request takes no argument and returns a new descriptor.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), REQUEST as _, 0) };
    let fd = Errno::result(result)
        .map_err(|errno| Error::new("ioctl(PIDFD_GET_PID_NAMESPACE)", "a process", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with a code.
    Code(u8),
    /// A signal killed it.
    Signal(u8),
}

/// Whether a dead child is also reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reap {
    /// It stays a zombie, and can be looked at again.
    Leave,
    /// It is reaped.
    Remove,
}

/// How a child ended; `None` while it runs. One that another process traces can only be reaped once that has let it go.
/// It has ended all the same, and stays a zombie, to be reaped with the strays.
///
/// # Errors
/// ECHILD if it is not a child of this process.
pub fn wait(process: BorrowedFd<'_>, reap: Reap) -> Result<Option<Ended>> {
    if let Some(ended) = wait_untraced(process, reap)? {
        return Ok(Some(ended));
    }
    if !is_over(process)? {
        return Ok(None);
    }
    // It may have ended just now.
    match wait_untraced(process, reap)? {
        Some(ended) => Ok(Some(ended)),
        None => traced_end(process).map(Some),
    }
}

/// Whether a process has exited, with all its threads.
fn is_over(process: BorrowedFd<'_>) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let ended = poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::ZERO);
    Ok(ended.named("poll", || "a process".into())? > 0)
}

/// How a zombie has ended, by its line in procfs.
fn traced_end(process: BorrowedFd<'_>) -> Result<Ended> {
    const EXIT_CODE: usize = 52;
    let number = number(process).or_else(|_older_kernel| number_in_proc(process))?;
    let status = stat_field(number, EXIT_CODE)?.and_then(|status| status.parse::<i32>().ok());
    let status = status.ok_or_else(|| Error::new("read", format!("/proc/{number}/stat"), Errno::EINVAL))?;
    Ok(match libc::WIFEXITED(status) {
        true => Ended::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(255)),
        false => Ended::Signal(u8::try_from(libc::WTERMSIG(status)).unwrap_or(SIGKILL)),
    })
}

fn wait_untraced(process: BorrowedFd<'_>, reap: Reap) -> Result<Option<Ended>> {
    use rustix::process::{WaitId, WaitIdOptions};
    let mut options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    if reap == Reap::Leave {
        options |= WaitIdOptions::NOWAIT;
    }
    let status =
        rustix::process::waitid(WaitId::PidFd(process), options).named("waitid", || "a child".into())?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Code(u8::try_from(code & 0xff).unwrap_or(255)),
        (None, signal) => {
            Ended::Signal(signal.and_then(|number| u8::try_from(number).ok()).unwrap_or(SIGKILL))
        }
    }))
}

/// Waits until a process has exited.
///
/// # Errors
/// The kernel's error.
pub fn await_end(process: BorrowedFd<'_>) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop).named("poll", || "a process".into()),
        }
    }
}

/// Waits until a process has exited, at most until the deadline if there is one, and for so long at most once something
/// can be read from `other`, or that has been closed. Returns whether the process has exited.
///
/// # Errors
/// The kernel's error.
pub fn await_end_or(
    process: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
    mut deadline: Option<Instant>,
    patience: Duration,
) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut count = 2;
    loop {
        let mut fds = [watched(process), watched(other)];
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds[..count], left.unwrap_or(PollTimeout::NONE)) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno).named("poll", || "a process".into()),
            Ok(0) => return Ok(false),
            Ok(_) if fds[0].any() == Some(true) => return Ok(true),
            Ok(_) => count = 1,
        }
        let hurried = Instant::now() + patience;
        deadline = Some(deadline.map_or(hurried, |deadline| deadline.min(hurried)));
    }
}

/// Reaps every dead child that `known` does not claim, and returns how many. A claimed one stays a zombie until its
/// exit is recorded, and until then hides those after it: whoever reaps it has to look again.
pub fn reap_strays(known: impl Fn(i32) -> bool) -> usize {
    let mut count = 0;
    while let Some(pid) = dead_child(libc::P_ALL, 0, libc::WNOWAIT).filter(|pid| !known(*pid)) {
        if dead_child(libc::P_PID, pid.cast_unsigned(), 0).is_none() {
            break;
        }
        count += 1;
    }
    count
}

fn dead_child(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Option<i32> {
    // SAFETY: all-zero bytes are a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives through the call.
    let result = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::WNOHANG | flags) };
    // SAFETY: waitid left it zero, or filled in a SIGCHLD siginfo, which has a pid.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid != 0).then_some(pid)
}

/// The pid of a process in this one's PID namespace, if it is a child of this one that has not been reaped.
///
/// # Errors
/// ECHILD if it is not.
pub fn child_number(process: BorrowedFd<'_>) -> Result<i32> {
    wait(process, Reap::Leave)?;
    match number(process) {
        Ok(number) => Ok(number),
        Err(_older_kernel) => number_in_proc(process),
    }
}

/// The PID namespace of a process, on every kernel. It is found by its number before Linux 6.11, so this process must
/// see the process in its `/proc`.
///
/// # Errors
/// The process is gone, or not to be seen.
pub fn pid_namespace_of(process: BorrowedFd<'_>) -> Result<OwnedFd> {
    match pid_namespace(process) {
        Err(error) if error.errno == Errno::ENOTTY => {}
        other => return other,
    }
    let path = format!("/proc/{}/ns/pid", number_in_proc(process)?);
    let namespace = crate::fs::open(&path, nix::fcntl::OFlag::O_RDONLY)?;
    // Else the number may have been another's by then.
    signal(process, 0).map(|()| namespace)
}

/// Whether a process sleeps until there is something to do. One that is stopped, waits for a disk or runs does not. It
/// is not woken for the answer.
///
/// # Errors
/// The process is gone, or not in this one's PID namespace.
pub fn is_asleep(process: BorrowedFd<'_>) -> Result<bool> {
    let number = number(process).or_else(|_older_kernel| number_in_proc(process))?;
    Ok(stat_field(number, 3)?.as_deref() == Some("S"))
}

/// A field of a process's `/proc/PID/stat`, by its number in proc_pid_stat(5), which is 3 or more. `None` if there is
/// no such field.
///
/// # Errors
/// The file cannot be read: ENOENT or ESRCH if the process is gone.
pub fn stat_field(pid: i32, number: usize) -> Result<Option<String>> {
    stat_field_in(Path::new(&format!("/proc/{pid}")), number)
}

/// Like [`stat_field`], of the process or task that has this directory of procfs.
///
/// # Errors
/// Those of [`stat_field`].
pub fn stat_field_in(directory: &Path, number: usize) -> Result<Option<String>> {
    let path = directory.join("stat");
    let stat = kernel_text(&path).named("read", || path.display().to_string())?;
    // The name, the second field, may contain anything.
    let rest = stat.rsplit_once(") ").map_or("", |(_name, rest)| rest);
    Ok(rest.split_whitespace().nth(number - 3).map(str::to_owned))
}

/// Whether a task exits, by its directory of procfs: it executes nothing of its own any more, and on v1 its cgroup is
/// the root.
///
/// # Errors
/// Those of [`stat_field`].
pub fn is_exiting(task: &Path) -> Result<bool> {
    const FLAGS: usize = 9;
    /// `PF_EXITING`.
    const EXITING: u64 = 4;
    let flags = stat_field_in(task, FLAGS)?.and_then(|flags| flags.parse::<u64>().ok());
    Ok(flags.is_some_and(|flags| flags & EXITING != 0))
}

/// Asks the kernel, which can answer since Linux 6.13.
fn number(process: BorrowedFd<'_>) -> Result<i32> {
    /// `PIDFD_GET_INFO`, with the first version of its result.
    const REQUEST: u32 = 0xc040_ff0b;
    const WITH_NUMBERS: u64 = 1;
    /// `struct pidfd_info`.
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        pid: u32,
        rest: [u32; 11],
    }
    let mut info = Info { mask: WITH_NUMBERS, cgroup: 0, pid: 0, rest: [0; 11] };
    // SAFETY: the place is as long as the request says, and lives through the call.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), REQUEST as _, &raw mut info) };
    Errno::result(result).map_err(|errno| Error::new("ioctl(PIDFD_GET_INFO)", "a process", errno))?;
    i32::try_from(info.pid)
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| Error::new("ioctl(PIDFD_GET_INFO)", info.pid.to_string(), Errno::ECHILD))
}

fn number_in_proc(process: BorrowedFd<'_>) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let info = kernel_text(&path).named("read", || path)?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.ok_or_else(|| Error::new("pidfd", info, Errno::ECHILD))
}

/// prctl(2) with an option that takes integers only.
pub(crate) fn prctl(option: libc::c_int, first: u64, second: u64) -> Result<()> {
    // SAFETY: no pointer: every option that this crate uses takes integers only.
    let result = unsafe { libc::prctl(option, first, second, 0_u64, 0_u64) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("prctl", format!("{option}, {first}, {second}"), errno))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::clone::{Clone, clone3};

    #[test]
    fn signals_have_the_kernels_numbers() {
        use wharf_types::signal::{SIGINT, SIGRTMAX, SIGTERM};
        let ours = [SIGINT, SIGKILL, SIGTERM, SIGRTMAX].map(i32::from);
        assert_eq!(ours, [libc::SIGINT, libc::SIGKILL, libc::SIGTERM, libc::SIGRTMAX()]);
    }

    /// The kernel tells its parent nothing until the tracer has let it go.
    #[test]
    fn a_child_that_somebody_traces_has_ended_all_the_same() {
        let (go, waits) = nix::unistd::pipe().unwrap();
        let (traced, tells) = nix::unistd::pipe().unwrap();
        let Clone::Parent { pid, pidfd } = clone3(0, None).unwrap_or_else(|error| panic!("{error}")) else {
            drop(waits);
            nix::unistd::read(&go, &mut [0]).unwrap_or_default();
            exit_now(7)
        };
        let Clone::Parent { pidfd: tracer, .. } = clone3(0, None).unwrap() else {
            drop(waits);
            // SAFETY: no pointer.
            let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
            nix::unistd::write(&tells, &[u8::from(result == 0)]).unwrap_or_default();
            loop {
                nix::unistd::pause();
            }
        };
        let mut is_traced = [0];
        nix::unistd::read(&traced, &mut is_traced).unwrap();
        assert_eq!((is_traced, wait(pidfd.as_fd(), Reap::Leave).unwrap()), ([1], None));
        drop(waits);
        await_end(pidfd.as_fd()).unwrap();
        for reap in [Reap::Leave, Reap::Remove] {
            assert_eq!(wait(pidfd.as_fd(), reap).unwrap(), Some(Ended::Code(7)));
        }
        kill(tracer.as_fd()).unwrap();
        await_end(tracer.as_fd()).unwrap();
        wait(tracer.as_fd(), Reap::Remove).unwrap();
        assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(7)), "it is let go");
        assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap_err().errno, Errno::ECHILD);
    }

    /// If the kernel set it to what `fs.suid_dumpable` allows, or, as here, changed nothing.
    #[test]
    fn nobody_may_look_into_a_process_that_has_become_a_user() {
        match clone3(0, None).unwrap() {
            Clone::Child(child) => {
                let before =
                    nix::sys::prctl::set_dumpable(true).and_then(|()| nix::sys::prctl::get_dumpable());
                let became = become_user(&child, OwnerId::ROOT, OwnerId::ROOT, &[]);
                let now = nix::sys::prctl::get_dumpable();
                exit_now(i32::from((before, became.is_ok(), now) != (Ok(true), true, Ok(false))))
            }
            Clone::Parent { pidfd, .. } => {
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(wait(pidfd.as_fd(), Reap::Remove).unwrap(), Some(Ended::Code(0)));
            }
        }
    }

    #[test]
    fn the_wait_for_a_process_is_bounded_once_it_is_not_wanted() {
        let (hold, end) = nix::unistd::pipe().unwrap();
        let (told, tell) = nix::unistd::pipe().unwrap();
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(100));
        match clone3(0, None).unwrap() {
            Clone::Child(_) => {
                drop(end);
                exit_now(nix::unistd::read(&hold, &mut [0]).map_or(1, |_end| 0))
            }
            Clone::Parent { pidfd, .. } => {
                nix::unistd::write(&tell, b"K").unwrap();
                let waited = |deadline, patience| {
                    await_end_or(pidfd.as_fd(), told.as_fd(), deadline, patience).unwrap()
                };
                assert!(!waited(None, short), "it runs");
                assert!(!waited(Some(Instant::now()), long), "it still runs");
                drop(end);
                assert!(waited(None, long));
                drop(tell);
                assert!(waited(None, short), "it has exited long ago");
                wait(pidfd.as_fd(), Reap::Remove).unwrap();
            }
        }
    }

    #[test]
    fn a_child_has_one_number_whoever_is_asked() {
        let (hold, end) = nix::unistd::pipe().unwrap();
        match clone3(0, None).unwrap() {
            Clone::Child(_) => {
                drop(end);
                exit_now(nix::unistd::read(&hold, &mut [0]).map_or(1, |_end| 0))
            }
            Clone::Parent { pid, pidfd } => {
                assert_eq!(child_number(pidfd.as_fd()).unwrap(), pid);
                assert_eq!(number_in_proc(pidfd.as_fd()).unwrap(), pid);
                // An older kernel refuses the request.
                assert_eq!(number(pidfd.as_fd()).unwrap_or(pid), pid);
                let until_asleep = |wanted: bool| {
                    while is_asleep(pidfd.as_fd()).unwrap() != wanted {
                        std::thread::yield_now();
                    }
                };
                until_asleep(true);
                signal(pidfd.as_fd(), libc::SIGSTOP).unwrap();
                until_asleep(false);
                signal(pidfd.as_fd(), libc::SIGCONT).unwrap();
                drop(end);
                await_end(pidfd.as_fd()).unwrap();
                assert_eq!(child_number(pidfd.as_fd()).unwrap(), pid, "not reaped yet");
                wait(pidfd.as_fd(), Reap::Remove).unwrap();
                assert_eq!(child_number(pidfd.as_fd()).unwrap_err().errno, Errno::ECHILD);
            }
        }
        let own = open_pidfd(std::process::id().cast_signed()).unwrap();
        assert_eq!(child_number(own.as_fd()).unwrap_err().errno, Errno::ECHILD);
    }
}
