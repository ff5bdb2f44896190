//! A container's hooks. They are executed in threads of their own: a hook may take minutes, and its thread enters the
//! container's namespaces.

use wharf_host::Hooked;
use wharf_records::ContainerRecord;
use wharf_tasks::in_thread;
use wharf_types::{ContainerId, StageError};

use super::Engine;
use crate::error::{Error, Stage};
use crate::pod::Pod;

impl Engine {
    /// A container's hooks; `pid` is its first process, or 0.
    pub(super) fn hooked(&self, pod: &Pod, id: &ContainerId, record: &ContainerRecord, pid: i32) -> Hooked {
        let bundle = self.parts.layout.bundle(pod.id(), id);
        Hooked { hooks: record.hooks.clone(), id: id.clone(), pid, bundle }
    }
}

/// Executes hooks, if the container has any.
pub(super) async fn execute(
    hooked: Hooked,
    work: impl FnOnce(&Hooked) -> Result<(), StageError> + Send + 'static,
) -> Result<(), Error> {
    if !hooked.has_hooks() {
        return Ok(());
    }
    Ok(in_thread("hooks", move || work(&hooked)).await.stage("executing the container's hooks")??)
}
