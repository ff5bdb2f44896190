//! ExecSync: a command in a running container, its output, and its end.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use wharf_types::{ErrorKind, Exit};
use wharf_wire::v1::request;

use crate::client::Client;
use crate::container::InPod;
use crate::engine::Engine;
use crate::error::{Error, Stage};

const STAGE: &str = "exec";
/// What is kept of each stream; the command goes on beyond it.
const OUTPUT_LIMIT_BYTES: usize = 16 << 20;
/// How long a killed command may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What a command left.
#[derive(Debug)]
pub struct ExecOutput {
    /// Standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// The exit code, 128 + signal for a signal.
    pub exit_code: i32,
}

/// Who waits for which command's end.
#[derive(Debug, Default)]
pub(crate) struct ExecWaiters(Mutex<HashMap<u64, oneshot::Sender<Exit>>>);

impl ExecWaiters {
    fn add(&self, exec: u64) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(exec, sender);
        receiver
    }

    pub(crate) fn ended(&self, exec: u64, exit: Exit) {
        if let Some(waiter) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&exec) {
            // A caller that went away needs no exit code.
            waiter.send(exit).unwrap_or_default();
        }
    }

    /// The supervisor is gone, and all commands with it.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Ends a command whose caller went away.
struct KillOnDrop {
    client: Arc<Client>,
    exec: u64,
    armed: bool,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.armed {
            let (client, exec) = (Arc::clone(&self.client), self.exec);
            tokio::spawn(async move { kill(&client, exec).await });
        }
    }
}

async fn kill(client: &Client, exec: u64) {
    let body = request::Body::KillExec(wharf_wire::v1::KillExec { exec });
    // A supervisor that is gone took the command with it.
    drop(client.call(STAGE, body, &[]).await);
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
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (pod, container) = self.running(id)?;
        let client = pod.client()?;
        // Unique over restarts of the daemon too: the number names a cgroup.
        let exec = (wharf_sys::clock::now_ns().cast_unsigned() << 10)
            | (NEXT.fetch_add(1, Ordering::Relaxed) & 0x3ff);
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_RDONLY).stage(STAGE)?;
        let ended = pod.execs.add(exec);
        let mut guard = KillOnDrop { client: Arc::clone(&client), exec, armed: true };
        let body = request::Body::Exec(wharf_wire::v1::Exec {
            container: container.id.to_string(),
            exec,
            args: command.into_iter().map(String::into_bytes).collect(),
            terminal: false,
        });
        client.call(STAGE, body, &[null.as_fd(), out.as_fd(), err.as_fd()]).await?;
        drop((null, out, err));
        let result = finish(&client, exec, (stdout, stderr), ended, timeout).await;
        guard.armed = false;
        result
    }

    fn running(&self, id: &str) -> Result<InPod, Error> {
        let (pod, container) = self.container(id)?;
        if container.is_running() {
            return Ok((pod, container));
        }
        let state = if container.is_exited() { "exited" } else { "created, not running" };
        Err(Error::State { what: "container", id: container.id.to_string(), state })
    }
}

async fn finish(
    client: &Client,
    exec: u64,
    (stdout, stderr): (OwnedFd, OwnedFd),
    mut ended: oneshot::Receiver<Exit>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) =
        (Receiver::from_owned_fd(stdout).stage(STAGE)?, Receiver::from_owned_fd(stderr).stage(STAGE)?);
    let exit = {
        let reading = async { tokio::join!(collect(&stdout, &mut out), collect(&stderr, &mut err)) };
        tokio::pin!(reading);
        let deadline = async {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        let mut reading_done = false;
        loop {
            tokio::select! {
                exit = &mut ended => break exit,
                _ = &mut reading, if !reading_done => reading_done = true,
                () = &mut deadline => {
                    kill(client, exec).await;
                    drop(tokio::time::timeout(KILL_PATIENCE, &mut ended).await);
                    let message = format!("the command did not end within {:?} and was killed", timeout.unwrap_or_default());
                    return Err(Error::Stage { stage: STAGE, message, kind: ErrorKind::DeadlineExceeded });
                }
            }
        }
    };
    // What the command wrote is in the pipes by now; what its children write later is not its output.
    drain(&stdout, &mut out);
    drain(&stderr, &mut err);
    match exit {
        Ok(exit) => Ok(ExecOutput { stdout: out, stderr: err, exit_code: exit.code() }),
        Err(_gone) => Err(Error::Stage {
            stage: STAGE,
            message: "the pod's supervisor is gone".to_owned(),
            kind: ErrorKind::Unavailable,
        }),
    }
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

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).stage(STAGE)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(STAGE)?;
    Ok((read, write))
}
