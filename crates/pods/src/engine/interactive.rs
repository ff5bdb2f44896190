//! Exec and attach for clients that use the streams themselves: descriptors are handed out, and no byte passes through
//! here.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::sync::oneshot;
use wharf_supervision::{
    self as supervision, CLIENT_PIPE_BYTES, ExecError, ExecStreams, Outputs, SupervisorError, input_pipe,
    null,
};
use wharf_types::{Exit, StreamOptions, TerminalSize};
use wharf_wire::v1;

use super::Engine;
use super::exec::STAGE;
use crate::container::Container;
use crate::error::{Error, Stage};

const ATTACH: &str = "attach";

/// The streams of a running process, and its end. Dropping this kills an executed command and detaches an attached
/// client.
pub struct Interactive {
    /// Standard input. The process sees its end when this is closed.
    pub stdin: Option<OwnedFd>,
    /// Standard output; with a terminal, both outputs.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// The terminal, to set its size.
    pub terminal: Option<OwnedFd>,
    /// Resolves with its exit.
    pub exit: Pin<Box<dyn Future<Output = Result<Exit, Error>> + Send>>,
}

impl std::fmt::Debug for Interactive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interactive").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl Engine {
    /// Executes a command for a client that uses its streams. If there is a terminal, it has its size from the
    /// beginning.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container does not run or the command cannot be executed.
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        wanted: StreamOptions,
        size: Option<TerminalSize>,
    ) -> Result<Interactive, Error> {
        if wanted.terminal {
            return self.exec_on_terminal(id, command, wanted, size).await;
        }
        let null = null()?;
        let input = wanted.stdin.then(input_pipe).transpose()?;
        let outputs = Outputs::of(wanted)?;
        let stdin = input.as_ref().map_or(null.as_fd(), |(read, _)| read.as_fd());
        let [stdout, stderr] = outputs.writers().map(|writer| writer.unwrap_or(null.as_fd()));
        let theirs = ExecStreams::Pipes([stdin, stdout, stderr]);
        let (mut running, _no_terminal) = self.start_exec(id, command, theirs).await?;
        let [stdout, stderr] = outputs.into_readers();
        Ok(Interactive {
            stdin: input.map(|(_, write)| write),
            stdout,
            stderr,
            terminal: None,
            exit: Box::pin(async move { running.ended().await }),
        })
    }

    async fn exec_on_terminal(
        &self,
        id: &str,
        command: Vec<String>,
        wanted: StreamOptions,
        size: Option<TerminalSize>,
    ) -> Result<Interactive, Error> {
        let null = null()?;
        let stand_ins = ExecStreams::Terminal([null.as_fd(); 3], size);
        let (mut running, terminal) = self.start_exec(id, command, stand_ins).await?;
        let missing = SupervisorError::Protocol { expected: "a terminal" };
        let master = terminal.ok_or(missing).stage(STAGE)?;
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(STAGE)?;
        let copy = || master.try_clone().stage(STAGE);
        Ok(Interactive {
            stdin: wanted.stdin.then(copy).transpose()?,
            stdout: Some(copy()?),
            stderr: None,
            terminal: Some(master),
            exit: Box::pin(async move { running.ended().await }),
        })
    }

    /// Attaches a client to the streams of a container's first process. This works before the container's start, too,
    /// so that nothing is missed.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if the container has exited or has 64 clients; InvalidArgument if a terminal is
    /// requested and there is none, or the other way round.
    pub async fn attach(&self, id: &str, wanted: StreamOptions) -> Result<Interactive, Error> {
        let (pod, container) = self.live(id)?;
        let (has_terminal, has_input) = container.with_config(|config| (config.tty, config.stdin));
        check_terminal(wanted, &container)?;
        let outputs = Outputs::of(wanted)?;
        let writers: Vec<_> = outputs.writers().into_iter().flatten().collect();
        let number = supervision::number();
        let behind = pod.attached().add(number);
        let input = pod.connected().await?.attach(request(&container, number, wanted), &writers).await?;
        let terminal = input.as_ref().filter(|_| has_terminal).map(OwnedFd::try_clone);
        let [stdout, stderr] = outputs.into_readers();
        Ok(Interactive {
            terminal: terminal.transpose().stage(ATTACH)?,
            // A terminal is handed out for its size as well; without an input, nothing is written to it.
            stdin: input.filter(|_| wanted.stdin && has_input),
            stdout,
            stderr,
            exit: Box::pin(attached(container, behind)),
        })
    }
}

/// A client with a terminal cannot read plain streams, nor the other way round.
fn check_terminal(wanted: StreamOptions, container: &Container) -> Result<(), Error> {
    match (wanted.terminal, container.with_config(|config| config.tty)) {
        (false, true) => Err(Error::invalid("tty", "the container has a terminal: ask for one")),
        (true, false) => Err(Error::invalid("tty", "the container has no terminal")),
        (true, true) | (false, false) => Ok(()),
    }
}

fn request(container: &Container, number: u64, wanted: StreamOptions) -> v1::Attach {
    let StreamOptions { stdin, stdout, stderr, terminal: _ } = wanted;
    v1::Attach { container: container.id().to_string(), attach: number, stdin, stdout, stderr }
}

/// Waits for a container's exit, or for its supervisor's report that the client did not keep up.
async fn attached(container: Arc<Container>, behind: oneshot::Receiver<()>) -> Result<Exit, Error> {
    tokio::select! {
        Ok(()) = behind => Err(Error::at(ATTACH, ExecError::Behind { limit_bytes: CLIENT_PIPE_BYTES })),
        () = container.exited() => Ok(container.exit()),
    }
}
