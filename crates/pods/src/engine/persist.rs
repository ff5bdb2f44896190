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
    tracing::warn!(id, error = chain(&error), "{what} has left something behind for now");
    tokio::spawn(async move {
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(pause).await;
            if attempt().await.is_ok() {
                tracing::info!(id, "{what} has left nothing any more");
                return;
            }
            pause = (pause * 2).min(PAUSE_LIMIT);
        }
    });
}
