//! Background work, which continues as long as the daemon lives: measuring what containers have written, freeing
//! addresses, and once a minute removing what belongs to no pod and looking after supervisors that do not respond. A
//! round that fails or panics is logged, and the next one comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use wharf_cgroup::Cgroup;
use wharf_snapshots::Activity;
use wharf_supervision::Contact;
use wharf_types::chain;

use super::Engine;
use crate::container::Container;
use crate::error::blocking;
use crate::pod::Pod;
use crate::table::LeftBehind;

/// The shortest interval between measurements of writable layers while somebody asks for them; the kubelet checks for
/// full disks as often.
const ROUND: Duration = Duration::from_secs(10);
/// The pause after a round is at least this many times as long as the round, so that measuring takes at most a
/// twentieth of a CPU, unless that would leave the figures too old.
const PAUSES: u32 = 20;
const PAUSE_LIMIT: Duration = Duration::from_mins(1);
/// How old the figure of a container in which nothing has run may be: somebody else may have written to its layer, such
/// as a process of another container that shares its PID namespace.
const STILL_AGE: Duration = Duration::from_mins(1);
/// How long a thread measures at a stretch, apart from the last layer: a daemon that ends waits for both. Many
/// containers fit, so that an idle node with many is seldom woken.
const STRETCH: Duration = Duration::from_millis(100);
/// How long one container is measured in a round. With a larger layer, the next round goes on: no container keeps the
/// others waiting, whatever it does to its layer.
const LAYER_STRETCH: Duration = Duration::from_millis(500);
/// The first pause before checking for the links of released namespaces, and the longest.
const LINK_PAUSE: Duration = Duration::from_millis(500);
const LINK_PAUSE_LIMIT: Duration = Duration::from_secs(8);
/// How often the network and the images are checked for remains of pods.
const TIDY_ROUND: Duration = Duration::from_mins(1);

impl Engine {
    /// Measures what running containers have written, round after round, while somebody asks for statistics. These use
    /// the latest result.
    pub async fn measure_layers(self: Arc<Self>) {
        loop {
            self.measurements.wanted().await;
            let begin = Instant::now();
            round(Arc::clone(&self).measure()).await;
            self.measurements.met();
            tokio::time::sleep(pause_after(begin.elapsed())).await;
        }
    }

    async fn measure(self: Arc<Self>) {
        let mut left = self.containers();
        while !left.is_empty() {
            let engine = Arc::clone(&self);
            let stretch = tokio::task::spawn_blocking(move || engine.measure_some(left));
            // A panic ends the round; the next one comes.
            left = stretch.await.unwrap_or_default();
        }
    }

    /// Measures one container after another until the stretch is over; returns those that are left.
    fn measure_some(&self, mut left: Vec<Arc<Container>>) -> Vec<Arc<Container>> {
        let (begin, snapshots) = (Instant::now(), &self.parts.snapshots);
        while begin.elapsed() < STRETCH
            && let Some(container) = left.pop()
        {
            // A layer that has been removed or cannot be read keeps its last figure.
            drop(snapshots.usage(container.id(), activity(&container), STILL_AGE, LAYER_STRETCH));
        }
        left
    }

    /// Tidies up, and checks the supervisors, once a minute.
    pub async fn keep_tidy(self: Arc<Self>) {
        loop {
            let engine = Arc::clone(&self);
            round(async move { engine.tidy().await }).await;
            let engine = Arc::clone(&self);
            round(async move { engine.sweep_layers().await }).await;
            tokio::time::sleep(TIDY_ROUND).await;
            round(Arc::clone(&self).look_after()).await;
        }
    }

    /// Frees the addresses of pods as soon as the kernel has removed their links.
    pub async fn free_addresses(self: Arc<Self>) {
        loop {
            let mut pause = LINK_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                let engine = Arc::clone(&self);
                if matches!(blocking(move || Ok(engine.parts.network.free_addresses())).await, Ok(0)) {
                    break;
                }
                pause = (pause * 2).min(LINK_PAUSE_LIMIT);
            }
            self.network_turns.after_unmaking().await;
        }
    }

    /// Finds supervisors that do not respond. None is killed for that: its containers continue.
    async fn look_after(self: Arc<Self>) {
        let engine = Arc::clone(&self);
        let doubtful =
            blocking(move || Ok(engine.pods().into_iter().filter(is_doubtful).collect::<Vec<_>>()));
        let greetings = doubtful.await.unwrap_or_default().into_iter().map(|pod| async move {
            let Contact::Up(connection) = pod.contact().now() else { return };
            let was_silent = connection.is_silent();
            if connection.greet_briefly().await {
                return;
            }
            if !was_silent {
                tracing::warn!(
                    pod = pod.id().short(),
                    "the pod's supervisor does not respond: it may be stopped, or waiting for the disk of a log"
                );
            }
        });
        join_all(greetings).await;
    }

    /// Undoes what an earlier daemon left half made, and removes the networks of pods that no longer exist.
    pub async fn tidy(self: &Arc<Self>) {
        let undoing =
            self.table.take_left_behind().into_iter().map(async |LeftBehind { pod, containers }| {
                join_all(containers.iter().map(|container| self.undo_container(&pod, container))).await;
                self.undo_pod(&pod).await;
            });
        join_all(undoing).await;
        let owners = self.table.owners();
        let engine = Arc::clone(self);
        let reconciled = blocking(move || Ok(engine.parts.network.reconcile(&owners)));
        if let Err(error) = reconciled.await {
            tracing::warn!(error = chain(&error), "networks of removed pods may be left");
        }
    }

    /// Removes layers that neither an image nor a container needs.
    async fn sweep_layers(&self) {
        let images = Arc::clone(&self.parts.images);
        if let Err(error) = tokio::task::spawn_blocking(move || images.sweep_and_log()).await {
            tracing::warn!(%error, "layers that no image uses could not be removed");
        }
    }
}

/// Whether a pod's supervisor is worth a greeting. One that sleeps responds when it is asked; greeting all of them
/// would wake hundreds of processes on an idle node.
fn is_doubtful(pod: &Arc<Pod>) -> bool {
    let Contact::Up(connection) = pod.contact().now() else { return false };
    let process = pod.supervisor().clone();
    let is_asleep = || process.is_some_and(|process| process.is_asleep());
    connection.is_silent() || !(connection.was_heard() || is_asleep())
}

/// The pause after a round of measurements that took so long.
fn pause_after(round: Duration) -> Duration {
    (round * PAUSES).clamp(ROUND, PAUSE_LIMIT)
}

/// What has run in a container until now.
fn activity(container: &Container) -> Activity {
    if container.is_exited() {
        return Activity::Over;
    }
    let cpu_ns = container.cgroup().and_then(Cgroup::cpu_ns);
    cpu_ns.map_or(Activity::Unknown, |cpu_ns| Activity::Until { cpu_ns })
}

/// Runs a round in its own task, so that the next round comes even after a panic.
async fn round(work: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = tokio::spawn(work).await {
        tracing::error!(%error, "a round of housekeeping panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_round_does_not_leave_the_figures_old() {
        for (round_ms, pause_s) in [(0, 10), (500, 10), (1500, 30), (20_000, 60), (3_600_000, 60)] {
            assert_eq!(pause_after(Duration::from_millis(round_ms)), Duration::from_secs(pause_s));
        }
    }

    #[tokio::test]
    async fn a_round_that_panics_ends_no_more_than_itself() {
        let rounds = async {
            round(async { panic!("a bug") }).await;
            "the next one"
        };
        assert_eq!(rounds.await, "the next one");
    }
}
