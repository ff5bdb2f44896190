//! Blocking work that may take minutes, or that changes what is a thread's own, such as its namespaces. It gets a
//! thread of its own: the pool for blocking work is small, and everything else needs it. Work that merely might get
//! stuck uses a few threads of the pool first.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use wharf_types::lock::lock;
use wharf_types::{ErrorKind, Failure, Traced, failure};

use crate::crowd::{CrowdLimits, Crowded};

/// How long work waits for other work, unless its kind says otherwise: within the two minutes for which the kubelet
/// waits for a call.
const PATIENCE: Duration = Duration::from_secs(90);

/// After how long work that may be stuck is logged.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Where to look if work is stuck, unless its kind says otherwise.
const DISK: &str = "wharf doctor shows whether a disk or a directory does not respond";

/// Threads for work of one kind: so many at a time for each key, and for all.
#[derive(Debug)]
pub struct Threads<K: Eq + Hash + Clone> {
    name: &'static str,
    limits: CrowdLimits,
    /// The places of each key, as long as somebody has one or waits for one.
    of_each: Mutex<HashMap<K, Weak<Semaphore>>>,
    of_all: Arc<Semaphore>,
    /// Threads of the pool that this work may have, because one that begins costs time.
    pooled: Arc<Semaphore>,
    pooled_limit: usize,
    /// What people can do if it takes long; `None` for work of a kind that may.
    advice: Option<&'static str>,
    patience: Duration,
}

/// Why work was not done in a thread.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// There were too many all the time.
    #[error("{what}: no thread was free within {} s: {}", patience.as_secs(), others(*.crowded))]
    Busy {
        /// The work.
        what: Cow<'static, str>,
        /// How long it waited.
        patience: Duration,
        /// Of which there are too many.
        crowded: Crowded,
    },
    /// It has begun, and has no end.
    #[error("{what}: no result within {} s: {advice}", patience.as_secs())]
    Stuck {
        /// The work.
        what: Cow<'static, str>,
        /// How long its caller waited.
        patience: Duration,
        /// Where to look.
        advice: &'static str,
    },
    /// The kernel has no more threads.
    #[error("{what}: no thread can be started: {}", failure::PROCESSES)]
    NoRoom {
        /// The work.
        what: Cow<'static, str>,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The work panicked.
    #[error("{what}: its thread failed")]
    Thread {
        /// The work.
        what: Cow<'static, str>,
        /// Why there is none.
        source: std::io::Error,
    },
}

impl Failure for ThreadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } | Self::Stuck { .. } => ErrorKind::Unavailable,
            Self::NoRoom { source, .. } | Self::Thread { source, .. } => Failure::kind(source),
        }
    }
}

fn others(crowded: Crowded) -> String {
    match crowded {
        Crowded::One(count) => format!("{count} for the same one are at work"),
        Crowded::All(count) => format!("{count} for others are at work"),
    }
}

/// A place among those that work, as long as this exists. The next in line gets it when it is dropped.
struct Place {
    _of_one: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// So many places; a semaphore refuses absurd numbers.
fn places(limit: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)))
}

/// One of these places, first come, first served; `None` if there is none in time.
async fn take(places: Arc<Semaphore>, deadline: Instant) -> Option<OwnedSemaphorePermit> {
    timeout_at(deadline, places.acquire_owned()).await.ok()?.ok()
}

