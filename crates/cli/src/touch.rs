//! Whether a disk responds. Another process of this program finds that out: a thread that waits for a disk cannot be
//! ended, and would keep this process from ending. wharfd has the same in its module `slow`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{sleep, timeout};

use crate::listener::{is_named, is_ours, processes};

/// How long a disk may take to respond.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether an earlier process has ended.
const AGAIN: Duration = Duration::from_millis(50);

/// This program, whatever is at its path by now.
const ITSELF: &str = "/proc/self/exe";

/// The command, for this program alone, that touches a directory.
const TOUCH: &str = "touch-directory";

/// Whether the disk of a directory responds. As long as the process of an earlier call waits for it, there is no other
/// one.
pub(crate) async fn responds(directory: &Path) -> bool {
    let earlier = processes().find(|&pid| touches(pid, directory));
    let ended = async {
        while earlier.is_some_and(|pid| touches(pid, directory)) {
            sleep(AGAIN).await;
        }
    };
    timeout(PATIENCE, ended).await.is_ok() && ends_within(PATIENCE, of(directory)).await
}

/// This program, to touch a directory.
fn of(directory: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "it is this program, by whatever name it was called")]
    let mut touch = Command::new(ITSELF);
    touch.arg(TOUCH).arg(directory);
    touch
}

/// Whether a process is this program and touches this directory already. Whose process it is comes first: a container's
/// may keep the kernel waiting for its program and its command line.
fn touches(pid: i32, directory: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let program = |path: &Path| path.metadata().ok().map(|program| (program.dev(), program.ino()));
    let line = [ITSELF.as_bytes(), TOUCH.as_bytes(), directory.as_os_str().as_bytes(), b""].join(&0);
    is_named(&process, "exe")
        && is_ours(&process)
        && program(&process.join("exe")) == program(Path::new(ITSELF))
        && std::fs::read(process.join("cmdline")).is_ok_and(|found| found == line)
}

/// Whether a process ends in time, or has a limit that keeps it from running, which is for others to find. One that
/// does not is left behind, without a stream that somebody else reads to its end.
async fn ends_within(patience: Duration, mut command: Command) -> bool {
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut process) = started else { return true };
    let Some(Ok(mut output)) =
        process.stdout.take().map(|output| Receiver::from_owned_fd(OwnedFd::from(output)))
    else {
        return true;
    };
    // It closes its output when it ends, and writes nothing.
    let ended = timeout(patience, output.read_u8()).await.is_ok();
    ended && process.wait().is_ok()
}

/// Touches a directory if that is what this process is for: makes a file without a name in what is there of its path.
/// What comes of that does not matter, only that something does.
pub(crate) fn is_asked(mut arguments: impl Iterator<Item = OsString>) -> bool {
    let (command, directory) = (arguments.nth(1), arguments.next());
    let Some(directory) = directory.filter(|_| command.is_some_and(|command| command == TOUCH)) else {
        return false;
    };
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let there = Path::new(&directory).ancestors().find(|there| there.exists());
    drop(there.map(|there| nix::fcntl::open(there, flags, Mode::S_IRUSR | Mode::S_IWUSR)));
    true
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Instant;

    use super::*;

    fn command(name: &str) -> Command {
        #[expect(clippy::disallowed_methods, reason = "a test's own process")]
        Command::new(name)
    }

    #[tokio::test]
    async fn what_does_not_end_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let mut cat = command("cat");
        cat.arg(&fifo);
        assert!(!ends_within(Duration::from_millis(50), cat).await);
        // It reads to the end.
        drop(std::fs::File::options().write(true).open(&fifo).unwrap());
        assert!(ends_within(Duration::from_secs(60), command("true")).await);
        assert!(ends_within(Duration::ZERO, command("/no/such/program")).await);
    }

    #[tokio::test]
    async fn an_earlier_touch_is_found_as_long_as_it_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        // It is this test's program, which has something to say and nobody to say it to.
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        (&writer).write_all(&[b'x'; 4096]).unwrap();
        let mut touch = of(dir.path());
        let mut waits = touch.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
        drop(touch);
        let pid = waits.id().cast_signed();
        let begin = Instant::now();
        while !touches(pid, dir.path()) {
            assert!(begin.elapsed() < Duration::from_secs(20), "it does not get its name");
            std::thread::yield_now();
        }
        assert!(!touches(pid, &dir.path().join("other")));
        assert!(!responds(dir.path()).await, "there is another one already");
        drop(reader);
        waits.wait().unwrap();
        assert!(!touches(pid, dir.path()));
        assert!(responds(dir.path()).await);
    }

    #[test]
    fn a_touch_leaves_a_directory_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let asked = |words: &[&str]| is_asked(words.iter().map(OsString::from));
        for path in [dir.path(), &dir.path().join("not/there"), Path::new("/proc/none")] {
            assert!(asked(&["wharf", TOUCH, path.to_str().unwrap()]));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!asked(&["wharf", TOUCH]) && !asked(&["wharf", "rm", TOUCH]) && !asked(&[]));
    }
}
