//! The end of a container's or a pod's cgroup: what is in it is killed, and it is removed.
//!
//! Each attempt is short: a process that does not die, because it waits for a disk, or a tree of many cgroups would
//! otherwise hold a thread of the pool that everything else needs.

use std::time::{Duration, Instant};

use wharf_cgroup::{Cgroup, CgroupPath, Cgroups, Removed};
use wharf_types::{ErrorKind, Failure as _, Stage as _, StageError, chain};

/// How long killed processes may take to exit.
pub const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Kills every process in a cgroup, and waits until they have exited.
///
/// # Errors
/// DeadlineExceeded if some are left after [`KILL_PATIENCE`].
pub async fn kill_cgroup(cgroup: &Cgroup) -> Result<(), StageError> {
    const STAGE: &str = "killing what runs in a cgroup";
    const ATTEMPT: Duration = Duration::from_millis(100);
    const PAUSE: Duration = Duration::from_millis(400);
    let until = Instant::now() + KILL_PATIENCE;
    loop {
        let of = cgroup.clone();
        let killed =
            blocking(STAGE, move || of.kill(ATTEMPT).and_then(|()| of.await_empty(ATTEMPT)).stage(STAGE));
        match killed.await {
            Err(error) if Instant::now() < until => {
                tracing::debug!(error = chain(&error), "processes are killed again");
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Removes a cgroup and kills its processes; a missing one is success.
///
/// # Errors
/// Those of [`kill_cgroup`]; the kernel's error.
pub async fn remove_cgroup(cgroups: Cgroups, path: CgroupPath) -> Result<(), StageError> {
    const STAGE: &str = "removing a cgroup";
    /// Its processes have already exited; the kernel may take a moment for the rest.
    const PATIENCE: Duration = Duration::from_secs(1);
    /// How often more is removed of what a container has made below it, each time in a thread of the pool's.
    const PARTS_LIMIT: usize = 30;
    let opened = blocking(STAGE, move || match cgroups.open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).stage(STAGE),
    });
    let Some(cgroup) = opened.await? else { return Ok(()) };
    kill_cgroup(&cgroup).await?;
    for _part in 1..PARTS_LIMIT {
        let cgroup = cgroup.clone();
        if blocking(STAGE, move || cgroup.remove_some(PATIENCE).stage(STAGE)).await? == Removed::All {
            return Ok(());
        }
    }
    blocking(STAGE, move || cgroup.remove(PATIENCE).stage(STAGE)).await
}

async fn blocking<T: Send + 'static>(
    stage: &'static str,
    work: impl FnOnce() -> Result<T, StageError> + Send + 'static,
) -> Result<T, StageError> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::from).stage(stage)?
}
