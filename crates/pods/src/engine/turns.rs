//! Turns at the network: plugins may hang, each with a thread of the bounded pool, which everything else needs, too.

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::BLOCKING_THREADS;

/// How many pods may be connected at a time, and how many disconnected: together three quarters of the pool's threads.
const AT_ONCE: usize = BLOCKING_THREADS * 3 / 8;

/// Who may connect a pod to the network, or disconnect one.
#[derive(Debug)]
pub(super) struct NetworkTurns {
    connecting: Semaphore,
    disconnecting: Semaphore,
    /// Notified when a pod has been disconnected.
    disconnected: Notify,
}

impl Default for NetworkTurns {
    fn default() -> Self {
        let turns = || Semaphore::new(AT_ONCE);
        Self { connecting: turns(), disconnecting: turns(), disconnected: Notify::new() }
    }
}

/// Until it is dropped; nobody waits for one that was never taken.
pub(super) type Turn<'a> = Option<SemaphorePermit<'a>>;

impl NetworkTurns {
    /// Waits for a turn to connect a pod.
    pub(super) async fn connect(&self) -> Turn<'_> {
        self.connecting.acquire().await.ok()
    }

    /// Waits for a turn to disconnect a pod.
    pub(super) async fn disconnect(&self) -> Turn<'_> {
        self.disconnecting.acquire().await.ok()
    }

    /// Tells that a pod's namespaces have been released: the kernel frees its addresses soon.
    pub(super) fn disconnected(&self) {
        self.disconnected.notify_one();
    }

    /// Waits until a pod's namespaces have been released, or returns at once if that has happened since the last call.
    pub(super) async fn after_disconnect(&self) {
        self.disconnected.notified().await;
    }
}
