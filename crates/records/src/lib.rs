//! The records of pods and containers on disk (the request as it came, and the little that cannot be derived), and the
//! decision about a container whose daemon or supervisor is gone; and the facts about both at one moment, from which
//! responses, events and messages for plugins are made. Calls on files wait for their disk; nothing here knows a pod in
//! memory.

mod container;
mod decide;
mod exit;
mod facts;
mod pod;

use std::path::Path;

use wharf_state::record;
use wharf_state::records::Content;
use wharf_types::StageError;

pub use container::{
    ContainerRecord, NO_LOG, UNSEEN, UNSTARTED, last_containers, load_spec, recorded_containers,
    remove_container, remove_left_exit, save_spec,
};
pub use decide::{Recovered, Word, decide, end_of, lost_at};
pub use exit::{exit_at, exit_or_lost};
pub use facts::{ContainerFacts, Event, PodFacts};
pub use pod::PodRecord;

/// How far a pod or a container has come, for the time when its supervisor is gone and cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
pub enum Phase {
    /// Nobody has been told about it yet: after a crash it is undone.
    Making = 0,
    /// Everything has been set up.
    Made = 1,
    /// Older builds recorded this for a stopped pod; now the absence of its supervisor shows it.
    Stopped = 2,
}

/// Why a record cannot be used.
#[derive(Debug)]
pub enum Unreadable {
    /// It is not what was saved.
    Damaged(StageError),
    /// It may be whole: a newer release wrote it in a form that this one does not understand, or it cannot be read for
    /// now.
    LeftAlone(StageError),
}

/// Loads a record. From one of a newer release it takes what this one understands, if that is enough to list the object
/// and to remove it: a kubelet that does not see its pod makes it a second time.
fn load<R: Content>(
    path: &Path,
    stage: &'static str,
    is_enough: impl FnOnce(&R) -> bool,
) -> Result<R, Unreadable> {
    let error = match wharf_state::records::load(path) {
        Ok(record) => return Ok(record),
        Err(error) => error,
    };
    let unreadable = match &error {
        error if error.is_damage() => Unreadable::Damaged,
        _ => Unreadable::LeftAlone,
    };
    load_newer(path).filter(is_enough).ok_or_else(|| unreadable(StageError::at(stage, error)))
}

fn load_newer<R: Content>(path: &Path) -> Option<R> {
    let content = record::load_newer(path, R::FORMAT).ok()?;
    let record = R::decode(&content).ok()?;
    tracing::warn!(path = %path.display(), "a newer release wrote this record; it is left as it is");
    Some(record)
}

#[cfg(test)]
mod tests;
