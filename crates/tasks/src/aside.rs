//! Work that may get stuck, for example on a disk. It runs on a few threads of the pool, and is waited for only for a
//! while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle};

/// Work that has been begun; `None` if it was not, because too much of it is stuck.
pub type Underway<T> = Option<JoinHandle<T>>;

/// Permits for such work of one kind, and the patience with it.
#[derive(Debug)]
pub struct Aside {
    turns: Arc<Semaphore>,
    threads: usize,
    patience: Duration,
}

impl Aside {
    /// For work that may take this many threads of the pool.
    #[must_use]
    pub fn new(threads: usize, patience: Duration) -> Self {
        Self { turns: Arc::new(Semaphore::new(threads)), threads, patience }
    }

    /// How many threads it has taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.threads.saturating_sub(self.turns.available_permits())
    }

    /// Begins work, if a thread is left for it.
    pub fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Underway<T> {
        let turn = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        }))
    }

    /// Waits for the result; `None` if the work is stuck, or was not begun. It may still come to an end.
    ///
    /// # Errors
    /// The work panicked.
    pub async fn end<T>(&self, underway: Underway<T>) -> Result<Option<T>, JoinError> {
        let Some(underway) = underway else { return Ok(None) };
        tokio::time::timeout(self.patience, underway).await.ok().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_stuck_is_not_waited_for_and_keeps_its_thread() {
        let aside = Aside::new(1, Duration::from_millis(1));
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let stuck = aside.begin(move || told.recv().is_ok());
        assert!(stuck.is_some() && aside.begin(|| ()).is_none(), "no thread is left");
        assert_eq!(aside.taken(), 1);
        assert_eq!(aside.end(aside.begin(|| ())).await.unwrap(), None);
        let mut stuck = stuck.unwrap();
        assert!(tokio::time::timeout(aside.patience, &mut stuck).await.is_err());
        go_on.send(()).unwrap();
        assert!(stuck.await.unwrap());
        let patient = Aside { patience: Duration::from_secs(60), ..aside };
        assert_eq!(patient.end(patient.begin(|| 7)).await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_frees_its_thread() {
        let aside = Aside::new(1, Duration::from_secs(60));
        assert!(aside.end(aside.begin(|| -> u8 { panic!("on purpose") })).await.is_err());
        assert_eq!(aside.end(aside.begin(|| 7)).await.unwrap(), Some(7));
    }
}
