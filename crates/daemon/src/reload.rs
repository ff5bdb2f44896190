//! Reloading the configuration: on SIGHUP, wharfd reads the log level again. All other settings take effect at the next
//! start, which no container notices.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::log::{self, Level};

/// At each SIGHUP, takes the log level from the configuration in that file. An error in the file is logged and changes
/// nothing.
pub(crate) fn at_hangup(file: Option<PathBuf>, level: Level) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match take_over(file.clone(), &level).await {
                Ok(now) => {
                    tracing::info!(
                        level = now,
                        "SIGHUP: reloaded the log level; other settings take effect at the next start"
                    )
                }
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "SIGHUP: cannot reload the configuration; the old log level stays in effect"
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
