//! What has become of all pulls since the start, as numbers for metrics. Callers that joined a pull count once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;

/// The upper ends of the ranges of durations, in seconds.
const RANGES_S: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// The pulls since the start. One that has started and not ended is in progress.
#[derive(Debug, Clone)]
pub struct PullFigures {
    /// How many have started.
    pub started: u64,
    /// How many have succeeded, whether or not there was anything to fetch.
    pub succeeded: u64,
    /// How many have failed.
    pub failed: u64,
    /// How many ended because nobody waited for them any more.
    pub given_up: u64,
    /// How many bytes of layers have arrived, those of failed attempts included.
    pub fetched_bytes: u64,
    /// How many seconds those took that have succeeded.
    pub durations: Histogram,
}

/// Where pulls are counted.
#[derive(Debug)]
pub(crate) struct Totals {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    fetched_bytes: AtomicU64,
    durations: Histogram,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            started: AtomicU64::default(),
            succeeded: AtomicU64::default(),
            failed: AtomicU64::default(),
            given_up: AtomicU64::default(),
            fetched_bytes: AtomicU64::default(),
            durations: Histogram::new(RANGES_S),
        }
    }
}

impl Totals {
    pub(crate) fn begin(self: &Arc<Self>) -> Counted {
        self.started.fetch_add(1, Relaxed);
        Counted { totals: Some(Arc::clone(self)), begin: Instant::now() }
    }

    pub(crate) fn fetched(&self, bytes: usize) {
        self.fetched_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Relaxed);
    }

    pub(crate) fn figures(&self) -> PullFigures {
        // The ends first: none may be without its beginning.
        let [succeeded, failed, given_up] =
            [&self.succeeded, &self.failed, &self.given_up].map(|count| count.load(Relaxed));
        PullFigures {
            started: self.started.load(Relaxed),
            succeeded,
            failed,
            given_up,
            fetched_bytes: self.fetched_bytes.load(Relaxed),
            durations: self.durations.clone(),
        }
    }
}

/// A pull that has started.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Until its end was counted.
    totals: Option<Arc<Totals>>,
    begin: Instant,
}

impl Counted {
    pub(crate) fn ended<T, E>(mut self, result: Result<T, E>) -> Result<T, E> {
        let Some(totals) = self.totals.take() else { return result };
        if result.is_ok() {
            totals.succeeded.fetch_add(1, Relaxed);
            totals.durations.observe(self.begin.elapsed().as_secs_f64());
        } else {
            totals.failed.fetch_add(1, Relaxed);
        }
        result
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(totals) = &self.totals {
            totals.given_up.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_counted_once() {
        let totals = Arc::new(Totals::default());
        let [good, bad, lost, _running] = [(); 4].map(|()| totals.begin());
        good.ended(Ok::<_, ()>(())).unwrap();
        bad.ended(Err::<(), _>(())).unwrap_err();
        drop(lost);
        totals.fetched(7);
        let PullFigures { started, succeeded, failed, given_up, fetched_bytes, durations } = totals.figures();
        assert_eq!((started, succeeded, failed, given_up, fetched_bytes), (4, 1, 1, 1, 7));
        let (mut registry, mut text) = (prometheus_client::registry::Registry::default(), String::new());
        registry.register("took", "", durations);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("\ntook_count 1\n"), "{text}");
    }
}
