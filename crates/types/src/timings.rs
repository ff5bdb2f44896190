//! How long each stage of something took, for people. It is kept in memory only, so a daemon does not know the times of
//! an earlier one. The trace of whoever did the work, if there is one, is told of each.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::trace;

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// What was done.
    pub name: &'static str,
    /// When it began, after the first stage.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
}

/// The stages in the order in which they ended. Each is timed once, so there are no more of them than the code names.
#[derive(Debug, Default)]
pub struct Timings(Mutex<Vec<(&'static str, Instant, Duration)>>);

impl Timings {
    /// Does the work of a stage.
    pub fn time<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        self.note(name, begin, begin.elapsed());
        done
    }

    /// Waits for the work of a stage.
    pub async fn time_async<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = work.await;
        self.note(name, begin, begin.elapsed());
        done
    }

    /// Notes a stage that was timed elsewhere.
    pub fn note(&self, name: &'static str, began: Instant, took: Duration) {
        lock(&self.0).push((name, began, took));
        trace::stage(name, began, took);
    }

    /// All that have ended, the earliest first.
    #[must_use]
    pub fn all(&self) -> Vec<Timing> {
        let mut all = lock(&self.0).clone();
        all.sort_by_key(|(_, begin, _)| *begin);
        let first = all.first().map(|(_, begin, _)| *begin);
        let began = |begin: Instant| first.map_or(Duration::ZERO, |first| begin - first);
        all.into_iter().map(|(name, begin, took)| Timing { name, began: began(begin), took }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_the_order_in_which_they_began() {
        let stages = Timings::default();
        assert_eq!(stages.all(), []);
        let seen = stages.time("outer", || stages.time("inner", || 7));
        let all = stages.all();
        assert_eq!((seen, all[0].name, all[1].name), (7, "outer", "inner"));
        assert_eq!(all[0].began, Duration::ZERO);
        assert!(all[1].began + all[1].took <= all[0].took, "{all:?}");
    }
}
