//! Where the log goes: standard error, or systemd's journal.

use std::os::linux::fs::MetadataExt;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Starts the log of this process.
pub(crate) fn start(config: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.level).context("log.level")?;
    let to_stderr = tracing_subscriber::fmt().with_writer(std::io::stderr);
    match config.format {
        LogFormat::Journald => journald(filter)?,
        LogFormat::Auto if leads_to_journal() => journald(filter)?,
        LogFormat::Json => to_stderr.with_env_filter(filter).json().init(),
        LogFormat::Auto | LogFormat::Text => to_stderr.with_env_filter(filter).with_ansi(false).init(),
    }
    Ok(())
}

fn journald(filter: EnvFilter) -> anyhow::Result<()> {
    let journal = tracing_journald::layer().context("opening systemd's journal")?;
    let journal = journal.with_syslog_identifier("wharfd".to_owned());
    tracing_subscriber::registry().with(filter).with(journal).init();
    Ok(())
}

/// Whether systemd has connected standard error to its journal: systemd.exec(5) on `JOURNAL_STREAM`.
fn leads_to_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| is_file(&named, stderr.st_dev(), stderr.st_ino()))
}

/// Whether `device:inode` names a file.
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
