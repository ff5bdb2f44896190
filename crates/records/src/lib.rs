//! Records of pods and containers on disk: the request as it came, and the little that cannot be derived; and what becomes
//! of a container by its record once its daemon or its supervisor is gone. Calls on files wait for their disk; nothing
//! here knows a pod in memory.

mod container;
mod decide;
mod pod;

use std::path::Path;

use wharf_state::record;
use wharf_state::records::Content;
use wharf_types::StageError;

pub use container::{ContainerRecord, save_spec};
pub use decide::{Recovered, Word, decide, late_identity, lost_at};
pub use pod::PodRecord;

/// How far a pod or a container has come: what it cannot be asked itself once its supervisor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
pub enum Phase {
    /// Nobody was told of it yet: after a crash it is taken back.
    Making = 0,
    /// Everything is set up.
    Made = 1,
    /// As older builds had it of a pod that was stopped; now it is told by its supervisor, which is gone.
    Stopped = 2,
}

/// Why there is no record to go by.
#[derive(Debug)]
pub enum Unreadable {
    /// It is not what was saved.
    Damaged(StageError),
    /// It may be whole: a newer release wrote it in a way that says nothing to this one, or the disk refuses for now.
    LeftAlone(StageError),
}

/// Loads a record; one of a newer release with what this one understands, if that is enough to list what it is of and to
/// take it away. Who does not see its pod makes it a second time.
fn load<R: Content>(
    path: &Path,
    stage: &'static str,
    is_enough: impl FnOnce(&R) -> bool,
) -> Result<R, Unreadable> {
    let error = match wharf_state::records::load(path) {
        Ok(record) => return Ok(record),
        Err(error) => error,
    };
    let is_damage = error.is_damage();
    let error = StageError::at(stage, error);
    let unreadable = if is_damage { Unreadable::Damaged(error) } else { Unreadable::LeftAlone(error) };
    load_newer(path).filter(is_enough).ok_or(unreadable)
}

fn load_newer<R: Content>(path: &Path) -> Option<R> {
    let content = record::load_newer(path, R::FORMAT).ok()?;
    let record = R::decode(&content).ok()?;
    tracing::warn!(path = %path.display(), "a newer release wrote this record; it is left as it is");
    Some(record)
}

#[cfg(test)]
mod tests;
