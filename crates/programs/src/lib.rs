//! Programs of others that are run to their end: plugins of the network, hooks of containers. Each is in a process
//! group of its own, and has limits on its time and output. What it is given, and which program it is, is up to the
//! caller.
//!
//! They run as root in the host's namespaces; nothing here confines them. What is bounded is the harm of one that
//! hangs: at its deadline its process group is killed. What left the group (setsid) is beyond that.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wharf_sys::fs::sealed_memfd;
use wharf_sys::process::kill_group;

/// The longest output of a program, on each of its two streams.
const OUTPUT_LIMIT_BYTES: usize = 1 << 20;
/// A killed program that still exists after this long is stuck in the kernel, and is left behind.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// What a program that has exited left.
#[derive(Debug)]
pub struct Output {
    /// How it exited.
    pub status: ExitStatus,
    /// Its standard output, at most 1 MiB.
    pub stdout: Vec<u8>,
    /// Its standard error, at most 1 MiB.
    pub stderr: Vec<u8>,
}

/// Why a program did not exit by itself.
#[derive(Debug)]
pub enum ExecError {
    /// It could not be started, or not be watched.
    Io(std::io::Error),
    /// It ran too long.
    Deadline,
    /// It wrote too much.
    TooLong,
}

impl From<std::io::Error> for ExecError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs a program until it exits. At the deadline, or when it writes too much, it is killed with its process group.
/// What it leaves running otherwise is not waited for.
///
/// # Errors
/// [`ExecError`]; by then it is dead, unless the kernel does not let it die.
pub fn run(command: &mut Command, input: File, deadline: Instant) -> Result<Output, ExecError> {
    command.process_group(0).stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let result = listen(&mut child, deadline);
    finish(&mut child, result)
}

/// A program's input, in a file that is in no directory: a pipe would hold only so much.
///
/// # Errors
/// The kernel's error.
pub fn input(content: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(sealed_memfd("input", content).map_err(std::io::Error::other)?);
    file.rewind()?;
    Ok(file)
}

type Streams = (Vec<u8>, Vec<u8>);

/// Reads the child's outputs until it has exited.
fn listen(child: &mut Child, deadline: Instant) -> Result<Streams, ExecError> {
    let process = pidfd(child)?;
    let missing = || std::io::Error::from(ErrorKind::BrokenPipe);
    let mut stdout = Stream::new(child.stdout.take().ok_or_else(missing)?)?;
    let mut stderr = Stream::new(child.stderr.take().ok_or_else(missing)?)?;
    loop {
        let mut wait = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        wait.extend([stdout.wanted(), stderr.wanted()].into_iter().flatten());
        if wait_until(&mut wait, deadline)? == 0 {
            return Err(ExecError::Deadline);
        }
        let ended = wait.first().and_then(PollFd::any).unwrap_or_default();
        stdout.read()?;
        stderr.read()?;
        // Output that a process left behind by the program may still write is not waited for.
        if ended {
            return Ok((stdout.bytes, stderr.bytes));
        }
    }
}

/// Kills what is left of the group, and takes the exit status.
fn finish(child: &mut Child, result: Result<Streams, ExecError>) -> Result<Output, ExecError> {
    let Err(error) = result else {
        let (stdout, stderr) = result?;
        return Ok(Output { status: child.wait()?, stdout, stderr });
    };
    // The child has not been reaped, so its group still has this number.
    if let Err(error) = kill_group(child.id()) {
        tracing::warn!(errno = %error.errno, group = child.id(), "cannot kill a program that was started");
    }
    let process = pidfd(child)?;
    let mut wait = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    if wait_until(&mut wait, Instant::now() + KILL_LIMIT)? != 0 {
        child.wait()?;
    }
    Err(error)
}

fn pidfd(child: &Child) -> Result<OwnedFd, ExecError> {
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    Ok(wharf_sys::process::open_pidfd(pid).map_err(std::io::Error::other)?)
}

/// Waits for one of the descriptors; returns 0 at the deadline.
fn wait_until(wait: &mut [PollFd<'_>], deadline: Instant) -> Result<i32, ExecError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, because 0 would not wait at all; capped at what the kernel accepts.
        let left_ms = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
        match poll(wait, PollTimeout::from(left_ms)) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) if Instant::now() < deadline => {}
            other => return Ok(other.map_err(std::io::Error::from)?),
        }
    }
}

/// One of the program's outputs.
struct Stream<P> {
    pipe: P,
    bytes: Vec<u8>,
    open: bool,
}

impl<P: Read + AsFd> Stream<P> {
    fn new(pipe: P) -> Result<Self, ExecError> {
        nonblocking(pipe.as_fd())?;
        Ok(Self { pipe, bytes: Vec::new(), open: true })
    }

    /// What to poll; `None` after the end.
    fn wanted(&self) -> Option<PollFd<'_>> {
        self.open.then(|| PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN))
    }

    /// Reads what is available.
    fn read(&mut self) -> Result<(), ExecError> {
        let mut chunk = [0; 16 * 1024];
        while self.open {
            match self.pipe.read(&mut chunk) {
                Ok(0) => self.open = false,
                Ok(len) if self.bytes.len() + len > OUTPUT_LIMIT_BYTES => return Err(ExecError::TooLong),
                Ok(len) => self.bytes.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> Result<(), ExecError> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(std::io::Error::from)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(std::io::Error::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str, input: &str, patience: Duration) -> Result<Output, ExecError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), input).unwrap();
        #[expect(clippy::disallowed_methods, reason = "what is tested is the start of programs")]
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(&mut command, File::open(file.path()).unwrap(), Instant::now() + patience)
    }

    #[test]
    fn a_program_is_run_to_its_end() {
        let output = shell("cat; echo error >&2; exit 3", "input", Duration::from_mins(1)).unwrap();
        assert_eq!(
            (output.status.code(), &*output.stdout, &*output.stderr),
            (Some(3), &b"input"[..], &b"error\n"[..])
        );
    }

    #[test]
    fn a_program_that_runs_too_long_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let error = shell(&script, "", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, ExecError::Deadline), "{error:?}");
        let pid = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        // It was killed with the program, and may be on its way out.
        if let Ok(process) = wharf_sys::process::open_pidfd(pid) {
            let mut wait = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            assert_eq!(wait_until(&mut wait, Instant::now() + KILL_LIMIT).unwrap(), 1, "{pid} lives");
        }
    }

    #[test]
    fn a_program_that_writes_too_much_is_killed() {
        let error = shell("yes", "", Duration::from_mins(1)).unwrap_err();
        assert!(matches!(error, ExecError::TooLong), "{error:?}");
    }

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let begin = Instant::now();
        let output = shell("sleep 30 & exit 0", "", Duration::from_mins(1)).unwrap();
        assert!(output.status.success() && begin.elapsed() < Duration::from_secs(20));
    }
}
