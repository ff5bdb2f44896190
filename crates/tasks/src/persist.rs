//! What cannot be done at once and must be done all the same, such as removing what a failed call has made.
//!
//! The work must be such that it can be repeated, as each attempt may have done a part of it. A daemon that ends gives
//! it up: the next one finds what is left by its own means.

use std::error::Error;
use std::time::Duration;

use wharf_types::chain;

/// The longest pause between two attempts.
const PAUSE_LIMIT: Duration = Duration::from_mins(1);

/// Removes what is left of something. If that fails, it is tried again in the background until the daemon exits; the
/// next daemon finds what is left.
pub async fn persist<F, E>(what: &'static str, id: String, attempt: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Error + Send + 'static,
{
    let Err(error) = attempt().await else { return };
    tracing::warn!(id, error = chain(&error), "cannot remove all of {what} yet; retrying");
    tokio::spawn(async move {
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(pause).await;
            if attempt().await.is_ok() {
                tracing::info!(id, "removed what was left of {what}");
                return;
            }
            pause = (pause * 2).min(PAUSE_LIMIT);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// How often something that succeeds at this attempt is tried: at once, and in an hour.
    async fn attempts(succeeds_at: u32) -> (u32, u32) {
        let tried = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&tried);
        persist("something", "1".to_owned(), move || {
            let attempt = count.fetch_add(1, Ordering::Relaxed) + 1;
            std::future::ready(if attempt < succeeds_at { Err(std::fmt::Error) } else { Ok(()) })
        })
        .await;
        let at_once = tried.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_hours(1)).await;
        (at_once, tried.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_tried_until_it_succeeds_and_the_caller_waits_for_the_first_time() {
        assert_eq!(attempts(1).await, (1, 1));
        assert_eq!(attempts(4).await, (1, 4));
        let (at_once, in_an_hour) = attempts(u32::MAX).await;
        assert!(at_once == 1 && in_an_hour < 70, "{in_an_hour}: it is tried about once a minute");
    }
}
