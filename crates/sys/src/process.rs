//! Processes: making them, confining them, and acting on them by descriptor.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use crate::error::{Error, Named, Result};

/// A witness that this process has one thread, so that its children may run any code after a clone.
#[derive(Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Counts the threads. Who holds the witness must start none.
    ///
    /// # Errors
    /// EBUSY if there is more than one, or the kernel's if `/proc` cannot be read.
    pub fn check() -> Result<Self> {
        let tasks =
            std::fs::read_dir("/proc/self/task").named("readdir", || "/proc/self/task".into())?.count();
        if tasks == 1 {
            Ok(Self(()))
        } else {
            Err(Error::new("clone3", format!("{tasks} threads"), Errno::EBUSY))
        }
    }
}

/// The kernel's `CLONE_INTO_CGROUP`, which is wider than an int.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Clone {
    /// The new process.
    Child,
    /// The process that cloned, with the child's number (for printing) and descriptor (for acting).
    Parent {
        /// The child's pid in the parent's PID namespace.
        pid: i32,
        /// The child.
        pidfd: OwnedFd,
    },
}

/// Clones this process into new namespaces, and into a cgroup (v2) if one is given.
///
/// # Errors
/// The kernel's; EAGAIN for a pid limit.
pub fn clone(
    _witness: &SingleThreaded,
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Clone> {
    clone3(u64::from(namespaces.bits().cast_unsigned()), cgroup).inspect(end_by_panic)
}

/// The flags of [`clone_sibling`].
pub const SIBLING: u64 = (libc::CLONE_PARENT | libc::CLONE_PIDFD).cast_unsigned() as u64;

/// Clones this process into the PID namespace that its children are for, as a child of its own parent. The number is the
/// one in this process's namespace. By the old clone(2), whose flags a filter can read: most let it through, and not clone3.
///
/// # Errors
/// The kernel's; ENOMEM if the namespace's first process is gone.
pub fn clone_sibling(_witness: &SingleThreaded) -> Result<Clone> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `pidfd` lives through the call and no stack is given, so this is a fork; the witness says that no other thread
    // holds a lock that the child needs. All architectures have these arguments first.
    let result = unsafe { libc::syscall(libc::SYS_clone, SIBLING, 0_u64, &raw mut pidfd, 0_u64, 0_u64) };
    side_of(Errno::result(result), pidfd)
        .map_err(|errno| Error::new("clone", format!("flags {SIBLING:#x}"), errno))
        .inspect(end_by_panic)
}

/// What a C library remembers as the number of a child that it did not make is its parent's: an abort would be the parent's
/// end, where that number is somebody in the child's PID namespace.
fn end_by_panic(side: &Clone) {
    if matches!(side, Clone::Child) {
        std::panic::set_hook(Box::new(|_| exit_now(134)));
    }
}

/// Lets the kernel kill this process when its parent ends; `false` if that, whose number is given, has ended already.
/// Becoming another user takes it back.
///
/// # Errors
/// The kernel's.
pub fn end_with_parent(parent: u32) -> Result<bool> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL.cast_unsigned().into(), 0)?;
    Ok(std::os::unix::process::parent_id() == parent)
}

/// Forks with flags that share nothing. Unless this process has one thread, the child may make system calls and nothing
/// else.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Clone> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero bytes are a valid clone_args: plain integers, where 0 means unset.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` lives through the call and no stack is given, so this is a fork; that no lock is needed in the child
    // which another thread held is for the callers, of which all outside of this crate show a witness.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    side_of(Errno::result(result), pidfd)
        .map_err(|errno| Error::new("clone3", format!("flags {flags:#x}"), errno))
}

/// What a clone returned, and the descriptor that the kernel stored for the parent.
fn side_of(result: nix::Result<libc::c_long>, pidfd: libc::c_int) -> nix::Result<Clone> {
    match result? {
        0 => Ok(Clone::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor there, which nobody else knows.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Clone::Parent { pid: i32::try_from(pid).unwrap_or(-1), pidfd })
        }
    }
}