impl<K: Eq + Hash + Clone + Debug + Send + 'static> Threads<K> {
    /// Threads with this name for people. Whoever finds too many of them at work waits.
    #[must_use]
    pub fn new(name: &'static str, limits: CrowdLimits) -> Self {
        Self { advice: None, ..Self::with_pool(name, limits, 0) }
    }

    /// The same for work that changes nothing of its thread, and merely might get stuck on a disk: so much of it at a
    /// time is done on the pool. If it takes long, it is logged.
    #[must_use]
    pub fn with_pool(name: &'static str, limits: CrowdLimits, pooled: usize) -> Self {
        Self {
            name,
            limits,
            of_each: Mutex::default(),
            of_all: places(limits.of_all),
            pooled: places(pooled),
            pooled_limit: pooled,
            advice: Some(DISK),
            patience: PATIENCE,
        }
    }

    /// The same for work that waits for something else than a disk: what is so if it takes long, for people.
    #[must_use]
    pub fn advising(self, advice: &'static str) -> Self {
        Self { advice: Some(advice), ..self }
    }

    /// The same for work that is worth waiting so long for its turn.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// How much of it is on the pool.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.pooled_limit.saturating_sub(self.pooled.available_permits())
    }

    /// Does work in a thread as [`Threads::run`] does, but gives up the wait if it takes too long. The work goes on and
    /// has its place until it ends, so that it can be stuck only as often as it has places.
    ///
    /// # Errors
    /// [`ThreadError`].
    pub async fn run_in_time<T: Send + 'static>(
        &self,
        key: &K,
        what: impl Into<Cow<'static, str>>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        let (what, deadline) = (what.into(), Instant::now() + self.patience);
        let place = self.enter(key, what.clone(), deadline).await?;
        let done = timeout_at(deadline, self.work(place, (key, what.clone()), work)).await;
        let (patience, advice) = (self.patience, self.advice.unwrap_or(DISK));
        done.unwrap_or(Err(ThreadError::Stuck { what, patience, advice }))
    }

    /// Does work in a thread; `what` is that work, for people.
    ///
    /// # Errors
    /// [`ThreadError`].
    pub async fn run<T: Send + 'static>(
        &self,
        key: &K,
        what: impl Into<Cow<'static, str>>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        let what = what.into();
        let place = self.enter(key, what.clone(), Instant::now() + self.patience).await?;
        self.work(place, (key, what), work).await
    }

    async fn work<T: Send + 'static>(
        &self,
        place: Place,
        (key, what): (&K, Cow<'static, str>),
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        let work = Traced::here().carry(move || {
            let result = work();
            drop(place);
            result
        });
        if let Ok(turn) = Arc::clone(&self.pooled).try_acquire_owned() {
            let pooled = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            let ended = self.told_of((key, &what), pooled).await;
            return ended.map_err(|ended| ThreadError::Thread { what, source: std::io::Error::other(ended) });
        }
        let (done, waiting) = oneshot::channel();
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let _runtime = runtime.enter();
            drop(done.send(work()));
        };
        if let Err(source) = thread.spawn(work) {
            return Err(ThreadError::NoRoom { what, source });
        }
        let panicked = || std::io::Error::other(format!("the thread {} panicked", self.name));
        let ended = self.told_of((key, &what), waiting).await;
        ended.map_err(|_gone| ThreadError::Thread { what, source: panicked() })
    }

    /// Waits for work, and logs it once if it takes long and is of a kind that merely might get stuck.
    async fn told_of<T>(&self, (key, what): (&K, &str), work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let Some(advice) = self.advice else { return work.await };
        if let Ok(done) = timeout(TELL_AFTER, &mut work).await {
            return done;
        }
        tracing::warn!(?key, what, "this takes long: if it goes on, {advice}");
        work.await
    }

    /// The places of a key.
    fn of_one(&self, key: &K) -> Arc<Semaphore> {
        let mut of_each = lock(&self.of_each);
        if let Some(places) = of_each.get(key).and_then(Weak::upgrade) {
            return places;
        }
        of_each.retain(|_, places| places.strong_count() > 0);
        let places = places(self.limits.of_one);
        of_each.insert(key.clone(), Arc::downgrade(&places));
        places
    }

    /// Waits for a place among those of the key, and then among all: who has waited longest is next.
    async fn enter(&self, key: &K, what: Cow<'static, str>, deadline: Instant) -> Result<Place, ThreadError> {
        let (CrowdLimits { of_one, of_all }, what) = (self.limits, &what);
        let busy =
            |crowded| move || ThreadError::Busy { what: what.clone(), patience: self.patience, crowded };
        let all = Crowded::All(of_all);
        // If one key may have all, these may be anybody's.
        let same = if of_one < of_all { Crowded::One(of_one) } else { all };
        let of_one = take(self.of_one(key), deadline).await.ok_or_else(busy(same))?;
        let of_all = take(Arc::clone(&self.of_all), deadline).await.ok_or_else(busy(all))?;
        Ok(Place { _of_one: of_one, _of_all: of_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    use futures_util::FutureExt as _;

    fn threads(of_one: usize, of_all: usize) -> Arc<Threads<char>> {
        Arc::new(Threads::new("apart", CrowdLimits { of_one, of_all }))
    }

    fn what() -> String {
        "work".to_owned()
    }

    /// Work that has begun, and does not end by itself.
    struct Hanging {
        end: Sender<()>,
        done: tokio::task::JoinHandle<()>,
    }

    impl Hanging {
        async fn end(self) {
            drop(self.end);
            self.done.await.unwrap();
        }
    }

    async fn hang(threads: &Arc<Threads<char>>, key: char) -> Hanging {
        let (end, until) = channel();
        let (began, begun) = oneshot::channel();
        let threads = Arc::clone(threads);
        let done = tokio::spawn(async move {
            let work = move || {
                began.send(()).unwrap();
                until.recv().unwrap_err();
            };
            threads.run(&key, what(), work).await.unwrap();
        });
        begun.await.unwrap();
        Hanging { end, done }
    }

    #[tokio::test]
    async fn work_has_a_thread_of_its_own_and_a_panic_is_told() {
        let threads = threads(1, 1);
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(threads.run(&'a', what(), name).await.unwrap(), Some("apart".to_owned()));
        let panicked = threads.run(&'a', what(), || -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(wharf_types::chain(&panicked), "work: its thread failed: the thread apart panicked");
        threads.run(&'a', what(), || ()).await.unwrap();
    }

    #[tokio::test]
    async fn little_of_it_is_done_on_the_pool() {
        let limits = CrowdLimits { of_one: 9, of_all: 9 };
        let threads = Arc::new(Threads::with_pool("apart", limits, 1));
        let is_apart = || std::thread::current().name() == Some("apart");
        assert!(!threads.run(&'a', "work", is_apart).await.unwrap());
        let stuck = hang(&threads, 'a').await;
        assert_eq!(threads.pooled(), 1);
        assert!(threads.run(&'b', "work", is_apart).await.unwrap());
        stuck.end().await;
        let panicked = threads.run(&'a', "work", || -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert!(format!("{panicked:?}").contains("on purpose"), "{panicked:?}");
        assert!(!threads.run(&'a', "work", is_apart).await.unwrap());
    }

    #[tokio::test]
    async fn who_has_waited_longest_is_next() {
        for (of_one, of_all) in [(1, 9), (9, 1)] {
            let threads = threads(of_one, of_all);
            let stuck = hang(&threads, 'a').await;
            let (order, done) = channel();
            let late = |number: u8| {
                let order = order.clone();
                Box::pin(threads.run(&'a', "work", move || order.send(number).unwrap()))
            };
            let mut waiting: Vec<_> = (1..5).map(late).collect();
            assert!(waiting.iter_mut().all(|work| work.now_or_never().is_none()));
            stuck.end().await;
            let mut newcomer = late(5);
            assert!((&mut newcomer).now_or_never().is_none(), "it is not its turn");
            // Whoever is asked first has not waited longest.
            waiting.reverse();
            let (last, others) = tokio::join!(newcomer, futures_util::future::join_all(waiting));
            assert!(last.is_ok() && others.iter().all(Result::is_ok));
            assert_eq!(done.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
            assert_eq!(lock(&threads.of_each).len(), 1, "one key");
            threads.run(&'b', "work", || ()).await.unwrap();
            assert!(!lock(&threads.of_each).contains_key(&'a'), "who has no work is forgotten");
        }
    }

    #[tokio::test]
    async fn what_gets_stuck_is_given_up_in_time_and_keeps_its_place() {
        let limits = CrowdLimits { of_one: 1, of_all: 1 };
        let disk = Threads::with_pool("disk", limits, 0);
        for (threads, advice) in
            [(disk, DISK), (Threads::with_pool("names", limits, 0).advising("ask them"), "ask them")]
        {
            let (end, until) = channel::<()>();
            tokio::time::pause();
            let begin = Instant::now();
            let stuck =
                threads.run_in_time(&'a', "reading", move || until.recv().unwrap_err()).await.unwrap_err();
            assert_eq!(
                (begin.elapsed().as_secs(), stuck.kind()),
                (PATIENCE.as_secs(), ErrorKind::Unavailable)
            );
            assert_eq!(stuck.to_string(), format!("reading: no result within 90 s: {advice}"));
            let next = threads.run_in_time(&'a', "reading", || ()).await.unwrap_err();
            let others = "reading: no thread was free within 90 s: 1 for others are at work";
            assert_eq!(next.to_string(), others, "what has not begun is not stuck");
            tokio::time::resume();
            drop(end);
            threads.run_in_time(&'a', "reading", || ()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_places_of_one_key_are_told_of_only_if_others_have_more() {
        for (of_one, of_all, told) in [(1, 2, "1 for the same one"), (1, 1, "1 for others")] {
            let threads = threads(of_one, of_all);
            let stuck = hang(&threads, 'a').await;
            tokio::time::pause();
            let late = threads.run(&'a', "loading", || ()).await.unwrap_err();
            let told = format!("loading: no thread was free within 90 s: {told} are at work");
            assert_eq!(late.to_string(), told);
            tokio::time::resume();
            stuck.end().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_holds_up_its_own_kind_for_so_long() {
        let threads = threads(2, 3);
        let [first, second] = [hang(&threads, 'a').await, hang(&threads, 'a').await];
        let begin = Instant::now();
        let late = threads.run(&'a', what(), || ()).await.unwrap_err();
        assert_eq!((begin.elapsed(), late.kind()), (PATIENCE, ErrorKind::Unavailable));
        assert_eq!(late.to_string(), "work: no thread was free within 90 s: 2 for the same one are at work");
        threads.run(&'b', what(), || ()).await.unwrap();
        let last = hang(&threads, 'b').await;
        let late = threads.run(&'c', what(), || ()).await.unwrap_err();
        assert!(late.to_string().ends_with("3 for others are at work"), "{late}");
        last.end().await;
        threads.run(&'c', what(), || ()).await.unwrap();
        first.end().await;
        threads.run(&'a', what(), || ()).await.unwrap();
        second.end().await;
    }
}
