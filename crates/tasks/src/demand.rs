//! Work that is done round after round for as long as somebody wants its results, and not at all on an idle node.
//!
//! Nobody says when it wants no more results: a client that has gone just does not ask again, and its last question has
//! run out after a while. The rounds are the caller's loop, which waits for [`Demand::wanted`] before each, and says
//! when one is over.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Whoever has asked is expected to ask again within this time: a kubelet asks for statistics every 10 to 15 s.
const LEASE: Duration = Duration::from_secs(20);
/// How long somebody who asks after a pause waits for the first round. With many large layers it may take longer; until
/// it is over, the figures are those of the last one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who wants results, and whether there are any.
#[derive(Debug)]
pub struct Demand {
    asked: watch::Sender<Option<Instant>>,
    state: watch::Sender<Results>,
}

/// What whoever asks can have at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Results {
    /// Results from before the pause, or none.
    Old,
    /// Those of the rounds that go on.
    Present,
}

impl Default for Demand {
    fn default() -> Self {
        Self { asked: watch::Sender::new(None), state: watch::Sender::new(Results::Old) }
    }
}

impl Demand {
    /// Asks for results: rounds begin, or go on. After a pause, waits for the first round.
    pub async fn ask(&self) {
        self.asked.send_replace(Some(Instant::now()));
        let mut state = self.state.subscribe();
        // The sender is this object's, so only the time can end the wait early.
        drop(timeout(PATIENCE, state.wait_for(|state| *state == Results::Present)).await);
    }

    /// Waits until results are wanted: not at all if somebody has asked lately.
    pub async fn wanted(&self) {
        let mut asked = self.asked.subscribe();
        let is_wanted = |asked: &Option<Instant>| asked.is_some_and(|asked| asked.elapsed() < LEASE);
        if !is_wanted(&asked.borrow()) {
            self.state.send_replace(Results::Old);
        }
        drop(asked.wait_for(is_wanted).await);
    }

    /// Notes that a round is over.
    pub fn met(&self) {
        self.state.send_replace(Results::Present);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;

    use super::*;

    const ROUND: Duration = Duration::from_secs(10);

    /// Counts the rounds of a worker.
    fn rounds(demand: &Arc<Demand>) -> Arc<AtomicUsize> {
        let (demand, rounds) = (Arc::clone(demand), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&rounds);
        tokio::spawn(async move {
            loop {
                demand.wanted().await;
                rounds.fetch_add(1, Ordering::Relaxed);
                demand.met();
                tokio::time::sleep(ROUND).await;
            }
        });
        count
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_done_unless_somebody_asks() {
        let demand = Arc::new(Demand::default());
        let rounds = rounds(&demand);
        let count = || rounds.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(count(), 0);
        demand.ask().await;
        assert_eq!(count(), 1, "whoever asks has waited for a round");
        assert!(demand.ask().now_or_never().is_some(), "the next one has its results");
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(count(), 2, "one more round, until it is clear that nobody asks any more");
        assert!(demand.ask().now_or_never().is_none(), "the results are an hour old");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_again_and_again_never_waits_and_has_the_last_round() {
        let demand = Arc::new(Demand::default());
        let rounds = rounds(&demand);
        demand.ask().await;
        for asked in 1..5 {
            tokio::time::sleep(Duration::from_secs(14)).await;
            assert!(demand.ask().now_or_never().is_some());
            assert_eq!(rounds.load(Ordering::Relaxed), 1 + asked * 14 / 10);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_a_round_that_takes_long() {
        let demand = Demand::default();
        let begin = Instant::now();
        demand.ask().await;
        assert_eq!(begin.elapsed(), PATIENCE);
    }
}
