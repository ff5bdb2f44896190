//! Checks of file systems, which may not respond.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::Builder;
use std::time::Duration;

use super::Check;

/// How long a file system may take. A machine under load takes tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a place was not looked at.
#[derive(Debug)]
pub(super) enum Unread {
    /// Its file system does not respond in time.
    Silent,
    /// There is no thread to look at it.
    NoThread(io::Error),
}

const THREADS: &str = "threads";

/// The check of the disk of logs, without which wharfd starts.
pub(super) const LOGS: &str = "logs";

/// What keeps other checks from being made, if there is no thread to make them.
pub(super) fn no_threads() -> Option<Check> {
    without(Builder::new())
}

fn without(thread: Builder) -> Option<Check> {
    let Err(Unread::NoThread(error)) = with(thread, PATIENCE, PathBuf::new(), |_nowhere| ()) else {
        return None;
    };
    let advice =
        "a limit on processes was reached: raise it (pids.max of a cgroup, or ulimit -u), and check again";
    Some(Check::warn(THREADS, format!("none can be started: {error}"), advice))
}

impl Unread {
    /// The result of a check.
    fn told(self, what: &'static str, place: &Path) -> Check {
        match self {
            Self::Silent => {
                let advice = "check the disk, or the server that it is on, and see the kernel's log (dmesg)";
                let advice = match what {
                    LOGS => advice.to_owned(),
                    _ => format!(
                        "{advice}; do not restart wharfd before it responds, because the next one could not start"
                    ),
                };
                Check::fail(what, format!("{} does not respond", place.display()), advice)
            }
            Self::NoThread(_error) => Check::warn(what, "not checked", format!("see {THREADS}")),
        }
    }
}

/// Makes a check of a place. If the file system there does not respond in time, that is the result, and the thread of
/// the check is left behind.
pub(super) fn check(
    what: &'static str,
    place: &Path,
    check: impl FnOnce(&Path) -> Check + Send + 'static,
) -> Check {
    attempt(what, place, check).unwrap_or_else(|unread| unread)
}

/// What is read from a place for a check, or the result of that check: that nothing could be read.
pub(super) fn attempt<T: Send + 'static>(
    what: &'static str,
    place: &Path,
    work: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Check> {
    within(PATIENCE, place.to_owned(), work).map_err(|unread| unread.told(what, place))
}

/// What is read from a place; nothing if that is not possible in time, which another check reports.
pub(super) fn read<T: Default + Send + 'static>(
    place: &Path,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> T {
    within(PATIENCE, place.to_owned(), read).unwrap_or_default()
}

/// Whether the file system of a path does not respond.
pub(super) fn is_silent(path: &Path) -> bool {
    let looked = within(PATIENCE, path.to_owned(), |path| path.symlink_metadata().is_ok());
    matches!(looked, Err(Unread::Silent))
}

/// Does work at a place in a thread of its own, which is left behind if it takes longer.
pub(super) fn within<T: Send + 'static>(
    patience: Duration,
    place: PathBuf,
    work: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Unread> {
    with(Builder::new(), patience, place, work)
}

fn with<T: Send + 'static>(
    thread: Builder,
    patience: Duration,
    place: PathBuf,
    work: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Unread> {
    let (sender, receiver) = mpsc::channel();
    // Nobody receives what comes too late.
    let work = move || sender.send(work(&place)).unwrap_or_default();
    thread.spawn(work).map_err(Unread::NoThread)?;
    receiver.recv_timeout(patience).map_err(|_late| Unread::Silent)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::super::Verdict;
    use super::*;

    /// Gives this thread a file system at `place` that does not respond to anything until the file is closed.
    fn silent_at(place: &Path) -> File {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("silent"), place, Some("fuse"), MsFlags::empty(), Some(&*options)).unwrap();
        device
    }

    /// Makes a check of a place whose file system does not respond, and is not kept by it.
    pub(in super::super) fn of_silent(check: impl FnOnce(&Path) -> Check + Send + 'static) {
        let (sender, receiver) = mpsc::channel();
        let (ends, ended) = mpsc::channel::<()>();
        let checking = std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let silent = silent_at(dir.path());
            let watched = std::thread::spawn(move || {
                // Nothing is sent: it ends.
                let _ended = ended.recv();
                drop(silent);
            });
            sender.send((dir.path().to_owned(), check(dir.path()))).unwrap_or_default();
            watched.join().unwrap();
            umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        });
        let told = receiver.recv_timeout(4 * PATIENCE);
        drop(ends);
        checking.join().unwrap();
        let (place, told) = told.expect("the check does not end");
        let begins = told.found.starts_with(&place.display().to_string());
        assert!(told.verdict == Verdict::Fail && begins, "{told:?}");
        assert!(told.found.ends_with(" does not respond"), "{told:?}");
    }

    #[test]
    fn what_does_not_respond_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let read = |place: &Path| std::fs::read(place).unwrap_or_default();
        assert!(matches!(within(Duration::from_millis(50), fifo, read), Err(Unread::Silent)));
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(within(PATIENCE, dir.path().join("file"), read).unwrap(), b"x");
        assert!(!is_silent(dir.path()) && !is_silent(Path::new("/no/such")));
        of_silent(|place| match is_silent(place) {
            true => Check::fail("", format!("{} does not respond", place.display()), ""),
            false => Check::ok("", ""),
        });
    }

    #[test]
    fn only_a_disk_that_wharfd_needs_keeps_the_next_one_from_starting() {
        let told = |what| Unread::Silent.told(what, Path::new("/d")).advice;
        assert!(told("state").contains("do not restart wharfd") && !told(LOGS).contains("restart wharfd"));
    }

    #[test]
    fn a_limit_of_tasks_is_no_fault_of_a_disk() {
        // No thread gets a stack of this size, for which the system gives the error of a limit on tasks.
        let thread = || Builder::new().stack_size(1 << 62);
        let looked = with(thread(), PATIENCE, PathBuf::from("/"), |_place| Check::ok("disk", ""));
        let told = looked.unwrap_err().told("disk", Path::new("/"));
        assert_eq!(told, Check::warn("disk", "not checked", "see threads"));
        let told = without(thread()).unwrap();
        assert!(told.verdict == Verdict::Warn && told.advice.contains("pids.max"), "{told:?}");
        assert_eq!(no_threads(), None);
    }
}