/// Ends this process at once: no destructor, no buffer, no handler of the parent's image runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Takes the descriptor with a number this process was started with, such as 0.
///
/// # Errors
/// EBADF if it is not open.
pub fn inherited(number: i32) -> Result<OwnedFd> {
    // SAFETY: F_GETFD only looks.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
    Errno::result(open).map_err(|errno| Error::new("fcntl(F_GETFD)", number.to_string(), errno))?;
    // SAFETY: it is open, and by the contract of this function the caller takes it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a signal to the process; ESRCH once it was reaped.
///
/// # Errors
/// The kernel's.
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

/// Opens a descriptor of a running process.
///
/// # Errors
/// ESRCH if there is none.
pub fn open_pidfd(pid: i32) -> Result<OwnedFd> {
    let pid =
        rustix::process::Pid::from_raw(pid).ok_or_else(|| Error::new("pidfd_open", "0", Errno::ESRCH))?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .named("pidfd_open", || pid.as_raw_nonzero().to_string())
}

/// A descriptor of the process at the other end of a Unix socket; ENOPROTOOPT before Linux 6.5.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut pidfd: libc::c_int = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: both places live through the call, and `length` is the size of the first.
    let result = unsafe {
        let value = (&raw mut pidfd).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, value, &raw mut length)
    };
    Errno::result(result).map_err(|errno| Error::new("getsockopt(SO_PEERPIDFD)", "", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Opens the PID namespace of a process.
///
/// # Errors
/// ENOTTY before Linux 6.11, ESRCH once the process was reaped.
pub fn pid_namespace(process: BorrowedFd<'_>) -> Result<OwnedFd> {
    /// `PIDFD_GET_PID_NAMESPACE`.
    const REQUEST: u32 = 0xff05;
    // SAFETY: the request takes no argument and returns a new descriptor.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), REQUEST as _, 0) };
    let fd =
        Errno::result(result).map_err(|errno| Error::new("ioctl(PIDFD_GET_PID_NAMESPACE)", "", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It returned a code.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
}

/// Whether looking at a dead child also removes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reap {
    /// It stays a zombie, to be looked at again.
    Leave,
    /// It is gone afterwards.
    Remove,
}

/// How a child ended; `None` while it runs.
///
/// # Errors
/// ECHILD if it is not a child of this process.
pub fn wait(process: BorrowedFd<'_>, reap: Reap) -> Result<Option<Ended>> {
    use rustix::process::{WaitId, WaitIdOptions};
    let mut options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    if reap == Reap::Leave {
        options |= WaitIdOptions::NOWAIT;
    }
    let status = rustix::process::waitid(WaitId::PidFd(process), options).named("waitid", String::new)?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Code(u8::try_from(code & 0xff).unwrap_or(255)),
        (None, signal) => Ended::Signal(u8::try_from(signal.unwrap_or(libc::SIGKILL)).unwrap_or(9)),
    }))
}

/// The number of a process in this one's PID namespace, if it is a child of this one that was not reaped.
///
/// # Errors
/// ECHILD if it is none.
pub fn child_number(process: BorrowedFd<'_>) -> Result<i32> {
    wait(process, Reap::Leave)?;
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let info = std::fs::read_to_string(&path).named("read", || path)?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.ok_or_else(|| Error::new("pidfd", info, Errno::ECHILD))
}

/// Waits until a process has ended.
///
/// # Errors
/// The kernel's.
pub fn await_end(process: BorrowedFd<'_>) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop).named("poll", || "a process".into()),
        }
    }
}

/// Removes every dead child that `known` does not claim; returns how many. A claimed one stays a zombie until its exit
/// is recorded, and hides those behind it until then.
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

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// The kernel's; ENOSYS before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: three integers; descriptors stay open until an exec.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("close_range", first.to_string(), errno))
}

/// The five capability sets, one bit per capability number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// What can ever be had.
    pub bounding: u64,
    /// What is checked.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What a program with file capabilities may inherit.
    pub inheritable: u64,
    /// What survives the exec of a plain program as another user than root.
    pub ambient: u64,
}

/// The capabilities this process may hand on: its bounding set.
///
/// # Errors
/// The kernel's, if `/proc` cannot be read.
pub fn bounding_capabilities() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").named("read", || "/proc/self/status".into())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Ok(line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0))
}

/// Drops every capability outside `keep` from the bounding set; needs `CAP_SETPCAP`.
///
/// # Errors
/// The kernel's.
pub fn bound_capabilities(keep: u64) -> Result<()> {
    for number in 0..64_u64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            // Past the last capability of this kernel.
            Err(error) if error.errno == Errno::EINVAL => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Sets the effective, permitted and inheritable sets.
///
/// # Errors
/// EPERM if more is asked for than permitted.
pub fn set_capabilities(sets: &Capabilities) -> Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).named("capset", || format!("{sets:?}"))
}

/// The option of prctl(2) by which [`set_ambient`] does its work.
pub const AMBIENT: u64 = libc::PR_CAP_AMBIENT.cast_unsigned() as u64;

/// Clears the ambient set, then raises what is in `ambient`.
///
/// # Errors
/// EPERM for one that is not both permitted and inheritable.
pub fn set_ambient(ambient: u64) -> Result<()> {
    let none = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0);
    none?;
    for number in (0..64_u64).filter(|number| ambient & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE.cast_unsigned().into(), number)?;
    }
    Ok(())
}

