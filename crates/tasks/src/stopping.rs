//! The end of something that callers ask for, each with a time for it to end by itself. A caller may come again with
//! more time or with less, as the kubelet does when the grace period of a pod changes while it ends.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

/// What those who want the same thing to end share: it is told once, and the newest caller's time is that of all.
#[derive(Debug, Default)]
pub struct Stopping {
    told: OnceCell<()>,
    /// How long the newest caller waits. Each caller sends it, even if it is the same.
    patience: watch::Sender<Duration>,
    first_at: OnceLock<SystemTime>,
}

impl Stopping {
    /// Waits for an end as long as the newest caller wants it to be waited for; not at all if that is zero.
    pub async fn wait(&self, patience: Duration, end: impl Future<Output = ()>) {
        self.patience.send_replace(patience);
        self.first_at.get_or_init(SystemTime::now);
        if patience.is_zero() {
            return;
        }
        let mut newest = self.patience.subscribe();
        let is_over = async {
            loop {
                let patience = *newest.borrow_and_update();
                if timeout(patience, newest.changed()).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = end => {}
            () = is_over => {}
        }
    }

    /// When the first caller came, and how long the newest one waits; `None` if nobody wanted it to end.
    pub fn asked(&self) -> Option<(SystemTime, Duration)> {
        self.first_at.get().map(|at| (*at, *self.patience.borrow()))
    }

    /// Tells the thing to end, unless another caller has told it. `tell` returns whether it has been told.
    pub async fn tell(&self, tell: impl Future<Output = bool>) {
        let tell = async || if tell.await { Ok(()) } else { Err(()) };
        // What was not told is for the next caller to tell.
        self.told.get_or_try_init(tell).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{Instant, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// When the first of two callers that see no end gives up, and the second, who comes after a second.
    async fn give_up(first: Duration, second: Duration) -> (Duration, Duration) {
        let (stopping, start) = (Stopping::default(), Instant::now());
        let wait = async |after: Duration, patience| {
            sleep(after).await;
            stopping.wait(patience, std::future::pending()).await;
            start.elapsed()
        };
        tokio::join!(wait(Duration::ZERO, first), wait(SECOND, second))
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_callers_time_is_that_of_all() {
        for (first, second, end) in [(3, 20, 21), (20, 3, 4), (3, 3, 4)] {
            let (one, other) = give_up(first * SECOND, second * SECOND).await;
            assert_eq!((one.as_secs(), other.as_secs()), (end, end), "{first}, {second}");
        }
        let (one, other) = give_up(20 * SECOND, Duration::ZERO).await;
        assert_eq!((one.as_secs(), other), (1, SECOND));
        let (one, other) = give_up(Duration::MAX, SECOND).await;
        assert_eq!((one.as_secs(), other.as_secs()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_not_waited_beyond_and_without_time_not_begun() {
        let (stopping, start) = (Stopping::default(), Instant::now());
        assert_eq!(stopping.asked(), None);
        stopping.wait(20 * SECOND, sleep(SECOND)).await;
        assert_eq!(start.elapsed().as_secs(), 1);
        let (first_at, patience) = stopping.asked().unwrap();
        assert_eq!(patience, 20 * SECOND);
        stopping.wait(Duration::ZERO, async { unreachable!("it is not begun") }).await;
        assert_eq!(stopping.asked(), Some((first_at, Duration::ZERO)));
    }

    #[tokio::test]
    async fn it_is_told_once_unless_that_failed() {
        let (stopping, tries) = (Stopping::default(), AtomicU32::new(0));
        for told in [false, true, true] {
            stopping
                .tell(async {
                    tries.fetch_add(1, Ordering::Relaxed);
                    told
                })
                .await;
        }
        assert_eq!(tries.into_inner(), 2);
    }
}
