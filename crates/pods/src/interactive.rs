//! Exec and attach for clients that hold the streams themselves: descriptors are handed out, no byte passes here.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use wharf_types::{Exit, TerminalSize, Wanted};
use wharf_wire::v1::request;

use crate::engine::Engine;
use crate::error::{Error, Stage};
use crate::exec::{ExecError, Streams, pipe};
use crate::supervisor::SupervisorError;
use crate::waiters;

const ATTACH: &str = "attach";
/// How much output may wait for a client. An attached one that is further behind gets no more, a command waits. The
/// kernel may give less.
const PIPE_BYTES: i32 = 1 << 20;

/// The streams of a running process, and its end. Dropped, an executed command is killed and an attached client leaves.
pub struct Interactive {
    /// What the process reads; it sees the end of its input when this is closed.
    pub stdin: Option<OwnedFd>,
    /// What it writes; of a terminal both outputs.
    pub stdout: Option<OwnedFd>,
    /// What it writes as errors.
    pub stderr: Option<OwnedFd>,
    /// The terminal, to set its size.
    pub terminal: Option<OwnedFd>,
    /// Its end.
    pub exit: Pin<Box<dyn Future<Output = Result<Exit, Error>> + Send>>,
}

impl std::fmt::Debug for Interactive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interactive").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl Engine {
    /// Executes a command for a client that holds its streams. If it wants a terminal, that has the size from the
    /// beginning.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container does not run or the command cannot be executed.
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        wanted: Wanted,
        size: Option<TerminalSize>,
    ) -> Result<Interactive, Error> {
        if wanted.terminal {
            return self.exec_on_terminal(id, command, wanted, size).await;
        }
        let input = wanted.stdin.then(input_pipe).transpose()?;
        let out = wanted.stdout.then(wide_pipe).transpose()?;
        let err = wanted.stderr.then(wide_pipe).transpose()?;
        let null = null()?;
        let theirs = [
            input.as_ref().map_or(null.as_fd(), |(read, _)| read.as_fd()),
            out.as_ref().map_or(null.as_fd(), |(_, write)| write.as_fd()),
            err.as_ref().map_or(null.as_fd(), |(_, write)| write.as_fd()),
        ];
        let (mut running, _no_terminal) = self.start_exec(id, command, Streams::Pipes(theirs)).await?;
        Ok(Interactive {
            stdin: input.map(|(_, write)| write),
            stdout: out.map(|(read, _)| read),
            stderr: err.map(|(read, _)| read),
            terminal: None,
            exit: Box::pin(async move { running.ended().await }),
        })
    }

    async fn exec_on_terminal(
        &self,
        id: &str,
        command: Vec<String>,
        wanted: Wanted,
        size: Option<TerminalSize>,
    ) -> Result<Interactive, Error> {
        let null = null()?;
        let stand_ins = Streams::Terminal([null.as_fd(); 3], size);
        let (mut running, terminal) = self.start_exec(id, command, stand_ins).await?;
        let missing = SupervisorError::Protocol { expected: "a terminal" };
        let master = terminal.ok_or(missing).stage(crate::exec::STAGE)?;
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(crate::exec::STAGE)?;
        let copy = || master.try_clone().stage(crate::exec::STAGE);
        Ok(Interactive {
            stdin: wanted.stdin.then(copy).transpose()?,
            stdout: Some(copy()?),
            stderr: None,
            terminal: Some(master),
            exit: Box::pin(async move { running.ended().await }),
        })
    }

    /// Connects a client to the streams of a container's first process. Before its start too: then nothing is missed.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container has ended or has 64 clients; InvalidArgument if a terminal is
    /// wanted and there is none, or the other way round.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<Interactive, Error> {
        let (pod, container) = self.live(id)?;
        let (has_terminal, has_input) = (container.record().config.tty, container.record().config.stdin);
        match (wanted.terminal, has_terminal) {
            (false, true) => return Err(Error::invalid("tty", "the container has a terminal: ask for one")),
            (true, false) => return Err(Error::invalid("tty", "the container has no terminal")),
            (true, true) | (false, false) => {}
        }
        let out = wanted.stdout.then(wide_pipe).transpose()?;
        let err = wanted.stderr.then(wide_pipe).transpose()?;
        let number = waiters::number();
        let lost = pod.attached.add(number);
        let body = request::Body::Attach(wharf_wire::v1::Attach {
            container: container.id.to_string(),
            attach: number,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        });
        let theirs: Vec<_> = [&out, &err].into_iter().flatten().map(|(_, write)| write.as_fd()).collect();
        let (_done, input) = pod.connected().await?.call_for_descriptors(ATTACH, body, &theirs).await?;
        let input = input.into_iter().next();
        let terminal = match &input {
            Some(master) if has_terminal => Some(master.try_clone().stage(ATTACH)?),
            _ => None,
        };
        Ok(Interactive {
            // A terminal is handed out for its size too; what has no input takes none.
            stdin: input.filter(|_| wanted.stdin && has_input),
            stdout: out.map(|(read, _)| read),
            stderr: err.map(|(read, _)| read),
            terminal,
            exit: Box::pin(async move {
                tokio::select! {
                    Ok(()) = lost => Err(Error::at(ATTACH, ExecError::Behind { limit_bytes: PIPE_BYTES })),
                    () = container.exited() => Ok(container.exit()),
                }
            }),
        })
    }
}

fn null() -> Result<OwnedFd, Error> {
    wharf_sys::fs::open("/dev/null", OFlag::O_RDWR).stage(crate::exec::STAGE)
}

/// A pipe whose second end, the writing one, never makes its writer wait.
fn input_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).stage(crate::exec::STAGE)?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(crate::exec::STAGE)?;
    Ok((read, write))
}

/// A pipe that holds more than others.
fn wide_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = pipe()?;
    // Where it stays narrow, output only waits sooner.
    fcntl(&read, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).unwrap_or_default();
    Ok((read, write))
}
