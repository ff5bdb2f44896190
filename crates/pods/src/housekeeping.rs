//! What goes on in the background as long as the daemon lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Engine;

/// How often writable layers are measured at most; the kubelet looks for full disks as often.
const ROUND: Duration = Duration::from_secs(10);
/// How much longer than a round the pause after it is: measuring takes at most a twentieth of a processor.
const PAUSES: u32 = 20;

impl Engine {
    /// Measures what running containers have written, round after round; statistics are served from what it found.
    pub async fn measure_layers(self: Arc<Self>) {
        loop {
            let begin = Instant::now();
            for container in self.containers() {
                if container.is_exited() && self.parts.snapshots.known_usage(&container.id).is_some() {
                    continue;
                }
                let engine = Arc::clone(&self);
                // One that was removed meanwhile, or cannot be read, keeps the figure it has.
                let measured = tokio::task::spawn_blocking(move || {
                    drop(engine.parts.snapshots.usage(&container.id, Duration::ZERO));
                });
                drop(measured.await);
            }
            tokio::time::sleep(ROUND.max(begin.elapsed() * PAUSES)).await;
        }
    }
}
