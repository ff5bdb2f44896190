//! Turns to make and to unmake something that may hang, each with a thread of a bounded pool, which everything else
//! needs, too.

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Who may make something, or unmake it.
#[derive(Debug)]
pub struct Turns {
    /// Apart from the other, because what is being made may hang, and what is unmade frees what the next needs.
    making: Semaphore,
    unmaking: Semaphore,
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
        Self { making: turns(), unmaking: turns(), unmade: Notify::new() }
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
