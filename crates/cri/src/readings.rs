//! Responses that are read from the kernel on request: statistics on a few threads of the pool ([`Readings`]), and what
//! may be slow or stuck once for all who ask meanwhile, most of it in a thread of its own ([`Shared`]).

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, Semaphore};
use tonic::Status;
use wharf_tasks::{CrowdLimits, ThreadError, Threads, pool};

use crate::status::{self, Fault};

/// How many threads read at a time: however many callers there are, other work finds threads in the pool.
const THREADS: usize = 4;
/// How many items of a list are worth a thread.
const SHARE: usize = 16;
/// A reading that all share.
const ONE: CrowdLimits = CrowdLimits { of_one: 1, of_all: 1 };

/// The threads for statistics.
#[derive(Debug, Clone)]
pub(crate) struct Readings {
    /// Permits for threads of the pool.
    turns: Arc<Semaphore>,
    /// How many threads share the items of one list: more threads than CPUs would only wait.
    at_once: usize,
}

/// A reading that goes on at most once at a time, and that all who ask meanwhile share. It goes on if they leave: so a
/// slow one is not taken again beside itself, and a stuck one takes one thread, however often it is asked for.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    what: &'static str,
    threads: Threads<()>,
    /// The last result. Locked by a reading until it ends.
    last: Arc<Mutex<Option<Ended<T>>>>,
}

#[derive(Debug)]
struct Ended<T> {
    at: Instant,
    found: T,
}

impl Readings {
    pub(crate) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { turns: Arc::new(Semaphore::new(THREADS)), at_once: processors.min(THREADS) }
    }

    /// Reads on a thread of the pool, in turn. A reading for which nobody waits any more keeps its turn until it ends.
    pub(crate) async fn take<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read()
        });
        reading.await.map_err(|_panic| status::of(Fault::Panicked))
    }

    /// Reads each item of a list, in order; several threads share the items of a long one.
    pub(crate) async fn each<I, T>(
        &self,
        mut items: Vec<I>,
        read: impl Fn(&I) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, Status>
    where
        I: Send + 'static,
        T: Send + 'static,
    {
        let share = items.len().div_ceil(self.at_once).max(SHARE);
        let mut shares = Vec::new();
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(share));
            let (share, read) = (std::mem::replace(&mut items, rest), read.clone());
            shares.push(self.take(move || share.iter().map(read).collect::<Vec<_>>()));
        }
        Ok(futures_util::future::try_join_all(shares).await?.into_iter().flatten().collect())
    }
}

impl<T: Clone + Send + 'static> Shared<T> {
    /// `what` is the reading, for people.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, threads: Threads::new("reading", ONE), last: Arc::default() }
    }

    /// The same on a thread of the pool. The reading waits for its turn there, but needs no further thread: it is taken
    /// also where none can be started.
    pub(crate) fn on_pool(what: &'static str) -> Self {
        Self { what, threads: Threads::with_pool("reading", ONE, pool::INFO), last: Arc::default() }
    }

    /// Reads, or waits for the reading that goes on.
    pub(crate) async fn take(&self, read: impl FnOnce() -> T + Send + 'static) -> Result<T, ThreadError> {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(ended) = last.as_ref().filter(|ended| ended.at >= asked) {
            return Ok(ended.found.clone());
        }
        // The lock goes with the reading: its caller may leave.
        let read = move || {
            let found = read();
            *last = Some(Ended { at: Instant::now(), found: found.clone() });
            found
        };
        self.threads.run(&(), self.what, read).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(flavor = "multi_thread")]
    async fn only_so_many_are_read_at_once() {
        let readings = Readings::new();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let read = || {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            readings.take(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            })
        };
        futures_util::future::try_join_all((0..200).map(|_| read())).await.unwrap();
        assert!(most.load(Ordering::SeqCst) <= THREADS);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_item_of_a_list_is_read_in_its_order() {
        let readings = Readings::new();
        for length in [0, 1, SHARE, SHARE + 1, 1000] {
            let items: Vec<usize> = (0..length).collect();
            let read = readings.each(items.clone(), |item| item + 7).await.unwrap();
            assert_eq!(read, items.iter().map(|item| item + 7).collect::<Vec<_>>());
        }
        let failed = readings.each(vec![1, 0], |item| 1 / item).await;
        assert_eq!(failed.unwrap_err().code(), tonic::Code::Internal);
    }

    #[tokio::test]
    async fn a_reading_that_panics_is_an_error_and_gives_its_turn_back() {
        let readings = Readings::new();
        for _ in 0..2 * THREADS {
            let failed: Result<(), _> = readings.take(|| panic!("on purpose")).await;
            assert_eq!(failed.unwrap_err().code(), tonic::Code::Internal);
        }
        assert_eq!(readings.take(|| 7).await.unwrap(), 7);
    }

    /// A reading that ends when it is told to; the count is that of readings.
    fn slow(
        count: &Arc<AtomicUsize>,
    ) -> (std::sync::mpsc::Sender<()>, impl FnOnce() -> usize + Send + 'static) {
        let (finish, finished) = std::sync::mpsc::channel();
        let count = Arc::clone(count);
        let read = move || {
            finished.recv().unwrap();
            count.fetch_add(1, Ordering::SeqCst)
        };
        (finish, read)
    }

    #[tokio::test]
    async fn who_asks_while_a_reading_goes_on_shares_it() {
        let (shared, count) = (Shared::new("counting"), Arc::new(AtomicUsize::new(0)));
        let (finish, read) = slow(&count);
        let mut first = Box::pin(shared.take(read));
        assert!((&mut first).now_or_never().is_none());
        let mut others: Vec<_> = (0..10).map(|_| Box::pin(shared.take(|| 100))).collect();
        for other in &mut others {
            assert!(other.now_or_never().is_none(), "it waits for the one that is under way");
        }
        finish.send(()).unwrap();
        assert_eq!(first.await.unwrap(), 0);
        assert_eq!(futures_util::future::try_join_all(others).await.unwrap(), [0; 10]);
        assert_eq!(shared.take(|| 100).await.unwrap(), 100, "who asks later gets what is there now");
    }

    #[tokio::test]
    async fn a_reading_whose_caller_has_left_goes_on_and_is_shared() {
        let (shared, count) = (Shared::new("counting"), Arc::new(AtomicUsize::new(0)));
        let (finish, read) = slow(&count);
        assert!(shared.take(read).now_or_never().is_none(), "its caller leaves");
        for _ in 0..2 * THREADS {
            assert!(shared.take(|| panic!("beside itself")).now_or_never().is_none());
        }
        let mut waiting = Box::pin(shared.take(|| 100));
        assert!((&mut waiting).now_or_never().is_none());
        finish.send(()).unwrap();
        assert_eq!(waiting.await.unwrap(), 0);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_shared_reading_that_panics_is_an_error_and_the_next_is_taken() {
        let shared = Shared::new("reading");
        for _ in 0..2 {
            let failed = shared.take(|| -> u8 { panic!("on purpose") }).await.unwrap_err();
            assert_eq!(status::of(failed).code(), tonic::Code::Internal);
        }
        assert_eq!(shared.take(|| 7).await.unwrap(), 7);
    }
}
