//! Background work, which continues as long as the daemon lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wharf_supervision::Link;
use wharf_types::chain;

use crate::engine::Engine;
use crate::error::{Stage, blocking};

/// The shortest interval between measurements of writable layers; the kubelet checks for full disks as often.
const ROUND: Duration = Duration::from_secs(10);
/// The pause after a round is at least this many times as long as the round, so that measuring takes at most a
/// twentieth of a CPU.
const PAUSES: u32 = 20;
/// The first pause before checking for the links of released namespaces, and the longest.
const LINK_PAUSE: Duration = Duration::from_millis(500);
const LINK_PAUSE_LIMIT: Duration = Duration::from_secs(8);
/// How often the network and the images are checked for remains of pods.
const TIDY_ROUND: Duration = Duration::from_mins(1);

impl Engine {
    /// Measures what running containers have written, round after round; statistics use the latest result.
    pub async fn measure_layers(self: Arc<Self>) {
        loop {
            let begin = Instant::now();
            round(Arc::clone(&self).measure()).await;
            tokio::time::sleep(ROUND.max(begin.elapsed() * PAUSES)).await;
        }
    }

    async fn measure(self: Arc<Self>) {
        for container in self.containers() {
            if container.is_exited() && self.parts.snapshots.known_usage(container.id()).is_some() {
                continue;
            }
            let engine = Arc::clone(&self);
            // A layer that has been removed or cannot be read keeps its last figure.
            let measured = tokio::task::spawn_blocking(move || {
                drop(engine.parts.snapshots.usage(container.id(), Duration::ZERO));
            });
            drop(measured.await);
        }
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
            self.disconnected.notified().await;
        }
    }

    /// Finds supervisors that do not respond. None is killed for that: its containers continue.
    async fn look_after(self: Arc<Self>) {
        let greetings = self.pods().into_iter().map(|pod| async move {
            let Link::Up(connection) = pod.link().now() else { return };
            let was_silent = connection.is_silent();
            if connection.was_heard() || connection.greet_briefly().await {
                return;
            }
            if !was_silent {
                tracing::warn!(
                    pod = pod.id().short(),
                    "the pod's supervisor does not answer: is it stopped, or does it wait for the disk of a log?"
                );
            }
        });
        futures_util::future::join_all(greetings).await;
    }

    /// Undoes what an earlier daemon left half made, and removes the networks of pods that no longer exist.
    pub async fn tidy(self: &Arc<Self>) {
        let undoing = self.table.take_left_behind().into_iter().map(|pod| {
            let engine = Arc::clone(self);
            async move { engine.undo_pod(&pod).await }
        });
        futures_util::future::join_all(undoing).await;
        let owners = self.table.owners();
        let engine = Arc::clone(self);
        let reconciled = blocking(move || Ok(engine.parts.network.reconcile(&owners)));
        if let Err(error) = reconciled.await {
            tracing::warn!(error = chain(&error), "networks of pods that are no more may be left");
        }
    }

    /// Removes layers that neither an image nor a container needs.
    async fn sweep_layers(&self) {
        let images = Arc::clone(&self.parts.images);
        let swept = blocking(move || images.sweep().stage("removing layers of no image"));
        match swept.await {
            Ok(freed) if freed.inodes > 0 => {
                tracing::info!(bytes = freed.bytes, "layers of no image are removed")
            }
            Ok(_nothing) => {}
            Err(error) => tracing::warn!(error = chain(&error), "layers of no image stay"),
        }
    }
}

/// Runs a round in its own task, so that the next round comes even after a panic.
async fn round(work: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = tokio::spawn(work).await {
        tracing::error!(%error, "a round of housekeeping broke off");
    }
}
