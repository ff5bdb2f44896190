//! Joined calls: callers that want the same thing, named by a key, share one call.
//!
//! A call that changes something runs in its own task: a caller that goes away gives up only its wait, and the result
//! is kept for retries that come later ([`Joins::run`]). A call that only fetches something lives as long as anybody
//! waits for it, and the next caller begins another ([`Joins::share`]). A change may be shared only by callers that are
//! in tasks of their own, such as those of [`spawn`], and wait to the end. Which keys mean the same thing is for the
//! caller to say.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::task::JoinError;
use wharf_types::lock::lock;

use crate::carried::Carried;

/// A call; clones are the same one.
pub type Call<T> = Shared<BoxFuture<'static, T>>;

/// Calls by key.
#[derive(Debug)]
pub struct Joins<K, T: Clone>(Arc<Mutex<Calls<K, T>>>);

#[derive(Debug)]
struct Calls<K, T: Clone> {
    by_key: HashMap<K, Entry<T>>,
    /// How many calls have been begun.
    serial: u64,
}

/// A call that has its key.
#[derive(Debug)]
struct Entry<T: Clone> {
    serial: u64,
    life: Life<T>,
}

/// How long a call can be joined.
#[derive(Debug)]
enum Life<T: Clone> {
    /// Until its key is freed.
    Kept(Call<T>),
    /// As long as anybody waits for it.
    WhileWaited(WeakShared<BoxFuture<'static, T>>),
}

impl<K, T: Clone> Default for Joins<K, T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Calls { by_key: HashMap::new(), serial: 0 })))
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Joins<K, T> {
    fn calls(&self) -> MutexGuard<'_, Calls<K, T>> {
        lock(&self.0)
    }

    /// Joins the call with this key, or begins one, which gets a place that frees the key when it is dropped.
    fn join(&self, key: K, begin: impl FnOnce(Place<K, T>) -> (Call<T>, Option<Life<T>>)) -> Call<T> {
        let mut calls = self.calls();
        let in_flight = calls.by_key.get(&key).and_then(|entry| match &entry.life {
            Life::Kept(call) => Some(call.clone()),
            Life::WhileWaited(call) => call.upgrade(),
        });
        if let Some(call) = in_flight {
            return call;
        }
        calls.serial += 1;
        let serial = calls.serial;
        let (call, life) = begin(Place { calls: Arc::clone(&self.0), key: Some(key.clone()), serial });
        if let Some(life) = life {
            calls.by_key.insert(key, Entry { serial, life });
        }
        call
    }

    /// How many calls go on.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        // Each has a place.
        Arc::strong_count(&self.0) - 1
    }

    /// Frees a key: the next call with it is a new one.
    pub fn free(&self, key: &K) {
        self.calls().by_key.remove(key);
    }
}

impl<K: Hash + Eq + Clone + Send + 'static, T: Clone + Send + Sync + 'static> Joins<K, T> {
    /// Joins the call with this key that others wait for, or begins one. It ends with its work, or when nobody waits
    /// for it any more; its key is free from then on.
    pub fn share<F>(&self, key: K, work: impl FnOnce() -> F) -> Call<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.join(key, |place| {
            let work = work();
            let call = async move {
                let _place = place;
                work.await
            };
            let call = Carried::on(call).boxed().shared();
            // A future that has never been polled can always be downgraded.
            let life = call.downgrade().map(Life::WhileWaited);
            (call, life)
        })
    }
}

impl<K, T, E> Joins<K, Result<T, E>>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Clone + From<JoinError> + Send + Sync + 'static,
{
    /// Runs `work` in its own task, unless a call with this key is running or has succeeded. Dropping the returned
    /// future gives up only the wait. A failed call frees its key, even if nobody waits for it any more; a successful
    /// one keeps it until [`Joins::free`].
    ///
    /// # Errors
    /// That of the work, or its panic.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let call = self.join(key, |place| {
            let work = work();
            let task = tokio::spawn(Carried::on(async move {
                let result = work.await;
                if result.is_ok() {
                    place.keep();
                }
                result
            }));
            let call = task.map(|ended| ended?).boxed().shared();
            (call.clone(), Some(Life::Kept(call)))
        });
        call.await
    }

    /// Keeps the result of an earlier daemon's call.
    pub fn remember(&self, key: K, result: T) {
        let life = Life::Kept(std::future::ready(Ok(result)).boxed().shared());
        let mut calls = self.calls();
        calls.serial += 1;
        let serial = calls.serial;
        calls.by_key.insert(key, Entry { serial, life });
    }
}

/// The place of a call, which frees its key however the call ends.
struct Place<K: Hash + Eq, T: Clone> {
    calls: Arc<Mutex<Calls<K, T>>>,
    key: Option<K>,
    serial: u64,
}

impl<K: Hash + Eq, T: Clone> Place<K, T> {
    /// Leaves the key with the call.
    fn keep(mut self) {
        self.key = None;
    }
}

impl<K: Hash + Eq, T: Clone> Drop for Place<K, T> {
    fn drop(&mut self) {
        let Some(key) = &self.key else { return };
        let mut calls = lock(&self.calls);
        // The key may already belong to a successor.
        if calls.by_key.get(key).is_some_and(|entry| entry.serial == self.serial) {
            calls.by_key.remove(key);
        }
    }
}

