//! Callers that wait for something that a supervisor will report, by number.
//!
//! A value comes once, and perhaps at once: so a waiter is added before the request that will cause it. Those who wait
//! in vain learn it when the supervisor is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::oneshot;
use wharf_types::lock::lock;

/// Waiters for values that come once.
#[derive(Debug)]
pub struct Waiters<T>(Mutex<HashMap<u64, oneshot::Sender<T>>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Waiters<T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<T>>> {
        lock(&self.0)
    }

    /// Adds a waiter.
    pub fn add(&self, number: u64) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        // Removes callers that went away before their value came.
        waiting.retain(|_, sender| !sender.is_closed());
        waiting.insert(number, sender);
        receiver
    }

    /// Passes the value to the waiter with this number, if there is one.
    pub fn tell(&self, number: u64, value: T) {
        if let Some(waiter) = self.lock().remove(&number) {
            let _caller_may_be_gone = waiter.send(value);
        }
    }

    /// Nothing more will be reported, because the supervisor is gone.
    pub fn clear(&self) {
        self.lock().clear();
    }
}

/// A number that no other exec, attached client or request has, not even across restarts of the daemon: it names a
/// cgroup.
pub fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (wharf_sys::clock::now_ns().cast_unsigned() << 10) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0x3ff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_waiter_is_notified_once_and_of_its_own() {
        let waiters = Waiters::default();
        let (one, other) = (waiters.add(1), waiters.add(2));
        waiters.tell(2, "second");
        waiters.tell(2, "nobody waits for this any more");
        waiters.tell(3, "nor ever did for that");
        assert_eq!(other.await.unwrap(), "second");
        waiters.clear();
        assert!(one.await.is_err(), "nothing will be told");
    }

    #[test]
    fn who_went_away_takes_no_memory() {
        let waiters = Waiters::<()>::default();
        for number in 0..100 {
            drop(waiters.add(number));
        }
        assert_eq!(waiters.lock().len(), 1, "the next one clears up");
    }

    #[test]
    fn no_number_is_given_twice() {
        let numbers: std::collections::HashSet<u64> = (0..1000).map(|_| number()).collect();
        assert_eq!(numbers.len(), 1000);
    }
}
