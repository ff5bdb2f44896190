//! Blocking work that may take minutes, or that changes what is a thread's own, such as its namespaces. It gets a
//! thread of its own: the pool for blocking work is small, and everything else needs it. Work that merely might get
//! stuck uses a few threads of the pool first.

use std::borrow::Cow;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use wharf_types::{ErrorKind, Failure, failure};

use crate::crowd::{Crowd, CrowdLimits, Crowded, Member};

/// How long work waits for other work: within the two minutes for which the kubelet waits for a call.
const PATIENCE: Duration = Duration::from_secs(90);

/// After how long work that may be stuck is logged.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Threads for work of one kind: so many at a time for each key, and for all.
#[derive(Debug)]
pub struct Threads<K: Eq + Hash + Clone> {
    name: &'static str,
    working: Crowd<K>,
    ended: Arc<Notify>,
    /// Threads of the pool that this work may have, because one that begins costs time.
    pooled: Arc<Semaphore>,
    pooled_limit: usize,
}

/// Why work was not done in a thread.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// There were too many all the time.
    #[error("{what}: no thread was free within {} s: {}", PATIENCE.as_secs(), others(*.crowded))]
    Busy {
        /// The work.
        what: Cow<'static, str>,
        /// Of which there are too many.
        crowded: Crowded,
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
            Self::Busy { .. } => ErrorKind::Unavailable,
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

/// A place among those that work, as long as this exists.
struct Place<K: Eq + Hash + Clone> {
    member: Option<Member<K>>,
    ended: Arc<Notify>,
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        self.member = None;
        self.ended.notify_waiters();
    }
}

impl<K: Eq + Hash + Clone + Debug + Send + 'static> Threads<K> {
    /// Threads with this name for people. Whoever finds too many of them at work waits.
    #[must_use]
    pub fn new(name: &'static str, limits: CrowdLimits) -> Self {
        Self::with_pool(name, limits, 0)
    }

    /// The same for work that changes nothing of its thread: so much of it at a time is done on the pool.
    #[must_use]
    pub fn with_pool(name: &'static str, limits: CrowdLimits, pooled: usize) -> Self {
        let (pooled, pooled_limit) = (Arc::new(Semaphore::new(pooled)), pooled);
        Self { name, working: Crowd::new(limits), ended: Arc::default(), pooled, pooled_limit }
    }

    /// How much of it is on the pool.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.pooled_limit.saturating_sub(self.pooled.available_permits())
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
        let place = match self.enter(key).await {
            Ok(place) => place,
            Err(crowded) => return Err(ThreadError::Busy { what, crowded }),
        };
        let work = move || {
            let result = work();
            drop(place);
            result
        };
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
        if self.pooled_limit == 0 {
            return work.await;
        }
        if let Ok(done) = timeout(TELL_AFTER, &mut work).await {
            return done;
        }
        tracing::warn!(
            ?key,
            what,
            "this takes long: if it goes on, wharf doctor shows whether a disk or a directory does not respond"
        );
        work.await
    }

    async fn enter(&self, key: &K) -> Result<Place<K>, Crowded> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.ended.notified();
            let crowded = match self.working.enter(key) {
                Ok(member) => {
                    return Ok(Place { member: Some(member), ended: Arc::clone(&self.ended) });
                }
                Err(crowded) => crowded,
            };
            if timeout_at(deadline, ended).await.is_err() {
                return Err(crowded);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

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
