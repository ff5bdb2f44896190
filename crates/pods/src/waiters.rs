//! Who waits for something that a supervisor will tell, by number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Waiters for values that come once.
#[derive(Debug)]
pub(crate) struct Waiters<T>(Mutex<HashMap<u64, oneshot::Sender<T>>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Waiters<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, number: u64) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        // Callers that went away before they were told.
        waiting.retain(|_, sender| !sender.is_closed());
        waiting.insert(number, sender);
        receiver
    }

    pub(crate) fn tell(&self, number: u64, value: T) {
        if let Some(waiter) = self.lock().remove(&number) {
            // A caller that went away needs no answer.
            drop(waiter.send(value));
        }
    }

    /// Nothing will be told any more: the supervisor is gone.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }
}

/// A number that no other exec or client has, over restarts of the daemon too: it names a cgroup.
pub(crate) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (wharf_sys::clock::now_ns().cast_unsigned() << 10) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0x3ff)
}