/// Runs a change in its own task, so that a caller that goes away does not leave it half done.
///
/// # Errors
/// That of the work, or its panic.
pub async fn spawn<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<JoinError> + Send + 'static,
{
    tokio::spawn(Carried::on(work)).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::oneshot;

    /// Why a call failed.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Failed {
        Refused,
        Panicked,
    }

    impl From<JoinError> for Failed {
        fn from(_error: JoinError) -> Self {
            Self::Panicked
        }
    }

    type Tasks = Joins<u8, Result<u32, Failed>>;

    #[tokio::test]
    async fn a_retry_joins_and_a_failure_frees() {
        let (joins, runs) = (Tasks::default(), Arc::new(AtomicU32::new(0)));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::task::yield_now().await;
                Ok(runs.fetch_add(1, Ordering::Relaxed))
            }
        };
        let (one, other) = tokio::join!(joins.run(1, work), joins.run(1, work));
        assert_eq!((one, other), (Ok(0), Ok(0)));
        assert_eq!(joins.run(1, work).await, Ok(0), "the late result");
        joins.free(&1);
        assert_eq!(joins.run(1, work).await, Ok(1));
        assert_eq!(joins.run(2, || async { Err(Failed::Refused) }).await, Err(Failed::Refused));
        assert_eq!(joins.run(2, work).await, Ok(2), "a failure frees the key");
    }

    #[tokio::test]
    async fn a_panic_fails_the_call_and_frees_its_key() {
        let joins = Tasks::default();
        let panics = || async { panic!("it breaks off") };
        let (one, other) = tokio::join!(joins.run(1, panics), joins.run(1, panics));
        assert_eq!((one, other), (Err(Failed::Panicked), Err(Failed::Panicked)));
        assert_eq!(joins.run(1, || async { Ok(8) }).await, Ok(8));
        assert_eq!(spawn::<u32, Failed>(async { panic!("it breaks off") }).await, Err(Failed::Panicked));
    }

    #[tokio::test]
    async fn a_cancelled_wait_does_not_end_the_work() {
        let joins = Tasks::default();
        let (sender, receiver) = oneshot::channel::<()>();
        let wait = joins.run(1, || async move {
            receiver.await.map_err(|_gone| Failed::Refused)?;
            Ok(7)
        });
        assert!(wait.now_or_never().is_none());
        sender.send(()).unwrap();
        assert_eq!(joins.run(1, || async { Ok(8) }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_failure_frees_its_key_when_nobody_waits_for_it() {
        let joins = Tasks::default();
        let (sender, receiver) = oneshot::channel::<()>();
        let wait = joins.run(1, || async move {
            drop(receiver.await);
            Err(Failed::Refused)
        });
        assert!(wait.now_or_never().is_none());
        assert_eq!(joins.in_flight(), 1);
        sender.send(()).unwrap();
        let freed = async {
            while !joins.calls().by_key.is_empty() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), freed).await.expect("the key is free");
        assert_eq!(joins.run(1, || async { Ok(8) }).await, Ok(8));
        assert_eq!(joins.in_flight(), 0, "one whose result is kept is over");
    }

    #[tokio::test]
    async fn what_an_earlier_daemon_did_is_not_done_again() {
        let joins = Tasks::default();
        joins.remember(1, 7);
        assert_eq!(joins.run(1, || async { Ok(8) }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_failed_call_leaves_the_key_to_its_successor() {
        let joins = Tasks::default();
        let (sender, receiver) = oneshot::channel::<()>();
        let failing = joins.run(1, || async move {
            drop(receiver.await);
            Err(Failed::Refused)
        });
        let mut failing = Box::pin(failing);
        assert!(failing.as_mut().now_or_never().is_none());
        joins.free(&1);
        joins.remember(1, 7);
        sender.send(()).unwrap();
        assert_eq!(failing.await, Err(Failed::Refused));
        assert_eq!(joins.run(1, || async { Ok(8) }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_shared_call_ends_with_the_last_who_waits() {
        let joins = Joins::<u8, u32>::default();
        let held = Arc::new(());
        let work = || {
            let held = Arc::clone(&held);
            async move {
                tokio::task::yield_now().await;
                let _held = held;
                7
            }
        };
        let (one, other) = (joins.share(1, work), joins.share(1, work));
        assert!(one.ptr_eq(&other));
        drop(one);
        assert!(!joins.calls().by_key.is_empty(), "one still waits");
        drop(other);
        assert_eq!(Arc::strong_count(&held), 1, "nobody waits: it has ended");
        assert!(joins.calls().by_key.is_empty(), "a key may hold a password");
    }

    #[tokio::test]
    async fn a_shared_result_is_for_those_who_waited() {
        let (joins, runs) = (Joins::<u8, u32>::default(), AtomicU32::new(0));
        let work = || std::future::ready(runs.fetch_add(1, Ordering::Relaxed));
        let (one, other) = (joins.share(1, work), joins.share(1, work));
        assert_eq!((one.clone().await, other.await), (0, 0));
        assert_eq!(joins.share(1, work).await, 1, "who comes later gets what is there now");
        assert_eq!(one.await, 0);
    }
}
