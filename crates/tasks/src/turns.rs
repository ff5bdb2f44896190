//! Turns to make and to unmake something that may hang, each with a thread of a bounded pool, which everything else
//! needs, too.

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Who may make something, or unmake it.
#[derive(Debug)]
pub struct Turns {
    /// Apart from the other, because what is being made may hang, and what is unmade frees what the next needs.
    making: Semaphore,
    unmaking: Semaphore,
    at_once: usize,
    /// Notified when something has been unmade.
    unmade: Notify,
}

/// Until it is dropped; nobody waits for one that was never taken.
pub type Turn<'a> = Option<SemaphorePermit<'a>>;

impl Turns {
    /// Turns for this many to make something at a time, and as many to unmake it.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        let turns = || Semaphore::new(at_once);
        Self { making: turns(), unmaking: turns(), at_once, unmade: Notify::new() }
    }

    /// How many turns are taken: to make something, and to unmake it.
    #[must_use]
    pub fn taken(&self) -> (usize, usize) {
        let taken = |turns: &Semaphore| self.at_once.saturating_sub(turns.available_permits());
        (taken(&self.making), taken(&self.unmaking))
    }

    /// Waits for a turn to make something.
    pub async fn make(&self) -> Turn<'_> {
        self.making.acquire().await.ok()
    }

    /// Takes a turn to make something, if one is free now.
    #[must_use]
    pub fn make_now(&self) -> Turn<'_> {
        self.making.try_acquire().ok()
    }

    /// Waits for a turn to unmake something.
    pub async fn unmake(&self) -> Turn<'_> {
        self.unmaking.acquire().await.ok()
    }

    /// Tells that something has been unmade.
    pub fn unmade(&self) {
        self.unmade.notify_one();
    }

    /// Waits until something has been unmade, or returns at once if that has happened since the last call.
    pub async fn after_unmaking(&self) {
        self.unmade.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_taken_until_they_are_dropped() {
        let turns = Turns::new(2);
        let held = (turns.make().await, turns.make_now(), turns.unmake().await);
        assert_eq!(turns.taken(), (2, 1));
        assert!(turns.make_now().is_none());
        drop(held);
        assert_eq!(turns.taken(), (0, 0));
    }
}
