//! How long each stage took by which a pod or a container was made, for people who wonder. It is kept in memory alone: a
//! daemon knows nothing of what an earlier one made.

use std::time::{Duration, Instant};

use crate::lock::Mutex;

/// One stage, as part of a making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// What was done.
    pub name: &'static str,
    /// When it began, after the first stage of the same pod or container.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
}

/// The stages of one making, in the order in which they ended. A container that is started twice is another one, so there are
/// never more than the code has.
#[derive(Debug, Default)]
pub(crate) struct Stages(Mutex<Vec<(&'static str, Instant, Duration)>>);

impl Stages {
    /// Does the work of a stage.
    pub(crate) fn time<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        self.add(name, begin);
        done
    }

    /// Waits for the work of a stage.
    pub(crate) async fn time_async<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = work.await;
        self.add(name, begin);
        done
    }

    fn add(&self, name: &'static str, begin: Instant) {
        self.0.lock().push((name, begin, begin.elapsed()));
    }

    /// All that have ended, the earliest first.
    pub(crate) fn all(&self) -> Vec<Stage> {
        let mut all = self.0.lock().clone();
        all.sort_by_key(|(_, begin, _)| *begin);
        let first = all.first().map(|(_, begin, _)| *begin);
        let began = |begin: Instant| first.map_or(Duration::ZERO, |first| begin - first);
        all.into_iter().map(|(name, begin, took)| Stage { name, began: began(begin), took }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_the_order_in_which_they_began() {
        let stages = Stages::default();
        assert_eq!(stages.all(), []);
        let seen = stages.time("outer", || stages.time("inner", || 7));
        let all = stages.all();
        assert_eq!((seen, all[0].name, all[1].name), (7, "outer", "inner"));
        assert_eq!(all[0].began, Duration::ZERO);
        assert!(all[1].began + all[1].took <= all[0].took, "{all:?}");
    }
}
