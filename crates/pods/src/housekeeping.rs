//! What goes on in the background as long as the daemon lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wharf_supervision::Link;
use wharf_types::chain;

use crate::engine::Engine;
use crate::error::{Stage, blocking};

/// How often writable layers are measured at most; the kubelet looks for full disks as often.
const ROUND: Duration = Duration::from_secs(10);
/// How much longer than a round the pause after it is: measuring takes at most a twentieth of a processor.
const PAUSES: u32 = 20;
/// How long the kernel has at first for the links of pods whose namespaces were let go, and at most between two looks.
const LINK_PAUSE: Duration = Duration::from_millis(500);
const LINK_PAUSE_LIMIT: Duration = Duration::from_secs(8);
/// How often the network and the images are looked at for what belongs to no pod.
const TIDY_ROUND: Duration = Duration::from_mins(1);

impl Engine {
    /// Measures what running containers have written, round after round; statistics are served from what it found.
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
            // One that was removed meanwhile, or cannot be read, keeps the figure it has.
            let measured = tokio::task::spawn_blocking(move || {
                drop(engine.parts.snapshots.usage(container.id(), Duration::ZERO));
            });
            drop(measured.await);
        }
    }

    /// Tidies up, and looks after the supervisors, once a minute.
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

    /// Frees the addresses of pods as soon as the kernel has let go their links.
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

    /// Finds supervisors that do not answer. None is killed for it: what its containers do goes on.
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

    /// Takes back what an earlier daemon left half made, and removes networks of pods that are no more.
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

/// Does a round in a task of its own: after one that panics the next one comes all the same.
async fn round(work: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = tokio::spawn(work).await {
        tracing::error!(%error, "a round of housekeeping broke off");
    }
}
