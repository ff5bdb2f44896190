//! Joined calls: a retry with the same key waits for the call in flight, or gets its result later.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::error::{Error, outcome};
use crate::lock::Mutex;

type Call<T> = Shared<BoxFuture<'static, Result<T, Error>>>;

/// Calls by key. A failed call frees its key even if nobody waits for it any more; a successful one keeps it until
/// [`Joins::free`].
#[derive(Debug)]
pub(crate) struct Joins<K, T: Clone>(Arc<Mutex<HashMap<K, Call<T>>>>);

impl<K: Hash + Eq + Clone + Send + Sync + 'static, T: Clone + Send + Sync + 'static> Joins<K, T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<K, Call<T>>> {
        self.0.lock()
    }

    /// Runs `work` in its own task, unless a call with this key is running or has succeeded. Dropping the returned
    /// future cancels only the wait.
    pub(crate) async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let call = {
            let mut calls = self.calls();
            calls.entry(key.clone()).or_insert_with(|| self.begin(key.clone(), work())).clone()
        };
        self.settle(&key, call).await
    }

    fn begin(&self, key: K, work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Call<T> {
        let call = tokio::spawn(work).map(|ended| outcome("the call's task", ended)).boxed().shared();
        let (joins, begun) = (Self(Arc::clone(&self.0)), call.clone());
        // A caller that goes away does not return to free the key.
        tokio::spawn(async move { joins.settle(&key, begun).await.map(drop) });
        call
    }

    /// Waits for a call, and frees its key if it failed.
    async fn settle(&self, key: &K, call: Call<T>) -> Result<T, Error> {
        let result = call.clone().await;
        if result.is_err() {
            let mut calls = self.calls();
            if calls.get(key).is_some_and(|current| current.ptr_eq(&call)) {
                calls.remove(key);
            }
        }
        result
    }

    /// Remembers the result of an earlier daemon's call.
    pub(crate) fn remember(&self, key: K, result: T) {
        let call: Call<T> = std::future::ready(Ok(result)).boxed().shared();
        self.calls().insert(key, call);
    }

    /// Frees a key: the next call with it is a new one.
    pub(crate) fn free(&self, key: &K) {
        self.calls().remove(key);
    }
}

/// Runs a change in its own task, so that a caller that goes away does not leave it half done.
pub(crate) async fn spawn<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    outcome("the call's task", tokio::spawn(work).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_retry_joins_and_a_failure_frees() {
        let joins = Arc::new(Joins::<u8, u32>::new());
        let runs = Arc::new(AtomicU32::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::task::yield_now().await;
                Ok(runs.fetch_add(1, Ordering::Relaxed))
            }
        };
        let (one, other) = tokio::join!(joins.run(1, work), joins.run(1, work));
        assert_eq!((one.unwrap(), other.unwrap()), (0, 0));
        assert_eq!(joins.run(1, work).await.unwrap(), 0, "the late result");
        joins.free(&1);
        assert_eq!(joins.run(1, work).await.unwrap(), 1);
        let failing = || async { Err(Error::invalid("x", "no")) };
        assert!(joins.run(2, failing).await.is_err());
        assert_eq!(joins.run(2, work).await.unwrap(), 2, "a failure frees the key");
    }

    #[tokio::test]
    async fn a_cancelled_wait_does_not_end_the_work() {
        let joins = Joins::<u8, u32>::new();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let wait = joins.run(1, || async move {
            receiver.await.map_err(|_gone| Error::invalid("x", "gone"))?;
            Ok(7)
        });
        assert!(futures_util::FutureExt::now_or_never(wait).is_none());
        sender.send(()).unwrap();
        let again = joins.run(1, || async { Ok(8) });
        assert_eq!(again.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_failure_frees_its_key_when_nobody_waits_for_it() {
        let joins = Joins::<u8, u32>::new();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let wait = joins.run(1, || async move {
            drop(receiver.await);
            Err(Error::invalid("x", "no"))
        });
        assert!(futures_util::FutureExt::now_or_never(wait).is_none());
        sender.send(()).unwrap();
        let freed = async {
            while !joins.calls().is_empty() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), freed).await.expect("the key is free");
        assert_eq!(joins.run(1, || async { Ok(8) }).await.unwrap(), 8);
    }
}
