//! The async runtime and its threads. tokio panics if it cannot start the first ones, as in a cgroup without room for
//! another task. So the beginning makes sure that there is room, and one thread for blocking work is always there: it
//! does what is to be done, one after another, as long as no further one can be started.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

const WORKERS: usize = 2;
/// How many threads there must be room for: more than there are at the start, since those of the trial may still be
/// about to end then.
const TRIAL: usize = 6;
/// How long a thread for blocking work stays without any.
const KEEP: Duration = Duration::from_secs(10);

/// Starts the runtime, unless there is no room for its threads.
pub(crate) fn start() -> anyhow::Result<Runtime> {
    try_threads(TRIAL).context(
        "cannot start threads: raise TasksMax of the service, pids.max of the cgroup or kernel.pid_max, or stop \
         whatever uses up the tasks",
    )?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(wharf_pods::BLOCKING_THREADS)
        .thread_keep_alive(KEEP)
        .enable_all()
        .build()?;
    runtime.spawn(keep_thread());
    Ok(runtime)
}

/// Gives a thread something to do before the last one has been without work for too long. They take turns: if this came
/// twice as often, two would stay.
async fn keep_thread() {
    loop {
        drop(tokio::task::spawn_blocking(|| ()).await);
        tokio::time::sleep(KEEP * 2 / 3).await;
    }
}

/// Starts so many threads side by side, and ends them.
fn try_threads(count: usize) -> std::io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let start = |_number| {
        let gate = Arc::clone(&gate);
        std::thread::Builder::new().spawn(move || drop(gate.lock()))
    };
    let started: std::io::Result<Vec<_>> = (0..count).map(start).collect();
    drop(closed);
    for thread in started? {
        // It panics nowhere.
        drop(thread.join());
    }
    Ok(())
}
