//! A container's hooks. They are executed in threads of their own: a hook may take minutes, and its thread enters the
//! container's namespaces. Hooks that hang hold up those of their pod, and those for the end hold up no beginning.

use std::sync::LazyLock;

use wharf_host::Hooked;
use wharf_records::ContainerRecord;
use wharf_tasks::{CrowdLimits, Threads};
use wharf_types::{ContainerId, PodId, StageError};

use super::Engine;
use crate::error::{Error, Stage};
use crate::pod::Pod;

/// How many of one pod, and of all, are executed at a time. Each is a thread and a process.
const LIMITS: CrowdLimits = CrowdLimits { of_one: 8, of_all: 512 };

/// Threads for hooks of a container that begins or runs.
pub(super) static FIRST: LazyLock<Threads<PodId>> = LazyLock::new(|| Threads::new("hooks", LIMITS));
/// Threads for hooks of a container's end.
pub(super) static LAST: LazyLock<Threads<PodId>> = LazyLock::new(|| Threads::new("last hooks", LIMITS));

impl Engine {
    /// A container's hooks; `pid` is its first process, or 0.
    pub(super) fn hooked(&self, pod: &Pod, id: &ContainerId, record: &ContainerRecord, pid: i32) -> Hooked {
        let bundle = self.parts.layout.bundle(pod.id(), id);
        Hooked { hooks: record.hooks.clone(), id: id.clone(), pid, bundle }
    }
}

/// Executes hooks, if the container has any.
pub(super) async fn execute(
    threads: &Threads<PodId>,
    pod: &Pod,
    hooked: Hooked,
    work: impl FnOnce(&Hooked) -> Result<(), StageError> + Send + 'static,
) -> Result<(), Error> {
    if !hooked.has_hooks() {
        return Ok(());
    }
    let what = format!("{} for container {} in pod {}", hooked.programs(), hooked.id, pod.id());
    let run = threads.run(pod.id(), what, move || work(&hooked));
    Ok(run.await.stage("executing the container's hooks")??)
}
