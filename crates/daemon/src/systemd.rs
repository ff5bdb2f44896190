//! What systemd is told if it started this process: sd_notify(3), sd_watchdog_enabled(3).

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};

/// How often in its period the watchdog is fed.
const LOOKS: u32 = 3;

/// Notifies systemd, if it started this process. Nobody waits for a systemd that does not read.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(state.as_bytes(), &path)
    });
    if let Err(error) = told {
        tracing::warn!(%error, "cannot notify systemd of {state}");
    }
}

/// Feeds the watchdog as long as this future is polled and every worker of the runtime makes progress. It never ends.
pub(crate) async fn feed_watchdog() {
    let Some(period) = watchdog_period() else { return std::future::pending().await };
    let metrics = Handle::current().metrics();
    let mut before = progress(&metrics);
    loop {
        tokio::time::sleep(period / LOOKS).await;
        let now = progress(&metrics);
        match stuck(&before, &now) {
            0 => notify("WATCHDOG=1"),
            stuck => tracing::error!(
                workers = stuck,
                "threads of wharfd make no progress: unless they do, systemd restarts it"
            ),
        }
        before = now;
    }
}

/// The period of the watchdog, if there is one and it watches this process.
fn watchdog_period() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
        return None;
    }
    number("WATCHDOG_USEC").filter(|period| *period > 0).map(Duration::from_micros)
}

/// What a worker has done by some moment.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    /// How often it has gone to sleep and has been woken; odd while it sleeps.
    naps: u64,
    /// How long it has been busy, except for the tasks that it is at.
    busy: Duration,
}

fn progress(metrics: &RuntimeMetrics) -> Vec<Progress> {
    let of = |worker| Progress {
        naps: metrics.worker_park_unpark_count(worker),
        busy: metrics.worker_total_busy_duration(worker),
    };
    (0..metrics.num_workers()).map(of).collect()
}

/// How many workers were at one task all the time between two looks.
fn stuck(before: &[Progress], now: &[Progress]) -> usize {
    let is_awake = |worker: &Progress| worker.naps.is_multiple_of(2);
    before.iter().zip(now).filter(|(before, now)| before == now && is_awake(now)).count()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_worker_is_stuck_while_a_task_does_not_return() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let metrics = runtime.metrics();
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let task = runtime.spawn(async move {
            begun.send(()).unwrap();
            released.recv().unwrap();
        });
        begins.recv().unwrap();
        let before = progress(&metrics);
        let mut least = 2;
        // Until the other worker, which has nothing to do, is seen to sleep.
        while least > 1 {
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
            least = stuck(&before, &progress(&metrics));
        }
        assert_eq!(least, 1);
        release.send(()).unwrap();
        runtime.block_on(task).unwrap();
        // It counts what it has done before it sleeps.
        while stuck(&before, &progress(&metrics)) > 0 {
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        }
    }
}
