//! Removing what cannot be removed at once.

use std::time::Duration;

use wharf_types::chain;

use crate::error::Error;

/// The longest pause between two attempts.
const PAUSE_LIMIT: Duration = Duration::from_mins(1);

/// Removes something. If that fails, it retries in the background until the daemon exits; the next daemon finds what is
/// left.
pub(super) async fn persist<F>(what: &'static str, id: String, attempt: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let Err(error) = attempt().await else { return };
    tracing::warn!(id, error = chain(&error), "something is left of {what}; removing it is retried");
    tokio::spawn(async move {
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(pause).await;
            if attempt().await.is_ok() {
                tracing::info!(id, "nothing is left of {what} any more");
                return;
            }
            pause = (pause * 2).min(PAUSE_LIMIT);
        }
    });
}
