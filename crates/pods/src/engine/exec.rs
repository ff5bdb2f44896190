//! A further command in a running container, whoever has its streams.
//!
//! The command belongs to its call: it is killed, with everything that it started, when the call goes away. Its exit
//! comes as a report of the supervisor, not as a reply, and waits for whoever holds its number.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;
use wharf_supervision::{self as supervision, Connection, ExecStreams, SupervisorError};
use wharf_types::{ContainerId, ContainerState, Exit};

use super::Engine;
use crate::container::InPod;
use crate::error::{Error, Stage};

pub(super) const STAGE: &str = "exec";

/// A command that was executed. Dropping this before its end kills it with everything that it started.
#[derive(Debug)]
pub(super) struct Running {
    supervisor: Arc<Connection>,
    number: u64,
    exit: oneshot::Receiver<Exit>,
    state: Life,
}

#[derive(Debug, PartialEq, Eq)]
enum Life {
    Running,
    Over,
}

impl Running {
    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> Result<Exit, Error> {
        let exit = (&mut self.exit).await;
        self.state = Life::Over;
        exit.map_err(|_closed| SupervisorError::Gone).stage(STAGE)
    }

    /// Kills it with everything that it started.
    pub(super) async fn kill(&self) {
        kill(&self.supervisor, self.number).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.state == Life::Running {
            let (supervisor, number) = (Arc::clone(&self.supervisor), self.number);
            tokio::spawn(async move { kill(&supervisor, number).await });
        }
    }
}

async fn kill(supervisor: &Connection, exec: u64) {
    // If the supervisor is gone, so is the command.
    drop(supervisor.kill_exec(exec).await);
}

impl Engine {
    /// Executes a command in a running container, and returns it with its terminal, if it has one.
    pub(super) async fn start_exec(
        &self,
        id: &str,
        command: Vec<String>,
        streams: ExecStreams<'_>,
    ) -> Result<(Running, Option<OwnedFd>), Error> {
        wharf_planner::check_command(&command)?;
        let (pod, container) = self.running(id)?;
        let supervisor = pod.connected().await?;
        let number = supervision::number();
        // From here on the command is killed, whatever fails.
        let exit = pod.execs().add(number);
        let running = Running { supervisor: Arc::clone(&supervisor), number, exit, state: Life::Running };
        let terminal = supervisor.exec(container.id(), number, command, streams).await?;
        Ok((running, terminal))
    }

    /// The id of a running container.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if it does not run.
    pub fn running_container(&self, id: &str) -> Result<ContainerId, Error> {
        self.running(id).map(|(_pod, container)| container.id().clone())
    }

    /// The id of a container that has not exited.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if it has exited.
    pub fn live_container(&self, id: &str) -> Result<ContainerId, Error> {
        self.live(id).map(|(_pod, container)| container.id().clone())
    }

    /// The container, if it has not exited.
    pub(super) fn live(&self, id: &str) -> Result<InPod, Error> {
        let (pod, container) = self.container(id)?;
        if container.is_exited() {
            return Err(container.wrong_state("exited"));
        }
        Ok((pod, container))
    }

    /// The container, if it runs, or if only its supervisor can say whether it does, and will refuse the request if
    /// not.
    pub(super) fn running(&self, id: &str) -> Result<InPod, Error> {
        let (pod, container) = self.container(id)?;
        match container.known() {
            Some(ContainerState::Running { .. }) | None => Ok((pod, container)),
            Some(ContainerState::Created) => Err(container.wrong_state("created, not running")),
            Some(ContainerState::Exited { .. }) => Err(container.wrong_state("exited")),
        }
    }
}