/// Keeps the permitted capabilities over a change of user.
///
/// # Errors
/// The kernel's.
pub fn keep_capabilities() -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)
}

fn prctl(option: libc::c_int, first: u64, second: u64) -> Result<()> {
    // SAFETY: every option used in this file takes integers only.
    let result = unsafe { libc::prctl(option, first, second, 0_u64, 0_u64) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("prctl", format!("{option}, {first}, {second}"), errno))
}

/// Opens the other end of a pseudo-terminal by its master, whatever lies at its path.
///
/// # Errors
/// The kernel's.
pub fn terminal_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    let fd = Errno::result(result).map_err(|errno| Error::new("ioctl(TIOCGPTPEER)", "", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal the controlling one of this session.
///
/// # Errors
/// EPERM if this process does not lead a session without a terminal.
pub fn control_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("ioctl(TIOCSCTTY)", "", errno))
}

/// Sets a terminal's size in characters.
///
/// # Errors
/// The kernel's.
pub fn resize_terminal(terminal: BorrowedFd<'_>, width: u16, height: u16) -> Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize that lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("ioctl(TIOCSWINSZ)", format!("{width}x{height}"), errno))
}

/// Sets one resource limit by the kernel's number, both halves.
///
/// # Errors
/// EPERM to raise the hard limit without `CAP_SYS_RESOURCE`.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives through the call, the old limit is not asked for, and pid 0 is this process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("prlimit64", format!("{resource}, {soft}, {hard}"), errno))
}

/// Turns text into a C string; a NUL inside is EINVAL.
///
/// # Errors
/// EINVAL.
pub fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text)
        .map_err(|error| Error::new("execve", format!("NUL at {}", error.nul_position()), Errno::EINVAL))
}

/// Unlocks the other end of a pseudo-terminal.
///
/// # Errors
/// ENOTTY if it is none.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> Result<()> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int that lives through the call.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("ioctl(TIOCSPTLCK)", "", errno))
}

/// Closes every descriptor from 3 on but those named, and puts standard input in the place of standard error, which is the
/// parent's log: a child's first step, so that nothing of its parent leaks into it.
///
/// # Errors
/// The kernel's.
pub fn keep_only(witness: &SingleThreaded, keep: &[BorrowedFd<'_>]) -> Result<()> {
    close_others(witness, 3, keep)?;
    nix::unistd::dup2_stderr(std::io::stdin()).named("dup2", || "2".into())
}

/// Closes every descriptor from `first` on but those named.
///
/// # Errors
/// The kernel's.
pub fn close_others(_witness: &SingleThreaded, first: u32, keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut numbers: Vec<u32> =
        keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).filter(|&fd| fd >= first).collect();
    numbers.sort_unstable();
    let mut first = first;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: only a new child calls this, which uses none of the descriptors it closes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("close_range", format!("{first}, {last}"), errno))
}

/// Leaves the session keyring that was inherited for a new one that is empty. A kernel without keys has none to leave.
///
/// # Errors
/// The kernel's; EDQUOT where the user has too many keys.
pub fn new_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: an integer, and a null name: the new keyring has none.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match Errno::result(result) {
        Err(Errno::ENOSYS) => Ok(()),
        other => other.map(drop).map_err(|errno| Error::new("keyctl", "JOIN_SESSION_KEYRING", errno)),
    }
}

/// Gives every signal its default action and blocks none: what a program expects at its start.
///
/// # Errors
/// The kernel's.
pub fn reset_signals() -> Result<()> {
    // An ignored signal stays ignored over an exec: SIGPIPE from Rust's runtime, SIGHUP from nohup. C libraries keep some
    // signals for themselves, so this is the bare call; all zero, the kernel's sigaction is the default action.
    let default = [0_u64; 4];
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: `default` is at least as long as a kernel's sigaction and lives through the call; the old one is not asked
        // for, and the default action is no handler whose code would have to be safe.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), old, 8) };
        Errno::result(result).map_err(|errno| Error::new("rt_sigaction", number.to_string(), errno))?;
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().named("sigprocmask", String::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of this thread's session keyring.
    fn session_keyring() -> i64 {
        const GET_KEYRING_ID: libc::c_int = 0;
        const SESSION_KEYRING: libc::c_int = -3;
        // SAFETY: three integers; nothing is made.
        unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 0) }
    }

    #[test]
    fn a_session_keyring_is_left_behind() {
        let before = session_keyring();
        // Keyrings are of a thread and of those it starts.
        let inside = std::thread::spawn(|| {
            new_session_keyring().unwrap();
            session_keyring()
        });
        let inside = inside.join().unwrap();
        assert!(before > 0 && inside > 0, "{before} {inside}");
        assert_ne!(inside, before);
        assert_eq!(session_keyring(), before);
    }
}
