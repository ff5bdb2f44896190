//! Blocking work that is the same for all who need it, such as what the kernel is given once for everybody.
//!
//! A call joins the work that goes on, as in `joins`, but there is only one key, the work has a thread that may wait,
//! and a failure is remembered for a while. Success is not: whether there is still something to do is for the work to
//! find out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use wharf_types::lock::lock;
use wharf_types::{Stage as _, StageError};

use crate::crowd::CrowdLimits;
use crate::joins::Joins;
use crate::thread::Threads;

/// How long a failure counts for those who come later. It may have taken long, and so would the next.
const MEMORY: Duration = Duration::from_secs(10);

/// Work that goes on at most once at a time, in a thread of its own. Whoever wants it meanwhile waits for its end, and
/// its failure is that of all who come soon after.
#[derive(Debug)]
pub struct Single {
    threads: Threads<()>,
    calls: Joins<(), Result<(), StageError>>,
    /// When and why it last failed. Locked for moments.
    failed: Mutex<Option<(Instant, StageError)>>,
}

impl Single {
    /// Work in a thread with this name.
    #[must_use]
    pub fn new(thread: &'static str) -> Arc<Self> {
        let threads = Threads::new(thread, CrowdLimits { of_one: 1, of_all: 1 });
        Arc::new(Self { threads, calls: Joins::default(), failed: Mutex::default() })
    }

    /// Does the work, or joins who does it. `what` is that work, for people.
    ///
    /// # Errors
    /// That of the work, which may have been done for another caller, or there was no thread.
    pub async fn run(
        self: &Arc<Self>,
        what: &'static str,
        work: impl FnOnce() -> Result<(), StageError> + Send + 'static,
    ) -> Result<(), StageError> {
        if let Some(error) = self.recent_failure() {
            return Err(error);
        }
        let single = Arc::clone(self);
        let call = self.calls.share((), move || async move {
            let done = single.threads.run(&(), what, work).await;
            let result = done.stage(what).flatten();
            *lock(&single.failed) = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
            result
        });
        call.await
    }

    fn recent_failure(&self) -> Option<StageError> {
        let failed = lock(&self.failed);
        failed.as_ref().filter(|(when, _)| when.elapsed() < MEMORY).map(|(_, error)| error.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    fn failed() -> Result<(), StageError> {
        Err(StageError::at("loading", std::io::Error::from_raw_os_error(5)))
    }

    #[tokio::test(start_paused = true)]
    async fn all_share_what_is_going_on_and_its_failure_for_a_while() {
        let (single, begun) = (Single::new("single"), Arc::new(AtomicUsize::new(0)));
        let count = |result: fn() -> Result<(), StageError>| {
            let begun = Arc::clone(&begun);
            move || {
                begun.fetch_add(1, Ordering::SeqCst);
                result()
            }
        };
        let (end, until) = channel::<()>();
        let slow = count(failed);
        let first = single.run("loading", move || {
            until.recv().unwrap_err();
            slow()
        });
        let others = (0..50).map(|_| single.run("loading", count(|| Ok(()))));
        let all = futures_util::future::join(first, futures_util::future::join_all(others));
        let (all, ()) = tokio::join!(all, async { drop(end) });
        assert!(all.0.is_err() && all.1.iter().all(Result::is_err), "{all:?}");
        single.run("loading", count(|| Ok(()))).await.unwrap_err();
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        tokio::time::advance(MEMORY).await;
        for expected in [2, 3] {
            single.run("loading", count(|| Ok(()))).await.unwrap();
            assert_eq!(begun.load(Ordering::SeqCst), expected, "a success is not kept");
        }
    }
}
