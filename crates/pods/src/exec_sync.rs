//! ExecSync: a command in a running container, its output, and its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;
use wharf_types::ErrorKind;

use crate::engine::Engine;
use crate::error::{Error, Stage};
use crate::exec::{Running, STAGE, Streams, pipe};

/// What is kept of each stream; the command goes on beyond it. Both fit in one message of 16 MiB, and so does the rest.
const OUTPUT_LIMIT_BYTES: usize = (8 << 20) - 1024;
/// How long a killed command may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What a command left.
#[derive(Debug)]
pub struct ExecOutput {
    /// Standard output, at most some 8 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most some 8 MiB.
    pub stderr: Vec<u8>,
    /// The exit code, 128 + signal for a signal.
    pub exit_code: i32,
}

impl Engine {
    /// Runs a command to its end or to its deadline (`None` for none); at the deadline everything that it started is
    /// killed before the call returns.
    ///
    /// # Errors
    /// NotFound, FailedPrecondition if the container does not run or the command cannot be executed,
    /// DeadlineExceeded.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_RDONLY).stage(STAGE)?;
        let streams = Streams::Pipes([null.as_fd(), out.as_fd(), err.as_fd()]);
        let deadline = Deadline::after(timeout);
        let (running, _no_terminal) = tokio::select! {
            started = self.start_exec(id, command, streams) => started?,
            // In a container that is paused it does not even begin.
            overdue = deadline.passed() => return Err(overdue),
        };
        drop((null, out, err));
        finish(running, (stdout, stderr), &deadline).await
    }
}

/// When a command has to be over, counted from the call.
struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| (Instant::now() + timeout, timeout)))
    }

    /// Waits for it, and returns what the caller is told then.
    async fn passed(&self) -> Error {
        let Some((at, timeout)) = self.0 else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        let message = format!("the command did not end within {timeout:?} and was killed");
        Error::Stage { stage: STAGE, message, kind: ErrorKind::DeadlineExceeded }
    }
}

async fn finish(
    mut running: Running,
    (stdout, stderr): (OwnedFd, OwnedFd),
    deadline: &Deadline,
) -> Result<ExecOutput, Error> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) =
        (Receiver::from_owned_fd(stdout).stage(STAGE)?, Receiver::from_owned_fd(stderr).stage(STAGE)?);
    let exit = {
        let reading = async { tokio::join!(collect(&stdout, &mut out), collect(&stderr, &mut err)) };
        tokio::pin!(reading);
        let overdue = deadline.passed();
        tokio::pin!(overdue);
        let mut reading_done = false;
        loop {
            tokio::select! {
                exit = running.ended() => break exit,
                _ = &mut reading, if !reading_done => reading_done = true,
                overdue = &mut overdue => {
                    running.kill().await;
                    drop(tokio::time::timeout(KILL_PATIENCE, running.ended()).await);
                    return Err(overdue);
                }
            }
        }
    };
    // What the command wrote is in the pipes by now; what its children write later is not its output.
    drain(&stdout, &mut out);
    drain(&stderr, &mut err);
    exit.map(|exit| ExecOutput { stdout: out, stderr: err, exit_code: exit.code() })
}

/// Reads to the end of a pipe.
async fn collect(pipe: &Receiver, into: &mut Vec<u8>) {
    let mut buffer = vec![0; 16 * 1024];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut buffer) {
            Ok(count @ 1..) => keep(into, &buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

fn keep(into: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_LIMIT_BYTES - into.len();
    into.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// Takes what is in a pipe now, whether its readiness was seen yet or not.
fn drain(pipe: &Receiver, into: &mut Vec<u8>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match nix::unistd::read(pipe, &mut buffer) {
            Ok(count @ 1..) => keep(into, &buffer[..count]),
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
