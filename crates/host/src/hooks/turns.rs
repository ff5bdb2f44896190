//! Threads for hooks, of their own: a hook may take minutes, and its thread enters the container's namespaces. Hooks
//! that hang hold up those of their pod, and those for the end hold up no beginning.

use std::sync::LazyLock;

use wharf_tasks::{CrowdLimits, Threads};
use wharf_types::{PodId, Stage as _, StageError};

use super::{Hooked, STAGE};

/// How many of one pod, and of all, are executed at a time. Each is a thread and a process.
const LIMITS: CrowdLimits = CrowdLimits { of_one: 8, of_all: 512 };

static FIRST: LazyLock<Threads<PodId>> = LazyLock::new(|| Threads::new("hooks", LIMITS));
static LAST: LazyLock<Threads<PodId>> = LazyLock::new(|| Threads::new("last hooks", LIMITS));

/// When hooks are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HooksOf {
    /// As the container begins or runs.
    Life,
    /// At its end.
    End,
}

impl Hooked {
    /// Executes hooks of a container of this pod, if it has any.
    ///
    /// # Errors
    /// What `work` returns, or there is no thread for it.
    pub async fn execute(
        self,
        of: HooksOf,
        pod: &PodId,
        work: impl FnOnce(&Self) -> Result<(), StageError> + Send + 'static,
    ) -> Result<(), StageError> {
        if !self.has_hooks() {
            return Ok(());
        }
        let what = format!("{} for container {} in pod {pod}", self.programs(), self.id);
        let threads = match of {
            HooksOf::Life => &FIRST,
            HooksOf::End => &LAST,
        };
        threads.run(pod, what, move || work(&self)).await.stage(STAGE)?
    }
}
