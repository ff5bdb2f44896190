//! The puller's settings, given once at its start. Settings of a single registry are not here: each pull reads them
//! from files.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::hosts::HostFiles;
use crate::proxy::Proxies;

/// Settings of a [`Puller`](crate::Puller).
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The files that say which hosts are asked. Without any, every registry is asked directly.
    pub files: HostFiles,
    /// The proxies between this node and the registries, unless `hosts.toml` names one.
    pub proxies: Proxies,
    /// Which token hosts outside its own domain may see a registry's credentials: registry host → token hosts.
    pub token_hosts: BTreeMap<String, Vec<String>>,
    /// Bounds of size, time and number.
    pub limits: Limits,
}

/// The bounds of every pull. The defaults suit a node; tests use shorter times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How many layers of one pull are downloaded at a time.
    pub layers_per_pull: usize,
    /// How many layers of all pulls together are downloaded at a time, beside the one that a pull has of its own.
    pub layers_in_all: usize,
    /// How long a connection may take, unless `hosts.toml` says otherwise.
    pub dial_timeout: Duration,
    /// How long a server may send nothing.
    pub stall_timeout: Duration,
    /// The window over which the rate is measured; only time spent waiting for the server counts.
    pub rate_window: Duration,
    /// The lowest rate over that window, in bytes per second.
    pub rate_floor_bytes: u64,
    /// How often one request is retried after 429 or 5xx.
    pub retries: u32,
    /// How often a blob is resumed at one host without a mebibyte of progress in between.
    pub resumes: u32,
    /// The first pause before a retry; each later pause is twice as long.
    pub backoff: Duration,
    /// The longest pause, even if `Retry-After` asks for more.
    pub backoff_limit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers_per_pull: 6,
            layers_in_all: 12,
            dial_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_mins(1),
            rate_window: Duration::from_mins(1),
            rate_floor_bytes: 1024,
            retries: 4,
            resumes: 5,
            backoff: Duration::from_millis(500),
            backoff_limit: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// The pause before retry number `attempt` (from 0), no shorter than the server asks for.
    pub(crate) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let own = self.backoff.saturating_mul(1 << attempt.min(16));
        own.max(asked.unwrap_or_default()).min(self.backoff_limit)
    }
}

/// The longest head of a response, in bytes.
pub(crate) const HEAD_LIMIT_BYTES: usize = 64 << 10;
/// The most header lines of a response.
pub(crate) const HEAD_LIMIT_LINES: usize = 100;
/// The longest token response and the longest error body, in bytes.
pub(crate) const TEXT_LIMIT_BYTES: usize = 1 << 20;
/// How many redirects of one request are followed.
pub(crate) const REDIRECT_LIMIT: usize = 10;
/// How many chunks may wait between the network and the unpacking; each has at most [`CHUNK_LIMIT_BYTES`].
pub(crate) const CHUNKS_LIMIT: usize = 16;
/// The longest chunk, in bytes: what hyper reads at once.
pub(crate) const CHUNK_LIMIT_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_capped() {
        let limits = Limits::default();
        assert_eq!(limits.pause(0, None), Duration::from_millis(500));
        assert_eq!(limits.pause(2, None), Duration::from_secs(2));
        assert_eq!(limits.pause(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(limits.pause(0, Some(Duration::from_hours(9))), Duration::from_secs(30));
        assert_eq!(limits.pause(u32::MAX, None), Duration::from_secs(30));
    }
}
