//! What plugins have been told about a pod or a container: each event once, and in order.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::{Mutex, MutexGuard};

/// How far a pod or a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It exists.
    Created = 0,
    /// It has stopped.
    Stopped = 1,
    /// It is gone, or about to be.
    Removed = 2,
}

/// What plugins have been told of one pod or container.
#[derive(Debug)]
pub(crate) struct Told {
    stage: AtomicU8,
    turn: Mutex<()>,
}

/// The turn of who tells something; the next one waits for its end.
#[derive(Debug)]
pub(crate) struct Turn<'a>(#[expect(dead_code, reason = "it is held")] MutexGuard<'a, ()>);

impl Told {
    /// Waits for the turn to tell of a stage; `None` if it has been told.
    pub(crate) async fn reach(&self, stage: Stage) -> Option<Turn<'_>> {
        let turn = self.turn.lock().await;
        // Before it is told: whoever looks from now on is not told by others any more.
        (self.stage.fetch_max(stage as u8, Ordering::SeqCst) < stage as u8).then_some(Turn(turn))
    }

    /// Waits for the turn to tell of something in between.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().await)
    }

    /// Notes that it has come this far, without telling anybody.
    pub(crate) fn note(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::SeqCst);
    }

    /// Whether plugins have been told that it is gone.
    pub(crate) fn is_removed(&self) -> bool {
        self.stage.load(Ordering::SeqCst) == Stage::Removed as u8
    }
}

impl Default for Told {
    fn default() -> Self {
        Self { stage: AtomicU8::new(Stage::Created as u8), turn: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_stage_is_told_once_and_none_after_a_later_one() {
        let told = Told::default();
        assert!(told.reach(Stage::Stopped).await.is_some());
        assert!(told.reach(Stage::Stopped).await.is_none());
        assert!(!told.is_removed());
        assert!(told.reach(Stage::Removed).await.is_some());
        assert!(told.is_removed());
        assert!(told.reach(Stage::Stopped).await.is_none());
        let stopped = Told::default();
        stopped.note(Stage::Stopped);
        assert!(stopped.reach(Stage::Stopped).await.is_none());
    }
}
