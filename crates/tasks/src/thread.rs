//! Blocking work that may take minutes, or that changes what is a thread's own, such as its namespaces. It gets a
//! thread of its own: the pool for blocking work is small, and everything else needs it.

use tokio::sync::{Semaphore, oneshot};

/// How many such threads there are at a time.
static PERMITS: Semaphore = Semaphore::const_new(64);

/// Does work in a thread of its own, which has this name for people.
///
/// # Errors
/// The kernel has no more threads, or the work panicked.
pub async fn in_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    let _permit = PERMITS.acquire().await.map_err(std::io::Error::other)?;
    let (done, waiting) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || drop(done.send(work())))?;
    waiting.await.map_err(|_panicked| std::io::Error::other(format!("the thread {name} panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_has_a_thread_of_its_own_and_a_panic_is_told() {
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(in_thread("apart", name).await.unwrap(), Some("apart".to_owned()));
        let panicked = in_thread("apart", || -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(panicked.to_string(), "the thread apart panicked");
    }
}
