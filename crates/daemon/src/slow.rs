//! Work in a directory whose disk may never respond. It is waited for, but not in silence; or another process finds out
//! first whether the disk responds.
#![expect(clippy::disallowed_methods, reason = "it is this program, for commands that nobody else waits for")]

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use wharf_sys::fs::kernel_text;
use wharf_sys::process::{await_end_or, open_pidfd};

/// How long the work may take until that is logged, and how long a disk may take to respond.
const PATIENCE: Duration = Duration::from_secs(5);

/// This program, whatever is at its path by now.
const ITSELF: &str = "/proc/self/exe";

/// The command, for this program alone, that touches a directory.
pub(crate) const TOUCH: &str = "touch-directory";

/// Whether the disk of a directory responds. Another process touches it: a thread that waits for a disk cannot be
/// ended, and would keep this process from ending. As long as that of an earlier call waits, there is no other one.
pub(crate) fn responds(directory: &Path) -> bool {
    let mut touches = Command::new(ITSELF);
    let ended = earlier_touch(directory).is_none_or(|earlier| has_ended(PATIENCE, &earlier));
    ended && ends_within(PATIENCE, touches.arg(TOUCH).arg(directory))
}

/// A process of this program that touches this directory already.
fn earlier_touch(directory: &Path) -> Option<OwnedFd> {
    let mut processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let earlier = open_pidfd(process.file_name().to_str()?.parse().ok()?).ok()?;
        touches(&process.path(), directory).then_some(earlier)
    })
}

/// Whether a process, by its directory of procfs, is this program and touches this directory.
///
/// Its user and its mounts come first: they are the kernel's, and nobody in a container has both. Its program may be on
/// a disk of its own making, and its command line is in its memory: the kernel may wait for either as long as the
/// process likes.
fn touches(process: &Path, directory: &Path) -> bool {
    let own = Path::new("/proc/self");
    let user = |process: &Path| process.metadata().ok().map(|process| process.uid());
    let shares = |name: &str| {
        let file = |process: &Path| process.join(name).metadata().ok().map(|file| (file.dev(), file.ino()));
        file(process).is_some_and(|found| Some(found) == file(own))
    };
    let line = [ITSELF.as_bytes(), TOUCH.as_bytes(), directory.as_os_str().as_bytes(), b""].join(&0);
    kernel_text(process.join("comm")).is_ok_and(|name| name == "exe\n")
        && user(process) == user(own)
        && shares("ns/mnt")
        && shares("exe")
        && std::fs::read(process.join("cmdline")).is_ok_and(|found| found == line)
}

/// Whether a process ends in time. One that does not is left behind, without a stream that somebody reads to its end.
fn ends_within(patience: Duration, command: &mut Command) -> bool {
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    // What keeps it from running, such as a limit, is for others to find.
    let Ok(mut process) = started else { return true };
    match open_pidfd(process.id().cast_signed()) {
        Ok(watched) => has_ended(patience, &watched) && process.wait().is_ok(),
        Err(_unwatched) => true,
    }
}

fn has_ended(patience: Duration, process: &OwnedFd) -> bool {
    let process = process.as_fd();
    await_end_or(process, process, Some(Instant::now() + patience), patience).unwrap_or(true)
}

/// What the other process does: it looks at a directory, and makes a file without a name in what is there of its path.
/// What comes of that does not matter, only that something does.
pub(crate) fn touch(directory: &Path) {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let there = directory.ancestors().find(|there| there.exists());
    drop(there.map(|there| nix::fcntl::open(there, flags, Mode::S_IRUSR | Mode::S_IWUSR)));
}

/// Does work in a directory, and logs it if that takes long.
pub(crate) fn work_in<T>(directory: &Path, work: impl FnOnce() -> T) -> T {
    let directory = directory.display().to_string();
    let tell = move || {
        tracing::warn!(
            directory,
            "waiting for the files in this directory: if it does not respond, check its disk, or the server that it is on"
        );
    };
    within(PATIENCE, tell, work)
}

/// Does work on this thread. Another one tells if it takes longer.
fn within<T>(patience: Duration, tell: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
    let telling = tokio::spawn(async move {
        tokio::time::sleep(patience).await;
        tell();
    });
    let done = work();
    telling.abort();
    done
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_does_not_end_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let waits = |patience| ends_within(patience, Command::new("cat").arg(&fifo));
        assert!(!waits(Duration::from_millis(50)));
        // It reads to the end.
        drop(std::fs::File::options().write(true).open(&fifo).unwrap());
        assert!(ends_within(Duration::from_secs(60), &mut Command::new("true")));
        assert!(ends_within(Duration::ZERO, &mut Command::new("/no/such/program")));
    }

    #[test]
    fn a_touch_that_waits_is_found_as_long_as_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        // It is this test's program, which has something to say and nobody to say it to.
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        (&writer).write_all(&[b'x'; 4096]).unwrap();
        let mut command = Command::new(ITSELF);
        let mut waits =
            command.arg(TOUCH).arg(dir.path()).stdin(Stdio::null()).stdout(writer).spawn().unwrap();
        drop(command);
        // It gets its name a moment after it has begun.
        let begin = Instant::now();
        let in_time = |_: &Option<OwnedFd>| begin.elapsed() < Duration::from_secs(20);
        let mut found = std::iter::repeat_with(|| earlier_touch(dir.path())).take_while(in_time).flatten();
        let found = found.next().expect("it is not found");
        assert!(!has_ended(Duration::from_millis(50), &found));
        assert!(earlier_touch(&dir.path().join("other")).is_none());
        drop(reader);
        waits.wait().unwrap();
        assert!(earlier_touch(dir.path()).is_none());
    }

    /// Files in place of those of procfs; opening a FIFO waits as long as what it stands for keeps the kernel waiting.
    #[test]
    fn what_another_process_can_keep_the_kernel_waiting_for_is_not_read_of_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("comm"), "exe\n").unwrap();
        std::fs::create_dir(dir.path().join("ns")).unwrap();
        std::os::unix::fs::symlink(ITSELF, dir.path().join("exe")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("cmdline"), Mode::S_IRWXU).unwrap();
        let looks = || {
            let (tell, told) = channel();
            let process = dir.path().to_owned();
            std::thread::spawn(move || tell.send(touches(&process, Path::new("/d"))));
            told.recv_timeout(Duration::from_secs(5))
        };
        std::fs::write(dir.path().join("ns/mnt"), "").unwrap();
        assert_eq!(looks(), Ok(false), "it is in a container");
        std::fs::remove_file(dir.path().join("ns/mnt")).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/mnt", dir.path().join("ns/mnt")).unwrap();
        std::fs::remove_file(dir.path().join("cmdline")).unwrap();
        std::fs::write(dir.path().join("cmdline"), format!("{ITSELF}\0{TOUCH}\0/d\0")).unwrap();
        assert_eq!(looks(), Ok(true));
    }

    #[test]
    fn a_touch_leaves_a_directory_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("not/there"), "/proc/none".into()] {
            touch(&path);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_that_takes_long_is_told_of_while_it_goes_on() {
        let (tell, told) = channel();
        let tell_it = move || tell.send(()).unwrap();
        let heard = within(Duration::from_millis(1), tell_it, || told.recv_timeout(Duration::from_secs(20)));
        heard.unwrap();
        let (tell, told) = channel::<()>();
        let work = || ();
        within(Duration::from_secs(3600), move || tell.send(()).unwrap(), work);
        assert!(told.recv().is_err(), "what is done is not told of");
    }
}
