//! Runs one plugin, with limits on time and output, in a process group of its own.
//!
//! Plugins are programs of others and run as root in the host's namespaces; nothing here confines them. What is bounded
//! is the harm of one that hangs: at its deadline it is killed with everything that it started.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use wharf_types::program::DEFAULT_PATH;

/// The longest output of a plugin, result or error.
const OUTPUT_LIMIT_BYTES: usize = 1 << 20;
/// A killed plugin that still exists after this long is stuck in the kernel, and is left behind.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The output of a plugin that has exited.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why a plugin did not exit by itself.
#[derive(Debug)]
pub(crate) enum ExecError {
    Io(std::io::Error),
    Deadline,
    TooLong,
}

impl From<std::io::Error> for ExecError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs the program until it exits. Its environment is this one added to that of this process, which may name a proxy
/// or an API server. At the deadline, or when it writes too much, it is killed with everything that it started.
pub(crate) fn run(
    program: &Path,
    environment: &[(&str, String)],
    input: File,
    deadline: Instant,
) -> Result<Output, ExecError> {
    #[expect(clippy::disallowed_methods, reason = "the one place that starts CNI plugins")]
    let mut command = Command::new(program);
    if std::env::var_os("PATH").is_none() {
        // A plugin may need other programs.
        command.env("PATH", DEFAULT_PATH);
    }
    command
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let result = listen(&mut child, deadline);
    finish(&mut child, result)
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
        // Output that a process left behind by the plugin may still write is not waited for.
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
    if let Ok(group) = i32::try_from(child.id())
        && let Err(errno) = killpg(Pid::from_raw(group), Signal::SIGKILL)
    {
        tracing::warn!(%errno, group, "cannot kill a CNI plugin");
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

/// One of the plugin's outputs.
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
