//! A container in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use tokio::runtime::Handle;
use tokio::sync::watch;
use wharf_cgroup::{Cgroup, StatsReader};
use wharf_cri_api::v1::ContainerConfig;
use wharf_images::{Hold, Store};
use wharf_state::ExitRecord;
use wharf_types::{ContainerId, ContainerState, Exit, PodId};

use crate::lock::{Mutex, RwLock};
use crate::records::ContainerRecord;
use crate::usage::Meter;

/// What is said of an end that nobody saw.
const UNSEEN: &str = "its supervisor died, or did not answer, and nobody saw how it ended";

/// A container. Its state is watched: whoever waits for its end waits here.
#[derive(Debug)]
pub struct Container {
    pub(crate) id: ContainerId,
    pub(crate) pod: PodId,
    /// The request and what was resolved of it; limits change with updates.
    pub(crate) record: RwLock<ContainerRecord>,
    pub(crate) state: watch::Sender<ContainerState>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) stats: Option<StatsReader>,
    pub(crate) pid: AtomicI32,
    pub(crate) meter: Mutex<Meter>,
    pub(crate) log_path: String,
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Whether the state is a guess: an earlier daemon left the container, and its supervisor has not answered yet.
    pub(crate) guessed: AtomicBool,
    /// Keeps the image's layers while they may be mounted.
    pub(crate) _layers: Layers,
}

/// Layers that are kept; what no image needs any more goes with the last container. To let them go may mean to wait for
/// the disk, which no task should do that happens to be the last to know the container.
#[derive(Debug)]
pub(crate) struct Layers(Option<(Hold, Arc<Store>)>);

impl Layers {
    pub(crate) fn held(hold: Hold, store: Arc<Store>) -> Self {
        Self(Some((hold, store)))
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let (Some((hold, store)), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || {
                drop(hold);
                if let Err(error) = store.sweep() {
                    tracing::warn!(error = wharf_types::chain(&error), "layers of no image stay");
                }
            });
        }
    }
}

impl Container {
    /// The id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What is taken from its request, which as a whole is large.
    pub fn with_config<T>(&self, take: impl FnOnce(&ContainerConfig) -> T) -> T {
        self.with_record(|record| take(&record.config))
    }

    /// Its image, by digest where there is one.
    #[must_use]
    pub fn image_ref(&self) -> String {
        self.with_record(|record| record.image_ref.clone())
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Running { .. })
    }

    /// Whether its first process is gone.
    #[must_use]
    pub fn is_exited(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Exited { .. })
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        self.with_record(ContainerRecord::clone)
    }

    /// What is taken from the record, which as a whole is large.
    pub(crate) fn with_record<T>(&self, take: impl FnOnce(&ContainerRecord) -> T) -> T {
        take(&self.record.read())
    }

    /// Changes the record in memory; returns it as it is then, to be saved.
    pub(crate) fn change_record(&self, change: impl FnOnce(&mut ContainerRecord)) -> ContainerRecord {
        let mut record = self.record.write();
        change(&mut record);
        record.clone()
    }

    pub(crate) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// The number of the first process, which may be another's once it has ended.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
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

    /// Takes note of a start; false if it is not news.
    pub(crate) fn note_start(&self, started_at_ns: i64) -> bool {
        let guessed = self.guessed.swap(false, Ordering::Relaxed);
        self.state.send_if_modified(|state| match state {
            ContainerState::Created => {
                *state = ContainerState::Running { started_at_ns };
                true
            }
            ContainerState::Running { started_at_ns: guess } if guessed => {
                *guess = started_at_ns;
                false
            }
            ContainerState::Running { .. } | ContainerState::Exited { .. } => false,
        })
    }

    /// Takes note that it has not been started: that it runs was a guess.
    pub(crate) fn note_created(&self) {
        if self.guessed.swap(false, Ordering::Relaxed) {
            self.state.send_replace(ContainerState::Created);
        }
    }

    /// Takes note of an exit; false if it is not news. Who saw the end tells more than who only found the process gone.
    pub(crate) fn note_exit(&self, ExitRecord { exit, started_at_ns, finished_at_ns }: ExitRecord) -> bool {
        let guessed = self.guessed.swap(false, Ordering::Relaxed);
        let mut message = self.record().message;
        if exit == Exit::Lost && message.is_empty() {
            UNSEEN.clone_into(&mut message);
        }
        self.state.send_if_modified(|state| {
            let (first, started_at_ns) = match state {
                ContainerState::Exited { exit: Exit::Lost, started_at_ns, .. } if exit != Exit::Lost => {
                    (false, *started_at_ns)
                }
                ContainerState::Exited { .. } => return false,
                ContainerState::Running { started_at_ns } if !guessed => (true, *started_at_ns),
                ContainerState::Created | ContainerState::Running { .. } => (true, started_at_ns),
            };
            *state = ContainerState::Exited { started_at_ns, finished_at_ns, exit, message };
            first
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
