//! Exec and attach for clients that use the streams themselves: descriptors are handed out, and no byte passes through
//! here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::sync::oneshot;
use wharf_supervision::{self as supervision, ExecStreams, SupervisorError};
use wharf_types::{Exit, StreamOptions, TerminalSize};
use wharf_wire::v1;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::{Error, Stage};
use crate::exec::{ExecError, pipe};

const ATTACH: &str = "attach";
/// How much output may wait for a client. An attached client that falls further behind gets no more; an exec's command
/// waits. The kernel may provide less.
const PIPE_BYTES: i32 = 1 << 20;

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

/// Pipes for the requested outputs, each with its read end and its write end.
struct Outputs([Option<(OwnedFd, OwnedFd)>; 2]);

impl Outputs {
    fn of(wanted: StreamOptions) -> Result<Self, Error> {
        let stdout = wanted.stdout.then(wide_pipe).transpose()?;
        let stderr = wanted.stderr.then(wide_pipe).transpose()?;
        Ok(Self([stdout, stderr]))
    }

    /// The process's ends.
    fn writers(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.0.each_ref().map(|pipe| pipe.as_ref().map(|(_, write)| write.as_fd()))
    }

    /// The client's ends. The other ends are closed here: only the process has them, and the stream ends with the last
    /// of them.
    fn into_readers(self) -> [Option<OwnedFd>; 2] {
        self.0.map(|pipe| pipe.map(|(read, _)| read))
    }
}

/// Waits for a container's exit, or for its supervisor's report that the client did not keep up.
async fn attached(container: Arc<Container>, behind: oneshot::Receiver<()>) -> Result<Exit, Error> {
    tokio::select! {
        Ok(()) = behind => Err(Error::at(ATTACH, ExecError::Behind { limit_bytes: PIPE_BYTES })),
        () = container.exited() => Ok(container.exit()),
    }
}

fn null() -> Result<OwnedFd, Error> {
    wharf_sys::fs::open("/dev/null", OFlag::O_RDWR).stage(crate::exec::STAGE)
}

/// A pipe whose second end, for writing, is nonblocking.
fn input_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).stage(crate::exec::STAGE)?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).stage(crate::exec::STAGE)?;
    Ok((read, write))
}

/// A pipe with more capacity than the default.
fn wide_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = pipe()?;
    // With less capacity, output only has to wait sooner.
    fcntl(&read, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).unwrap_or_default();
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    const NOTHING: StreamOptions =
        StreamOptions { stdin: false, stdout: false, stderr: false, terminal: false };

    #[test]
    fn an_output_that_is_not_wanted_has_no_pipe() {
        for (stdout, stderr) in [(true, true), (true, false), (false, true), (false, false)] {
            let outputs = Outputs::of(StreamOptions { stdout, stderr, ..NOTHING }).unwrap();
            assert_eq!(outputs.writers().map(|writer| writer.is_some()), [stdout, stderr]);
            assert_eq!(outputs.into_readers().map(|reader| reader.is_some()), [stdout, stderr]);
        }
    }

    #[test]
    fn an_output_ends_with_the_process_and_not_with_this_one() {
        let outputs = Outputs::of(StreamOptions { stdout: true, ..NOTHING }).unwrap();
        let [stdout, _] = outputs.writers();
        let mut theirs = std::fs::File::from(stdout.unwrap().try_clone_to_owned().unwrap());
        let [stdout, _] = outputs.into_readers();
        let mut ours = std::fs::File::from(stdout.unwrap());
        let mut byte = [0];
        let empty = ours.read(&mut byte).unwrap_err();
        assert_eq!(empty.kind(), std::io::ErrorKind::WouldBlock, "a reader is not made to wait");
        theirs.write_all(b"x").unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut byte).unwrap(), 1);
        assert_eq!(ours.read(&mut byte).unwrap(), 0, "no other end is left open here");
    }
}
