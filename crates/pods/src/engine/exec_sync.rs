//! ExecSync: a command in a running container, its output and its exit code.
//!
//! The output is read here while the command runs, and no byte of it passes through the supervisor. Memory for the
//! output, and the number of commands, are bounded for the node: a container that runs too many hinders no other.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::time::Instant;
use wharf_supervision::{
    BRIEF_PATIENCE, ExecError, ExecStreams, KILL_PATIENCE, Output, OutputMemory, SupervisorError, pipe,
};
use wharf_tasks::{Crowd, CrowdLimits, Crowded, Member};
use wharf_types::ContainerId;

use super::Engine;
use super::exec::{Running, STAGE};
use crate::error::{Error, Stage};

/// Commands at a time. In one container there are only a handful of probes and hooks; each takes a few descriptors and
/// some tens of KiB in this process.
const LIMITS: CrowdLimits = CrowdLimits { of_one: 512, of_all: 4096 };

/// What all commands share.
#[derive(Debug)]
pub(super) struct Commands {
    running: Crowd<ContainerId>,
    memory: OutputMemory,
}

impl Default for Commands {
    fn default() -> Self {
        Self { running: Crowd::new(LIMITS), memory: OutputMemory::default() }
    }
}

impl Commands {
    pub(super) fn count(&self) -> usize {
        self.running.count()
    }

    fn enter(&self, container: &ContainerId) -> Result<Member<ContainerId>, Error> {
        let entered = self.running.enter(container).map_err(|crowded| match crowded {
            Crowded::One(count) => ExecError::Turns { count, place: format!("in container {container}") },
            Crowded::All(count) => ExecError::Turns { count, place: "on this node".to_owned() },
        });
        entered.stage(STAGE)
    }
}

/// A command's result.
#[derive(Debug)]
pub struct ExecOutput {
    /// Standard output, at most about 8 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most about 8 MiB.
    pub stderr: Vec<u8>,
    /// The exit code, 128 + signal for a signal.
    pub exit_code: i32,
}

impl Engine {
    /// Runs a command until it exits or its deadline passes (`None` for no deadline). At the deadline, everything that
    /// it started is killed before the call returns.
    ///
    /// # Errors
    /// NotFound, FailedPrecondition if the container does not run or the command cannot be executed, DeadlineExceeded,
    /// Unavailable if the pod's supervisor does not respond, ResourceExhausted if too many commands run or they write
    /// too much.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let _member = self.commands.enter(&self.running_container(id)?)?;
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_RDONLY).stage(STAGE)?;
        let streams = ExecStreams::Pipes([null.as_fd(), out.as_fd(), err.as_fd()]);
        let deadline = Deadline::after(timeout);
        let (running, _no_terminal) = tokio::select! {
            started = self.start_exec(id, command, streams) => started?,
            overdue = deadline.passed() => return Err(self.not_begun(id, overdue).await),
        };
        drop((null, out, err));
        let memory = &self.commands.memory;
        let outputs = (Output::of(stdout, memory)?, Output::of(stderr, memory)?);
        finish(running, outputs, &deadline).await
    }

    /// Why a command has not begun by its deadline. In a paused container none begins. But if the supervisor does not
    /// respond, the container is not to blame: for DeadlineExceeded, a failed probe, the kubelet would restart it.
    async fn not_begun(&self, id: &str, overdue: Error) -> Error {
        let Ok((pod, _container)) = self.container(id) else { return overdue };
        match pod.connected().await {
            Ok(supervisor) if supervisor.is_silent() || !supervisor.greet_briefly().await => {
                Error::at(STAGE, SupervisorError::Silent { patience: BRIEF_PATIENCE })
            }
            Ok(_responds) => overdue,
            Err(error) => error,
        }
    }
}

/// A command's deadline, counted from the call.
struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        // A time that the clock cannot represent never comes.
        Self(timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout))))
    }

    /// Waits for the deadline, and returns the caller's error.
    async fn passed(&self) -> Error {
        let Some((at, timeout)) = self.0 else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        Error::at(STAGE, ExecError::Overdue { timeout })
    }
}

async fn finish(
    mut running: Running,
    (mut out, mut err): (Output, Output),
    deadline: &Deadline,
) -> Result<ExecOutput, Error> {
    let outcome = {
        let reading = async {
            match tokio::try_join!(out.collect(), err.collect()) {
                // Both outputs are closed, and the command continues.
                Ok(((), ())) => std::future::pending().await,
                Err(error) => error,
            }
        };
        tokio::select! {
            exit = running.ended() => Ok(exit?),
            error = reading => Err(error.into()),
            overdue = deadline.passed() => Err(overdue),
        }
    };
    match outcome {
        Ok(exit) => {
            // The command's output is in the pipes by now; what its children write later is not part of it.
            out.drain()?;
            err.drain()?;
            Ok(ExecOutput { stdout: out.into_bytes(), stderr: err.into_bytes(), exit_code: exit.code() })
        }
        Err(error) => {
            running.kill().await;
            drop(tokio::time::timeout(KILL_PATIENCE, running.ended()).await);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::{ErrorKind, Failure as _};

    #[tokio::test]
    async fn a_deadline_that_no_clock_can_tell_is_none() {
        let far = Deadline::after(Some(Duration::from_secs(u64::MAX >> 1)));
        assert!(futures_util::FutureExt::now_or_never(far.passed()).is_none());
        let near = Deadline::after(Some(Duration::ZERO));
        assert_eq!(near.passed().await.kind(), ErrorKind::DeadlineExceeded);
    }

    #[test]
    fn a_container_that_runs_too_much_is_told_so_and_hinders_no_other() {
        let (commands, id) = (Commands::default(), |byte| ContainerId::from_random([byte; 32]));
        let _members: Vec<_> = (0..LIMITS.of_one).map(|_| commands.enter(&id(1)).unwrap()).collect();
        let error = commands.enter(&id(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        let words = format!("{} commands are running in container {}", LIMITS.of_one, id(1));
        assert!(wharf_types::chain(&error).contains(&words), "{error}");
        let _another = commands.enter(&id(2)).unwrap();
        assert_eq!(commands.count(), LIMITS.of_one + 1);
    }
}
