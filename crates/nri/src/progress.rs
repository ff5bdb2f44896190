//! Which events plugins have been sent about a pod or a container: each once, and in order.

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

/// The events that were sent about one pod or container.
#[derive(Debug)]
pub(crate) struct Progress {
    stage: AtomicU8,
    /// Held while an event is sent, responses included, so that the next one comes after it.
    turn: Mutex<()>,
}

/// The turn to send an event; the next one waits for its end.
#[derive(Debug)]
pub(crate) struct Turn<'a>(#[expect(dead_code, reason = "it is held")] MutexGuard<'a, ()>);

impl Progress {
    /// Waits for the turn to send the event of a stage; `None` if it has been sent.
    pub(crate) async fn reach(&self, stage: Stage) -> Option<Turn<'_>> {
        let turn = self.turn.lock().await;
        // Before it is sent, so that no other caller sends it, too.
        (self.stage.fetch_max(stage as u8, Ordering::SeqCst) < stage as u8).then_some(Turn(turn))
    }

    /// Waits for the turn to send an event between two stages.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().await)
    }

    /// Notes the stage without sending an event.
    pub(crate) fn note(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::SeqCst);
    }

    /// Whether plugins have been told that it is gone.
    pub(crate) fn is_removed(&self) -> bool {
        self.stage.load(Ordering::SeqCst) == Stage::Removed as u8
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self { stage: AtomicU8::new(Stage::Created as u8), turn: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_stage_is_told_once_and_none_after_a_later_one() {
        let progress = Progress::default();
        assert!(progress.reach(Stage::Stopped).await.is_some());
        assert!(progress.reach(Stage::Stopped).await.is_none());
        assert!(!progress.is_removed());
        assert!(progress.reach(Stage::Removed).await.is_some());
        assert!(progress.is_removed());
        assert!(progress.reach(Stage::Stopped).await.is_none());
        let stopped = Progress::default();
        stopped.note(Stage::Stopped);
        assert!(stopped.reach(Stage::Stopped).await.is_none());
    }
}
