//! A container in memory.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::watch;
use wharf_cgroup::{Cgroup, StatsReader};
use wharf_images::Hold;
use wharf_state::ExitRecord;
use wharf_types::{ContainerId, ContainerState, PodId};

use crate::records::ContainerRecord;
use crate::stats::Meter;

/// A container. Its state is watched: whoever waits for its end waits here.
#[derive(Debug)]
pub struct Container {
    pub(crate) id: ContainerId,
    pub(crate) pod: PodId,
    /// The request and what was resolved of it; limits change with updates.
    pub(crate) record: RwLock<ContainerRecord>,
    pub(crate) state: watch::Sender<ContainerState>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) stats: Mutex<Option<StatsReader>>,
    pub(crate) pid: RwLock<i32>,
    pub(crate) meter: Mutex<Meter>,
    pub(crate) log_path: String,
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Keeps the image's layers while they may be mounted.
    pub(crate) _hold: Option<Hold>,
}

impl Container {
    /// The id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Running { .. })
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Exited { .. })
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        self.record.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended; lost as long as it has not.
    pub(crate) fn exit(&self) -> wharf_types::Exit {
        match *self.state.borrow() {
            ContainerState::Exited { exit, .. } => exit,
            ContainerState::Created | ContainerState::Running { .. } => wharf_types::Exit::Lost,
        }
    }

    /// Waits until the first process is gone.
    pub(crate) async fn exited(&self) {
        let mut states = self.state.subscribe();
        // The sender is this container's own, so it lives as long as the wait.
        drop(states.wait_for(|state| matches!(state, ContainerState::Exited { .. })).await);
    }

    /// Takes note of an exit; a second one changes nothing.
    pub(crate) fn note_exit(&self, ExitRecord { exit, started_at_ns, finished_at_ns }: ExitRecord) -> bool {
        let message = self.record().message;
        self.state.send_if_modified(|state| {
            let started_at_ns = match state {
                ContainerState::Exited { .. } => return false,
                ContainerState::Running { started_at_ns } => *started_at_ns,
                // Its start was asked for by an earlier daemon, or it never started.
                ContainerState::Created => started_at_ns,
            };
            *state = ContainerState::Exited { started_at_ns, finished_at_ns, exit, message };
            true
        })
    }

    /// Gives an exit the message of the record: one of a program that did not start may be noted before it is known why.
    pub(crate) fn explain_exit(&self) {
        let why = self.record().message;
        self.state.send_if_modified(|state| match state {
            ContainerState::Exited { message, .. } if *message != why => {
                *message = why;
                true
            }
            _ => false,
        });
    }
}

/// A container with the pod it is in.
pub(crate) type InPod = (Arc<crate::pod::Pod>, Arc<Container>);
