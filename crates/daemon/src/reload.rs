//! What changes while the daemon runs: at SIGHUP the level of the log is read again from the configuration. All else waits
//! for the next start, which no container notices.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::log::{self, Level};

/// Takes over the level of the log at each SIGHUP, from the configuration of that file. What is wrong with it is told, and
/// changes nothing.
pub(crate) fn at_hangup(file: Option<PathBuf>, level: Level) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match take_over(file.clone(), &level).await {
                Ok(now) => {
                    tracing::info!(level = now, "SIGHUP: the log's level was read again, and nothing else")
                }
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "SIGHUP: the configuration is not taken over"
                ),
            }
        }
    });
    Ok(())
}

async fn take_over(file: Option<PathBuf>, level: &Level) -> anyhow::Result<String> {
    let config = tokio::task::spawn_blocking(move || Config::load(file.as_deref())).await??;
    level.reload(log::filter(&config.log)?)?;
    Ok(config.log.level)
}
