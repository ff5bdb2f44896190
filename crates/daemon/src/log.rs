//! Where the log goes: to standard error or to systemd's journal.

use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Log, LogFormat};
use crate::journal::{self, Journal};
use crate::stderr::Stderr;

/// How many lines had no room since the start.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The log filter, which can be replaced while the process runs.
pub(crate) type Level = reload::Handle<EnvFilter, Registry>;

/// Starts this process's log; the handle changes the filter.
pub(crate) fn start(config: &Log) -> anyhow::Result<Level> {
    let (filter, level) = reload::Layer::new(filter(config)?);
    let log = tracing_subscriber::registry().with(filter);
    let is_wanted = match config.format {
        LogFormat::Journald => true,
        LogFormat::Auto => leads_to_journal(),
        LogFormat::Text | LogFormat::Json => false,
    };
    // A journal that is out of order is no reason to leave a node without its runtime.
    let (journal, problem) = match is_wanted.then(journal) {
        Some(Ok(journal)) => (Some(journal), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    match (journal, config.format) {
        (Some(journal), _) => log.with(journal).init(),
        (None, LogFormat::Json) => {
            let stderr = Stderr::new(|lost| format!("{{\"level\":\"WARN\",\"lost_lines\":{lost}}}\n"))?;
            log.with(fmt::layer().with_writer(Mutex::new(stderr)).json()).init();
        }
        (None, _) => {
            let stderr = Stderr::new(|lost| format!("WARN: {}\n", loss(lost)))?;
            log.with(fmt::layer().with_writer(Mutex::new(stderr)).with_ansi(false)).init();
        }
    }
    if let Some(error) = problem {
        tracing::warn!(
            error = format!("{error:#}"),
            "logging to standard error instead of systemd's journal"
        );
    }
    Ok(level)
}

/// Counts a line that had no room.
pub(crate) fn lose() {
    LOST.fetch_add(1, Relaxed);
}

/// How many lines had no room since the start.
pub(crate) fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// What tells people that lines were lost.
pub(crate) fn loss(lines: u64) -> String {
    format!("{lines} lines of the log could not be written, and are lost")
}

/// The filter for a configuration.
pub(crate) fn filter(config: &Log) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&config.level).context("log.level")
}

/// systemd's journal.
fn journal() -> anyhow::Result<Journal> {
    Journal::open(Path::new(journal::PATH))
        .with_context(|| format!("opening systemd's journal at {}", journal::PATH))
}

/// Whether systemd has connected standard error to its journal: see `JOURNAL_STREAM` in systemd.exec(5).
#[expect(clippy::disallowed_methods, reason = "no task exists yet")]
fn leads_to_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| is_file(&named, stderr.st_dev(), stderr.st_ino()))
}

/// Whether `device:inode` identifies a file.
fn is_file(named: &str, device: u64, inode: u64) -> bool {
    named == format!("{device}:{inode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_device_and_inode() {
        assert!(is_file("8:4711", 8, 4711));
        for other in ["", "8", "8:471", "4711:8", "8:4711 "] {
            assert!(!is_file(other, 8, 4711), "{other}");
        }
    }
}
